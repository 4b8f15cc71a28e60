"""One train step against the same maths written plainly."""

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from model.diffusion import Diffusion
from model.schedule import make_schedule
from training.data import load_data, split, to_tensor
from training.losses import forward_kl, gaussian_log_prob
from training.recipes import make_config
from training.step import draw, make_state, train_step

TINY = make_config("debug").override({"batch_size": "8"})
DATA = split(load_data("shapes", TINY.network)).train


@pytest.mark.parametrize("contrast", ["difference", "relativistic"])
@pytest.mark.parametrize("settings", [{}, {"penalize_generated": "true"}, {"value_penalty": "0.1"}], ids=str)
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
    x_t_rec = diffusion.posterior_mean(generator(x_tp1, mean + (0.5 * log_var).exp() * draws.eps_z, k), x_tp1, k)
    energy = energy_net(x_t_gen, k)
    if contrast == "relativistic":
        energy = F.softplus(energy - energy_net(x_t, k).detach())
    log_r = gaussian_log_prob(draws.z, *encoder(x_t_gen, x_tp1, k))
    reverse = energy - diffusion.log_q(x_tp1, x_t_gen, k) - config.entropy_weight * log_r
    (reverse + forward_kl(x_t, x_t_rec, mean, log_var)).mean().backward()
    expected = torch.nn.utils.get_total_norm([p.grad for p in (*generator.parameters(), *encoder.parameters())])
    state.networks.zero_grad()
    terms = train_step(config, diffusion, state, x_clean, draws, accelerator)
    torch.testing.assert_close(terms["grad_norm_generator"], expected, rtol=1e-4, atol=0)


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
