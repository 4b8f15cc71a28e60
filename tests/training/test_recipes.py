"""Every recipe builds; `images` fits its network to any size that it takes, and says which it does not."""

import dataclasses
import json

import pytest
import torch

from ddaebm.model.errors import ConfigError
from ddaebm.model.images.contract import Contract
from ddaebm.model.nets.networks import EnergyNet, Generator, Networks
from ddaebm.training.config import TrainConfig
from ddaebm.training.recipes import RECIPES, make_config


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_builds_and_survives_json(recipe: str) -> None:
    config = make_config(recipe)
    assert config.recipe == recipe
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with torch.device("meta"):
        assert sum(p.numel() for p in Networks(config.network).parameters()) > 1000


def test_the_paper_s_losses_are_kept_beside_what_the_search_found() -> None:
    paper, found = make_config("fashion-mnist-paper"), make_config("fashion-mnist")
    assert (paper.gradient_penalty, paper.penalty_every, paper.entropy_weight, paper.gamma) == (
        "conditional",
        1,
        0.1,
        0.02,
    )
    assert (paper.likelihood_floor, paper.denoise_weight) == (0.0, 0.0)
    assert dataclasses.replace(found.network, energy_denoises=False) == paper.network


def test_an_unknown_recipe_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"there are debug, toy, toy-paper, fashion-mnist, fashion-mnist-paper, cifar10, .*, images"
    ):
        make_config("imagenet")


@pytest.mark.parametrize(
    ("height", "width", "channels", "patch", "widths"),
    [
        (16, 16, 1, 2, (32,)),
        (28, 28, 1, 2, (32, 64)),
        (32, 32, 3, 2, (48, 96)),
        (48, 32, 3, 2, (48, 96, 192)),
        (44, 44, 1, 2, (32, 64)),  # 22, 11: an odd side is not halved
        (64, 64, 3, 2, (48, 96, 192)),
        (96, 96, 1, 4, (32, 64, 128)),
        (128, 72, 3, 4, (48, 96)),
        (128, 128, 3, 4, (48, 96, 192)),
    ],
)
def test_images_takes_its_network_from_the_size_and_channels(
    height: int, width: int, channels: int, patch: int, widths: tuple[int, ...]
) -> None:
    config = make_config("images", Contract(height, width, channels))
    network = config.network
    assert (network.data_shape, network.patch_size, network.widths) == ((channels, height, width), patch, widths)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with torch.device("meta"):
        x, k = torch.empty(2, *network.data_shape), torch.zeros(2, dtype=torch.long)
        assert Generator(network)(x, torch.empty(2, network.latent_dim), k).shape == x.shape
        assert EnergyNet(network)(x, k).shape == (2,)


@pytest.mark.parametrize(
    ("height", "width", "remedy"),
    [
        (8, 8, "--size 16,"),
        (30, 30, "--size 32,"),
        (100, 100, "--size 96,"),
        (4000, 3, "--size 128,"),
        (15, 64, "--size 64,"),
    ],
)
def test_images_refuses_a_size_that_it_cannot_halve_with_one_that_it_can(height: int, width: int, remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        make_config("images", Contract(height, width, 3))


def test_images_without_its_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs --data"):
        make_config("images")
