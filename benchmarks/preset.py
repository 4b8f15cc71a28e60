"""Images a second of a recipe's sampler at its full size: random weights, whose speed is that of trained ones.

    python benchmarks/preset.py cifar10 [--device cuda] [--precisions fp32,tf32,bf16] [--batches 100,256] [--compile]

Noise is made on the device and counts; decoding to PNG does not. Medians over rounds. The figure to beat: DDGAN takes
0.21 s for 100 CIFAR-10 images on one V100 (Xiao et al. 2022, *Tackling the Generative Learning Trilemma with Denoising
Diffusion GANs*), with a generator of the size of the recipe `cifar10`, whose rows are held against it; another card is
another figure.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ddaebm.model.nets.device import choose_device
from ddaebm.model.nets.graphs import SamplerGraph
from ddaebm.model.nets.networks import Generator
from ddaebm.model.nets.torch_engine import CudaGraphs
from ddaebm.model.noise import image_seeds
from ddaebm.model.sampling import draw_noise
from ddaebm.training.recipes import make_config

DDGAN_SECONDS = 0.21  # for 100 images
PRECISIONS = ("fp32", "tf32", "bf16")


@contextmanager
def precision_of(name: str, device: torch.device) -> Iterator[None]:
    """fp32 in full, fp32 with products in TF32, or the networks under autocast in bf16."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
    with torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16", cache_enabled=False):
        yield


def make_sampler(recipe: str, device: torch.device, compiled: bool) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """int64 seeds (B,) on the device -> uint8 images (B, H, W, C)."""
    config = make_config(recipe).network
    torch.manual_seed(0)
    sampler: nn.Module = SamplerGraph(Generator(config), config).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    sampler.requires_grad_(False)
    run = torch.compile(sampler) if compiled else sampler
    return lambda seeds: (run(*draw_noise(config, seeds)),)


@torch.inference_mode()
def seconds_a_batch(
    sampler: Callable[[Tensor], tuple[Tensor, ...]], batch: int, device: torch.device, rounds: int
) -> float:
    """Median seconds from seeds on the host to images on the host."""
    seeds = torch.from_numpy(image_seeds(0, batch))
    graphs = CudaGraphs(device) if device.type == "cuda" else None

    def once() -> float:
        began = time.perf_counter()
        if graphs:
            with graphs.on_stream():
                (images,) = graphs.run(sampler, seeds)
                images.cpu()
        else:
            sampler(seeds.to(device))
        return time.perf_counter() - began

    once()
    return statistics.median(once() for _ in range(rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--precisions", default="fp32,tf32,bf16", help=f"of {', '.join(PRECISIONS)}")
    parser.add_argument("--batches", default="100,256")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--compile", action="store_true", help="torch.compile first")
    args = parser.parse_args()
    if unknown := set(args.precisions.split(",")) - set(PRECISIONS):
        parser.error(f"--precisions: no {', '.join(sorted(unknown))}; there are {', '.join(PRECISIONS)}")
    device = choose_device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{args.recipe} on {name}, torch {torch.__version__}{', compiled' if args.compile else ''}\n")
    published = "DDGAN on a V100: 0.21 s" if args.recipe == "cifar10" else "published"
    print(f"| precision | batch | images/s | seconds for 100 | {published} |\n|---|---|---|---|---|")
    sampler = make_sampler(args.recipe, device, args.compile)
    for precision in args.precisions.split(","):
        for batch in map(int, args.batches.split(",")):
            with precision_of(precision, device):
                seconds = seconds_a_batch(sampler, batch, device, args.rounds)
            hundred = 100 * seconds / batch
            print(
                f"| {precision} | {batch} | {batch / seconds:.0f} | {hundred:.3f} | {DDGAN_SECONDS / hundred:.2f} x |"
            )


if __name__ == "__main__":
    main()
