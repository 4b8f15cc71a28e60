"""The graph modules. The tests of export and of the torch engine check their numbers."""

import torch

from ddaebm.model.config import ModelConfig
from ddaebm.model.nets.graphs import LEVEL, EnergyGraph, PlacesGraph, SamplerGraph, to_pixels
from ddaebm.model.nets.networks import EnergyNet, Generator
from ddaebm.model.sampling import draw_noise
from ddaebm.model.schedule import make_schedule

CONFIG = ModelConfig(data_shape=(3, 16, 8), widths=(8, 16))


def test_shapes_and_types() -> None:
    images = SamplerGraph(Generator(CONFIG), CONFIG)(*draw_noise(CONFIG, torch.arange(5)))
    assert (images.shape, images.dtype) == ((5, 16, 8, 3), torch.uint8)
    graph = EnergyGraph(EnergyNet(CONFIG), CONFIG)
    energies, energy_map, features = graph(images)
    assert (energies.shape, energy_map.shape, features.shape) == ((5, 4), (5, 4, 16, 8), (5, 4, 16))


def test_places_hold_means_and_mean_squares_of_all_activations() -> None:
    images = torch.randint(256, (2, 16, 8, 3), dtype=torch.uint8)
    net = EnergyNet(CONFIG)
    places = PlacesGraph(net, CONFIG)(images)
    assert places.shape == (2, 2 * (8 + 16), 16 // CONFIG.fold, 8 // CONFIG.fold)
    _, _, features = EnergyGraph(net, CONFIG)(images)
    torch.testing.assert_close(places[:, 8:24].mean((2, 3)), features[:, LEVEL])
    x_t = make_schedule(CONFIG).alpha_bar[LEVEL] ** 0.5 * (images.permute(0, 3, 1, 2) / 127.5 - 1)
    finer, coarsest = net.activations(x_t.float(), torch.full((2,), LEVEL))
    for first, h in ((0, finer), (24, finer.square())):
        torch.testing.assert_close(places[:, first : first + 8], h.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)))
    torch.testing.assert_close(places[:, 32:], coarsest.square())


def test_larger_images_have_more_places() -> None:
    places = PlacesGraph(EnergyNet(CONFIG), CONFIG)(torch.zeros((1, 48, 16, 3), dtype=torch.uint8))
    assert places.shape == (1, 48, 48 // CONFIG.fold, 16 // CONFIG.fold)


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
