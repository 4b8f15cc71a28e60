"""Variants of the training method for the ablation figure. Nothing else uses them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddaebm.model.config import ModelConfig
from ddaebm.model.nets.mlp import MLP
from ddaebm.model.nets.networks import Networks
from ddaebm.training.losses import gradient_penalty
from ddaebm.training.objective import DDAEBMLoss, Draws, EnergyTerms, Generated, GeneratorTerms, Pair


class PriorReconstructionLoss(DDAEBMLoss):
    """Reconstruct x_t from the prior's draw, not from the encoder's latent, as the paper's code for CIFAR-10 does."""

    def generate(self, networks: Networks, pair: Pair, draws: Draws) -> Generated:
        generated = super().generate(networks, pair, draws)
        return generated._replace(x_t_rec=self.diffusion.posterior_mean(generated.x0_hat, pair.x_tp1, pair.k))


class DDGANLoss(DDAEBMLoss):
    """The loss of DDGAN (Xiao et al., ICLR 2022): a non-saturating GAN on pairs (x_t, x_tp1).

    It needs `PairDiscriminator` as the energy network. The encoder is not trained.
    """

    slope_is_free = False

    def energy_loss(self, networks: Networks, pair: Pair, x_gen: Tensor, penalize: bool) -> EnergyTerms:
        """Cross-entropy of a classifier whose logit for "real" is -E, plus gamma/2·R1."""
        discriminator, config, (_, x_t, x_tp1, k) = networks["energy_net"], self.config, pair
        x_t = x_t.detach().requires_grad_(penalize)
        real, generated = discriminator(x_t, x_tp1, k), discriminator(x_gen, x_tp1, k)
        loss, penalty = F.softplus(real) + F.softplus(-generated), None
        if penalize:
            penalty = gradient_penalty(real, self.diffusion, x_t, x_tp1, k, "r1")
            loss = loss + 0.5 * config.gamma * config.penalty_every * penalty
        return EnergyTerms(loss, real, generated, penalty)

    def generator_loss(
        self, networks: Networks, pair: Pair, generated: Generated, energy_gen: Tensor, draws: Draws
    ) -> GeneratorTerms:
        """-log of the probability that generated pairs are real."""
        return GeneratorTerms(F.softplus(energy_gen), {})


class PairDiscriminator(nn.Module):
    """E(x_t, x_tp1, k), (B,): minus the logit that a pair of points is real."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.backbone = MLP(config, 2 * config.data_shape[0], 1)

    def forward(self, x_t: Tensor, x_tp1: Tensor, k: Tensor) -> Tensor:
        out, _ = self.backbone(torch.cat([x_t, x_tp1], 1), k)  # (B, 1)
        energy: Tensor = out[:, 0]
        return energy


@dataclass(frozen=True)
class Variant:
    """One column of the ablation figure: what differs from the recipe."""

    changes: Mapping[str, str] = field(default_factory=dict)  # settings, as for `TrainConfig.override`
    make_loss: type[DDAEBMLoss] = DDAEBMLoss
    make_networks: Callable[[ModelConfig], Networks] = Networks
    has_density: bool = True  # whether exp(-E) is a density of x_t


# The base, "all parts", has the Jeffrey divergence, an R1 penalty and the encoder's reconstruction.
VARIANTS: dict[str, Variant] = {
    "all parts": Variant(),
    "lambda 0.1": Variant({"entropy_weight": "0.1"}),
    "no entropy bound": Variant({"entropy_weight": "0"}),
    "reverse KL alone": Variant({"forward_weight": "0"}),
    "no gradient penalty": Variant({"gamma": "0"}),
    "no penalty": Variant({"gamma": "0", "value_penalty": "0"}),
    "no encoder": Variant(make_loss=PriorReconstructionLoss),
    "DDGAN's loss": Variant(
        make_loss=DDGANLoss,
        make_networks=partial(Networks, make_energy_net=PairDiscriminator),
        has_density=False,
    ),
}
