"""Figure 4: the log-likelihoods by hand, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ddaebm.model.bundle import load_bundle
from ddaebm.model.errors import DataError
from ddaebm.model.nets.weights import load_networks
from ddaebm.model.schedule import make_schedule
from ddaebm.training.data import to_tensor
from ddaebm.training.evaluate import auroc
from ddaebm.training.reproduce import fig4_noise as noise
from tests.training.reproduce.golden import shapes, unseen_shapes


def test_log_likelihoods_are_minus_the_energy_of_state_0(debug_bundle: Path, tmp_path: Path) -> None:
    metrics = noise.reproduce(tmp_path / "figure", str(debug_bundle), unseen_shapes(tmp_path), images=20, seed=1)
    assert metrics == json.loads((tmp_path / "figure" / "metrics.json").read_text())
    with np.load(tmp_path / "figure" / "arrays.npz") as arrays:
        real, noisy = arrays["log_likelihood_real"], arrays["log_likelihood_0.5"]
    bundle = load_bundle(debug_bundle)
    schedule = make_schedule(bundle.config)
    _, energy_net = load_networks(bundle, torch.device("cpu"))
    clean = schedule.alpha_bar[0] ** 0.5 * to_tensor(np.load(tmp_path / "unseen.npy")[:20])
    draws = [
        -energy_net(clean + schedule.sigma[0] * torch.randn_like(clean), torch.zeros(20).long()) for _ in range(50)
    ]
    spread = torch.stack(draws).std(0).numpy()
    assert (np.abs(real - torch.stack(draws).mean(0).numpy()) < 5 * spread).all()
    assert metrics["auroc"]["0.5"] == pytest.approx(auroc(-real, -noisy))
    assert metrics["less_likely_than_itself"]["0.5"] == pytest.approx((noisy < real).mean())
    assert metrics["log_likelihood"]["real"]["mean"] == pytest.approx(real.mean())


def test_training_images_are_refused_and_none_is_said(debug_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"images were used for training.*give test images"):
        noise.reproduce(tmp_path / "figure", str(debug_bundle), shapes(tmp_path))
    with pytest.raises(DataError, match="needs --data PATH: test images"):
        noise.reproduce(tmp_path / "figure", str(debug_bundle))
