"""Size of the networks of a recipe: parameters, GFLOP of one call of the generator, memory of their state.

    python benchmarks/sizes.py cifar10 celeba64 lsun_church128

Nothing is computed, so that it takes seconds and no memory.
"""

import argparse

import torch
from torch.utils.flop_counter import FlopCounterMode

from ddaebm.model.nets.networks import Networks
from ddaebm.training.recipes import make_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    for recipe in parser.parse_args().recipes:
        network = make_config(recipe).network
        with torch.device("meta"):
            networks = Networks(network)
            call = torch.empty(1, *network.data_shape), torch.empty(1, network.latent_dim), torch.zeros(1).long()
        with FlopCounterMode(display=False) as counter:
            networks.generator(*call)
        sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in networks.items()}
        averaged = sizes["generator"] + sizes["energy_net"]
        state = 4 * (3 * sum(sizes.values()) + averaged)  # float32: weights, Adam's two moments, averages
        print(f"{recipe}: {', '.join(f'{name} {count:,}' for name, count in sizes.items())};"
              f" {counter.get_total_flops() / 1e9:.1f} GFLOP; {state / 2**30:.2f} GiB")  # fmt: skip


if __name__ == "__main__":
    main()
