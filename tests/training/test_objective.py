"""The energy network's loss against the same sum written plainly."""

import pytest
import torch
from accelerate import Accelerator

from ddaebm.model.nets.diffusion import Diffusion
from ddaebm.model.schedule import make_schedule
from ddaebm.training.data import made_shapes, to_tensor
from ddaebm.training.objective import DDAEBMLoss, Pair
from ddaebm.training.recipes import make_config
from ddaebm.training.step import draw, make_state


@pytest.mark.parametrize("penalize", [False, True])
@pytest.mark.parametrize(("weight", "value_penalty"), [(0.25, 0.0), (3.0, 0.0), (1.0, 0.5)])
def test_the_energy_network_s_loss_is_the_sum_of_its_terms(weight: float, value_penalty: float, penalize: bool) -> None:
    """The denoising task is of real images alone."""
    settings = {"network.energy_denoises": "true", "denoise_weight": str(weight), "gamma": "0.5", "penalty_every": "3"}
    config = make_config("debug").override({**settings, "value_penalty": str(value_penalty)})
    state, accelerator = make_state(config), Accelerator(cpu=True)
    for parameter in state.networks.energy_net.parameters():  # the last layer begins at zero
        torch.nn.init.normal_(parameter, std=0.1)
    diffusion = Diffusion(make_schedule(config.network))
    draws = draw(config, 0, 6, accelerator.device)
    x_clean = to_tensor(made_shapes(config.network, 6))
    x_t, x_tp1 = diffusion.forward_pair(x_clean, draws.k, draws.eps_t, draws.eps_tp1)
    x_gen = torch.randn_like(x_t).requires_grad_()
    pair = Pair(x_clean, x_t, x_tp1, draws.k)
    terms = DDAEBMLoss(config, diffusion, accelerator).energy_loss(state.networks, pair, x_gen, penalize)

    energy_net = state.networks.energy_net
    real, guess = energy_net.energy_and_guess(x_t.requires_grad_(), draws.k)
    generated = energy_net(x_gen, draws.k)
    level = torch.stack([real[draws.k == k].mean() for k in draws.k]).detach()
    expected = real - generated + value_penalty * 0.5 * ((real - level).square() + (generated - level).square())
    expected = expected + weight * 0.5 * (guess - x_clean).square().sum((1, 2, 3))
    if penalize:
        (slope,) = torch.autograd.grad(real.sum(), x_t, retain_graph=True)
        expected = expected + 0.5 * 0.5 * 3 * slope.square().sum((1, 2, 3))
    torch.testing.assert_close(terms.loss, expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(terms.real, real, rtol=1e-4, atol=1e-4)
