"""Fine-tuning: a run that begins with a bundle's weights, and what it refuses."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load

from ddaebm.model.bundle import Bundle, load_bundle
from ddaebm.model.errors import ConfigError, DataError
from ddaebm.training import checkpoint
from ddaebm.training.config import TrainConfig
from ddaebm.training.data import Splits, load_data, split
from ddaebm.training.export import export, train_command
from ddaebm.training.recipes import make_config
from ddaebm.training.start import begin, require_fit
from ddaebm.training.step import TrainState, make_state
from ddaebm.training.trainer import train

CONFIG = make_config("debug").override({"steps": "3", "batch_size": "8", "encoder_steps": "2", "seed": "5"})
PARTS = split(load_data("shapes", CONFIG.network))


def other_images(count: int = 120) -> Splits:
    return split(np.random.default_rng(3).integers(256, size=(count, 16, 16, 1), dtype=np.uint8))


@pytest.fixture(scope="module")
def bundle(debug_bundle: Path) -> Bundle:
    return load_bundle(debug_bundle)


@pytest.fixture(scope="module")
def config(bundle: Bundle) -> TrainConfig:
    return dataclasses.replace(CONFIG, start=bundle.digest)


def state_of(run: Path, config: TrainConfig) -> TrainState:
    state = make_state(config)
    checkpoint.resume(run, state, config)
    return state


def test_it_begins_with_the_bundles_weights(tmp_path: Path, bundle: Bundle, config: TrainConfig) -> None:
    begin(tmp_path, bundle, config)
    state = state_of(tmp_path, config)
    assert state.step == 0
    for file, nets in (
        ("generator.safetensors", (state.networks.generator, state.generator_ema)),
        ("energy_net.safetensors", (state.networks.energy_net, state.energy_net_ema)),
    ):
        for net in nets:
            torch.testing.assert_close(dict(net.state_dict()), load(bundle.read(file)), rtol=0, atol=0)


def test_the_encoder_learns_first_and_alone(tmp_path: Path, bundle: Bundle, config: TrainConfig) -> None:
    parts = other_images()
    begin(tmp_path, bundle, config)
    before = state_of(tmp_path, config)
    train(dataclasses.replace(config, steps=2), parts.train, tmp_path, "cpu")
    after = state_of(tmp_path, config)
    for name in ("generator", "energy_net"):
        old, new = getattr(before.networks, name).state_dict(), getattr(after.networks, name).state_dict()
        torch.testing.assert_close(new, old, rtol=0, atol=0, msg=name)
    assert any(
        (new != old).any()
        for new, old in zip(after.networks.encoder.parameters(), before.networks.encoder.parameters(), strict=True)
    )
    train(config, parts.train, tmp_path, "cpu")
    last = state_of(tmp_path, config)
    for net, old in ((last.networks.generator, before.networks.generator),
                     (last.networks.energy_net, before.networks.energy_net)):  # fmt: skip
        assert any((new != was).any() for new, was in zip(net.parameters(), old.parameters(), strict=True))
    # The average keeps its decay: the bundle's weights are no random start that should be forgotten.
    for average, old, new in zip(
        last.generator_ema.parameters(), before.networks.generator.parameters(),
        last.networks.generator.parameters(), strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(average, old.lerp(new, 1 - config.ema_decay), rtol=1e-5, atol=1e-7)


def test_other_networks_are_refused_by_name(bundle: Bundle, config: TrainConfig) -> None:
    other = config.override({"network.latent_dim": "9"})
    with pytest.raises(ConfigError, match=r"network\.latent_dim 9 for 8"):
        require_fit(bundle, other, other_images())


def test_images_that_the_bundle_has_seen_do_not_calibrate(bundle: Bundle, config: TrainConfig) -> None:
    seen = dataclasses.replace(other_images(), calibration=PARTS.train[:7])
    with pytest.raises(DataError, match="trained on 7 of the 7"):
        require_fit(bundle, config, seen)


def test_its_bundle_knows_what_both_have_seen(
    tmp_path: Path, bundle: Bundle, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = {name: bundle.read(name) for name in bundle.files if name.endswith((".onnx", ".safetensors"))}
    monkeypatch.setattr("ddaebm.training.export.make_files", lambda *args: (dict(graphs), {}))  # takes half a minute
    images = np.random.default_rng(4).integers(256, size=(120, 16, 16, 1), dtype=np.uint8)
    data = tmp_path / "images.npy"
    np.save(data, images)
    config = dataclasses.replace(config, data=str(data))
    parts = split(load_data(config.data, config.network))
    run = tmp_path / "run"
    begin(run, bundle, config)
    train(config, parts.train, run, "cpu")
    made, _ = export(run, tmp_path / "bundle")
    assert np.isin(bundle.fingerprints(), made.fingerprints()).all()
    assert len(made.fingerprints()) > len(bundle.fingerprints())
    assert made.training["start"] == bundle.digest


def test_the_command_on_the_card_says_that_a_bundle_came_first(config: TrainConfig) -> None:
    command = train_command(config)
    assert "--start BUNDLE" in command
    assert "--set encoder_steps=2" in command
    assert config.start not in command
