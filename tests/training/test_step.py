"""One train step against the same maths written plainly."""

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from ddaebm.model.nets.diffusion import Diffusion
from ddaebm.model.schedule import make_schedule
from ddaebm.training.data import load_data, split, to_tensor
from ddaebm.training.losses import forward_kl, gaussian_log_prob
from ddaebm.training.recipes import make_config
from ddaebm.training.step import draw, make_state, train_step

TINY = make_config("debug").override({"batch_size": "8"})
DATA = split(load_data("shapes", TINY.network)).train


@pytest.mark.parametrize("contrast", ["difference", "relativistic"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"penalize_generated": "true"},
        {"value_penalty": "0.1"},
        {"forward_weight": "0"},
        {"reconstruct_from": "prior"},
    ],
    ids=str,
)
def test_the_generator_s_gradient_is_that_of_the_energy_before_its_update(
    contrast: str, settings: dict[str, str]
) -> None:
    """The energy is taken to first order around x_t_gen; here it is run again, with everything else left out."""
    config = TINY.override({"contrast": contrast, "lr_energy": "0", **settings})
    state, diffusion, accelerator = make_state(config), Diffusion(make_schedule(config.network)), Accelerator(cpu=True)
    generator, energy_net, encoder = (state.networks[name] for name in ("generator", "energy_net", "encoder"))
    draws = draw(config, 0, 8, accelerator.device)
    x_clean, k = to_tensor(DATA[:8]), draws.k
    x_t, x_tp1 = diffusion.forward_pair(x_clean, k, draws.eps_t, draws.eps_tp1)
    mean, log_var = encoder(x_t, x_tp1, k)
    x_t_gen = diffusion.posterior_sample(generator(x_tp1, draws.z, k), x_tp1, k, draws.eps_gen, False)
    z_rec = draws.z if config.reconstruct_from == "prior" else mean + (0.5 * log_var).exp() * draws.eps_z
    x_t_rec = diffusion.posterior_mean(generator(x_tp1, z_rec, k), x_tp1, k)
    energy = energy_net(x_t_gen, k)
    if contrast == "relativistic":
        energy = F.softplus(energy - energy_net(x_t, k).detach())
    log_r = gaussian_log_prob(draws.z, *encoder(x_t_gen, x_tp1, k))
    reverse = energy - diffusion.log_q(x_tp1, x_t_gen, k) - config.entropy_weight * log_r
    (reverse + config.forward_weight * forward_kl(x_t, x_t_rec, mean, log_var)).mean().backward()
    expected = torch.nn.utils.get_total_norm([p.grad for p in (*generator.parameters(), *encoder.parameters())])
    state.networks.zero_grad()
    terms = train_step(config, diffusion, state, x_clean, draws, accelerator)
    torch.testing.assert_close(terms["grad_norm_generator"], expected, rtol=1e-4, atol=0)


def test_ddgan_s_loss_is_a_classifier_s_of_pairs_and_its_generator_s_non_saturating() -> None:
    config = make_config("toy").override({
        "contrast": "non-saturating", "network.energy_sees_next": "true", "network.energy_curvature": "0", "gamma": "0",
        "entropy_weight": "0", "forward_weight": "0", "value_penalty": "0", "batch_size": "8",
    })  # fmt: skip
    points = to_tensor(split(load_data("25-gaussians", config.network)).train[:8])
    state, diffusion, accelerator = make_state(config), Diffusion(make_schedule(config.network)), Accelerator(cpu=True)
    generator, energy_net = state.networks.generator, state.networks.energy_net
    draws = draw(config, 0, 8, accelerator.device)
    x_t, x_tp1 = diffusion.forward_pair(points, draws.k, draws.eps_t, draws.eps_tp1)
    x_t_gen = diffusion.posterior_sample(generator(x_tp1, draws.z, draws.k), x_tp1, draws.k, draws.eps_gen, True)

    def logit(x: torch.Tensor) -> torch.Tensor:  # of real
        out, _ = energy_net.backbone(torch.cat([x, x_tp1], 1), draws.k)
        return -out[:, 0]

    verdicts = torch.cat([logit(x_t), logit(x_t_gen.detach())])
    judge = 2 * F.binary_cross_entropy_with_logits(verdicts, torch.tensor([1.0] * 8 + [0.0] * 8))
    norms = []
    for loss, net in ((judge, energy_net), (-F.logsigmoid(logit(x_t_gen)).mean(), generator)):
        gradients = torch.autograd.grad(loss, list(net.parameters()), allow_unused=True, retain_graph=True)
        norms.append(torch.nn.utils.get_total_norm([g for g in gradients if g is not None]))
    terms = train_step(config, diffusion, state, points, draws, accelerator)
    torch.testing.assert_close(terms["grad_norm_energy"], norms[0], rtol=1e-4, atol=0)
    torch.testing.assert_close(terms["grad_norm_generator"], norms[1], rtol=1e-4, atol=0)


def test_flips_mirror_half_of_the_images_and_no_other() -> None:
    config = TINY.override({"flip": "true"})
    side = torch.cat([draw(config, step, 64, torch.device("cpu")).side for step in range(100)])
    assert (side < 0.5).double().mean().item() == pytest.approx(0.5, abs=0.03)
    plain, flipped = (
        train_step(
            setting, Diffusion(make_schedule(config.network)), make_state(setting), images,
            draw(setting, 0, 8, torch.device("cpu"))._replace(side=torch.zeros(8)), Accelerator(cpu=True),
        )
        for setting, images in ((TINY, to_tensor(DATA[:8]).flip(3)), (config, to_tensor(DATA[:8])))
    )  # fmt: skip
    assert plain == flipped
