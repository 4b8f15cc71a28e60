"""One train step against the same maths written plainly."""

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from ddaebm.model.nets.diffusion import Diffusion
from ddaebm.model.schedule import make_schedule
from ddaebm.training.data import load_data, split, to_tensor
from ddaebm.training.losses import forward_kl, gaussian_log_prob
from ddaebm.training.objective import DDAEBMLoss
from ddaebm.training.recipes import make_config
from ddaebm.training.reproduce.variants import VARIANTS, DDGANLoss, PriorReconstructionLoss
from ddaebm.training.step import draw, make_state, train_step

TINY = make_config("debug").override({"batch_size": "8"})
DATA = split(load_data("shapes", TINY.network)).train


@pytest.mark.parametrize(
    "settings", [{}, {"value_penalty": "0.1"}, {"forward_weight": "0"}, {"likelihood_floor": "0.01"}], ids=str
)
@pytest.mark.parametrize("make_loss", [DDAEBMLoss, PriorReconstructionLoss])
def test_the_generator_s_gradient_is_that_of_the_energy_before_its_update(
    make_loss: type[DDAEBMLoss], settings: dict[str, str]
) -> None:
    """`train_step` uses a first-order expansion of the energy at x_t_gen; here the energy network runs again."""
    config = TINY.override({"lr_energy": "0", **settings})
    state, diffusion, accelerator = make_state(config), Diffusion(make_schedule(config.network)), Accelerator(cpu=True)
    generator, energy_net, encoder = (state.networks[name] for name in ("generator", "energy_net", "encoder"))
    draws = draw(config, 0, 8, accelerator.device)
    x_clean, k = to_tensor(DATA[:8]), draws.k
    x_t, x_tp1 = diffusion.forward_pair(x_clean, k, draws.eps_t, draws.eps_tp1)
    mean, log_var = encoder(x_t, x_tp1, k)
    x_t_gen = diffusion.posterior_sample(generator(x_tp1, draws.z, k), x_tp1, k, draws.eps_gen, False)
    z_rec = draws.z if make_loss is PriorReconstructionLoss else mean + (0.5 * log_var).exp() * draws.eps_z
    x_t_rec = diffusion.posterior_mean(generator(x_tp1, z_rec, k), x_tp1, k)
    log_r = gaussian_log_prob(draws.z, *encoder(x_t_gen, x_tp1, k))
    reverse = energy_net(x_t_gen, k) - diffusion.log_q(x_tp1, x_t_gen, k) - config.entropy_weight * log_r
    variance = diffusion.posterior_std[k].square().clamp_min(0.01) if "likelihood_floor" in settings else 0.5
    (reverse + config.forward_weight * forward_kl(x_t, x_t_rec, mean, log_var, variance)).mean().backward()
    expected = torch.nn.utils.get_total_norm([p.grad for p in (*generator.parameters(), *encoder.parameters())])
    state.networks.zero_grad()
    terms = train_step(config, diffusion, state, x_clean, draws, accelerator, make_loss)
    torch.testing.assert_close(terms["grad_norm_generator"], expected, rtol=1e-4, atol=0)


def test_ddgan_s_loss_is_a_classifier_s_of_pairs_and_its_generator_s_non_saturating() -> None:
    config = make_config("toy").override({"gamma": "0", "batch_size": "8"})
    make_networks = VARIANTS["DDGAN's loss"].make_networks
    points = to_tensor(split(load_data("25-gaussians", config.network)).train[:8])
    state, diffusion = make_state(config, make_networks=make_networks), Diffusion(make_schedule(config.network))
    accelerator, generator, energy_net = Accelerator(cpu=True), state.networks.generator, state.networks["energy_net"]
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
    terms = train_step(config, diffusion, state, points, draws, accelerator, DDGANLoss)
    torch.testing.assert_close(terms["grad_norm_energy"], norms[0], rtol=1e-4, atol=0)
    torch.testing.assert_close(terms["grad_norm_generator"], norms[1], rtol=1e-4, atol=0)
