"""Initialise the networks for points with the exact solution for Gaussian data, so that training learns the rest."""

import math
from typing import cast

import torch
from torch import nn

from ddaebm.model.config import ModelConfig
from ddaebm.model.nets.mlp import MLP
from ddaebm.model.nets.networks import Encoder, Generator
from ddaebm.model.schedule import make_schedule


@torch.no_grad()
def begin_as_gaussian(config: ModelConfig, generator: Generator, encoder: Encoder | None = None) -> None:
    """Set the weights of the linear skips to the exact solution for data N(0, I), and those of the heads to 0.

    Needs `config.linear_skip`, and as many latents as data dimensions. With a = alpha_bar of x_tp1, the exact
    distribution of x_clean given x_tp1 is N(sqrt(a)·x_tp1, 1 - a), which the generator makes from z. The encoder gets
    the exact posterior of z given x_t and x_tp1, which is Gaussian as well.
    """
    schedule, eye = make_schedule(config), torch.eye(config.latent_dim)
    to_x, _ = _linear_part(generator)
    for k in range(config.num_steps):
        a = schedule.alpha_bar[k + 1]
        to_x[k] = torch.cat([eye * a**0.5, eye * (1 - a) ** 0.5], 1)
    if encoder is None:
        return
    to_z, bias = _linear_part(encoder)
    for k in range(config.num_steps):
        a = schedule.alpha_bar[k + 1]
        gain, var = schedule.c1[k] * (1 - a) ** 0.5, math.exp(schedule.posterior_log_var[k])
        # x_t = gain·z + a linear function of x_tp1 + noise of variance var.
        precision = 1 + gain**2 / var
        slope = gain / var / precision
        mean = torch.cat([eye * slope, -eye * slope * (schedule.c1[k] * a**0.5 + schedule.c2[k])], 1)
        to_z[k] = torch.cat([mean, torch.zeros_like(mean)])
        bias[k, config.latent_dim :] = -math.log(precision)


def _linear_part(net: Generator | Encoder) -> tuple[torch.Tensor, torch.Tensor]:
    """Set the output layer of a network to 0, and return views of its linear skip: (T, out, in) and (T, out)."""
    backbone = cast(MLP, net.backbone)
    nn.init.zeros_(backbone.head.weight)
    nn.init.zeros_(backbone.head.bias)
    skip, out = cast(nn.Linear, backbone.skip), backbone.head.out_features
    return skip.weight.view(-1, out, skip.in_features), skip.bias.view(-1, out)
