"""The graph modules. The tests of export and of the torch engine check their numbers."""

import torch

from ddaebm.model.config import ModelConfig
from ddaebm.model.nets.graphs import EnergyGraph, SamplerGraph, to_pixels
from ddaebm.model.nets.networks import EnergyNet, Generator
from ddaebm.model.sampling import draw_noise
from ddaebm.model.schedule import make_schedule

CONFIG = ModelConfig(data_shape=(3, 16, 8), widths=(8, 16))


def test_shapes_and_types() -> None:
    images = SamplerGraph(Generator(CONFIG), CONFIG)(*draw_noise(CONFIG, torch.arange(5)))
    assert (images.shape, images.dtype) == ((5, 16, 8, 3), torch.uint8)
    graph = EnergyGraph(EnergyNet(CONFIG), CONFIG)
    energies, energy_map, features, grid = graph(images)
    assert (energies.shape, energy_map.shape, features.shape) == ((5, 4), (5, 4, 16, 8), (5, 4, 16))
    assert grid.shape == (5, 4, 8 + 16, 16 // graph.fold, 8 // graph.fold)


def test_the_grid_holds_all_activations_and_its_coarsest_give_the_features() -> None:
    images = torch.randint(256, (2, 16, 8, 3), dtype=torch.uint8)
    net = EnergyNet(CONFIG)
    _, _, features, grid = EnergyGraph(net, CONFIG)(images)
    torch.testing.assert_close(grid[:, :, 8:].mean((3, 4)), features)
    x_t = make_schedule(CONFIG).alpha_bar[2] ** 0.5 * (images.permute(0, 3, 1, 2) / 127.5 - 1)
    finer, _ = net.levels(x_t.float(), torch.full((2,), 2)).activations
    torch.testing.assert_close(grid[:, 2, :8], finer.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)))


def test_larger_images_have_larger_maps_and_grids() -> None:
    graph = EnergyGraph(EnergyNet(CONFIG), CONFIG)
    energies, energy_map, _, grid = graph(torch.zeros((1, 48, 16, 3), dtype=torch.uint8))
    assert (energy_map.shape, grid.shape) == ((1, 4, 48, 16), (1, 4, 24, 48 // graph.fold, 16 // graph.fold))
    torch.testing.assert_close(energy_map.sum((2, 3)), energies)


def test_everything_is_made_on_the_device_of_the_inputs() -> None:
    """The "meta" device stands for a GPU. It does not refuse an index on the host, so the test checks its device."""
    generator, energy_net = Generator(CONFIG), EnergyNet(CONFIG)
    indices: list[torch.Tensor] = []
    for net in (generator, energy_net):
        net.embed.register_forward_pre_hook(lambda _module, inputs: indices.append(inputs[0]))
    images = SamplerGraph(generator, CONFIG).to("meta")(*draw_noise(CONFIG, torch.arange(5, device="meta")))
    outputs = EnergyGraph(energy_net, CONFIG).to("meta")(images)
    assert {tensor.device.type for tensor in (images, *outputs, *indices)} == {"meta"}
    assert len(indices) == CONFIG.num_steps + 1


def test_samples_beyond_the_range_are_clipped() -> None:
    assert to_pixels(torch.tensor([-3.0, -1, 0.999, 5]).reshape(1, 1, 1, 4)).flatten().tolist() == [0, 0, 255, 255]
