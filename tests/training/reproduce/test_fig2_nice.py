"""NICE by the change of variables, and that Figure 2 stops and goes on."""

import json
import signal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from ddaebm.model.errors import DataError
from ddaebm.model.nets.diffusion import Diffusion
from ddaebm.model.nets.networks import Networks
from ddaebm.model.schedule import make_schedule
from ddaebm.training.data import to_tensor
from ddaebm.training.reproduce import fig2_nice as nice
from ddaebm.training.reproduce import figure
from ddaebm.training.reproduce.flow import NOISE, FlowEnergy, Nice, Whitening, draws, mean_log_prob
from ddaebm.training.reproduce.gaussian import begin_as_gaussian
from tests.training.reproduce.golden import SMALLER, digits


def moved_flow(dim: int, levels: int) -> Nice:
    """A flow with every parameter away from its beginning."""
    torch.manual_seed(0)
    flow = Nice(dim, [1.0] * levels, width=8).double()
    for parameter in flow.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return flow


def test_the_log_likelihood_is_that_of_the_change_of_variables() -> None:
    flow, k = moved_flow(5, 3), torch.tensor([2])
    z = torch.randn(1, 5).double()
    x = flow.invert(z, k)
    jacobian = torch.autograd.functional.jacobian(lambda z: _invert_with_gradient(flow, z, k), z).reshape(5, 5)
    logistic = torch.distributions.TransformedDistribution(
        torch.distributions.Uniform(torch.zeros(5).double(), torch.ones(5).double()),
        [torch.distributions.SigmoidTransform().inv],
    )
    wanted = logistic.log_prob(z).sum() - torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(flow.log_prob(x, k)[0], wanted)
    assert flow.log_prob(x, torch.tensor([0]))[0] != flow.log_prob(x, k)[0], "each level has its own density"


def _invert_with_gradient(flow: Nice, z: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        inverse: torch.Tensor = Nice.invert.__wrapped__(flow, z, k)  # type: ignore[attr-defined]
    return inverse


def test_a_density_in_the_plane_sums_to_one_and_its_draws_have_its_entropy() -> None:
    flow = moved_flow(2, 1)
    axis = torch.linspace(-50, 50, 600).double()
    points = torch.cartesian_prod(axis, axis)
    density = flow.log_prob(points, torch.zeros(len(points), dtype=torch.long)).exp()
    assert density.sum().item() * (axis[1] - axis[0]).item() ** 2 == pytest.approx(1, abs=1e-3)
    entropy = -(density * density.clamp_min(1e-300).log()).sum().item() * (axis[1] - axis[0]).item() ** 2
    sampled = draws(flow.float(), 10_000, 0, torch.device("cpu"))
    assert -mean_log_prob(flow, sampled) == pytest.approx(entropy, abs=0.05)


def test_its_energy_is_minus_the_log_likelihood() -> None:
    flow, x, k = moved_flow(4, 2), torch.randn(3, 4).double(), torch.tensor([0, 1, 1])
    energy, guess = FlowEnergy(flow).energy_and_guess(x, k)
    torch.testing.assert_close(energy, -flow.log_prob(x, k))
    assert guess.shape == (3, 0)


def test_whitened_images_with_their_noise_are_uncorrelated_and_pixels_come_back() -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 3, 3, 1), dtype=np.uint8)
    whitening, x = Whitening.of(images), to_tensor(images).flatten(1)
    torch.testing.assert_close(whitening.pixels(whitening.whiten(x)), x, atol=1e-5, rtol=1e-5)
    with_noise = torch.cov(x.T) + NOISE**2 * torch.eye(9)
    torch.testing.assert_close(whitening.whitening @ with_noise @ whitening.whitening, torch.eye(9), atol=1e-5, rtol=0)
    torch.testing.assert_close(whitening.whitening, whitening.whitening.T)


def test_training_begins_at_the_exact_answer_for_gaussian_data() -> None:
    config = nice.recipe(6, 10, 0)
    networks, diffusion = Networks(config.network), Diffusion(make_schedule(config.network))
    begin_as_gaussian(config.network, networks.generator, networks.encoder)
    rng = torch.Generator().manual_seed(0)
    x, eps_t, eps_tp1, z, eps = (torch.randn(20_000, 6, generator=rng) for _ in range(5))
    for step in range(config.network.num_steps):
        k = torch.full((len(x),), step)
        x_t, x_tp1 = diffusion.forward_pair(x, k, eps_t, eps_tp1)
        made = diffusion.posterior_sample(networks.generator(x_tp1, z, k), x_tp1, k, eps, noise_at_zero=True)
        wanted, got = (torch.cov(torch.cat([part, x_tp1], 1).T) for part in (x_t, made))
        torch.testing.assert_close(got, wanted, atol=0.04, rtol=0)
        mean, log_var = networks.encoder(made, x_tp1, k)
        surprise = (z - mean) * (-log_var / 2).exp()
        assert surprise.std().item() == pytest.approx(1, abs=0.02)
        assert (surprise * mean).mean().item() == pytest.approx(0, abs=0.02)


def test_interrupted_in_any_part_it_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    given: dict[str, Any] = {"data": digits(tmp_path), "size": 8, "steps": 9, "device": "cpu"}
    stops = ["truth.pt", "wgan-gp.pt"]

    def interrupted_fit(path: Path, *arguments: Any, **named: Any) -> None:
        if path.name in stops and not path.exists():
            step = arguments[4]

            def stopping(i: int) -> None:
                step(i)
                if i == 1:
                    signal.raise_signal(signal.SIGINT)

            arguments = (*arguments[:4], stopping)
        figure.fit(path, *arguments, **named)

    with patch.multiple(nice, **SMALLER["nice"]):
        whole = nice.reproduce(tmp_path / "whole", **given)
        with (
            patch("ddaebm.training.reproduce.flow.fit", interrupted_fit),
            patch("ddaebm.training.reproduce.wgan.fit", interrupted_fit),
        ):
            for _ in stops:
                with pytest.raises(KeyboardInterrupt):
                    nice.reproduce(tmp_path / "parts", **given)
            assert not (tmp_path / "parts" / "metrics.json").exists()
            assert nice.reproduce(tmp_path / "parts", **given) == whole
    assert json.loads((tmp_path / "parts" / "metrics.json").read_text()) == whole
    gap = whole["log_likelihood"]["truth"] - whole["log_likelihood"]["ours"]
    assert whole["gap"]["ours"] == pytest.approx(gap)
    with np.load(tmp_path / "parts" / "arrays.npz") as arrays:
        assert arrays["ours"].shape == (200, 64)


def test_it_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs --data PATH: MNIST's train-images-idx3-ubyte"):
        nice.reproduce(tmp_path)
    digits(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="labels"):
        nice.reproduce(tmp_path / "figure", data=str(tmp_path / "train-images-idx3-ubyte"))
