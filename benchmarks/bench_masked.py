"""Time of `masked_logits` over that of a whole forward pass, at several shares of patches kept.

    python benchmarks/bench_masked.py [--images 2] [--turns 3]

A ViT-S/14 with random weights on 448 px: 32 x 32 patches, 1,025 tokens. The contenders take turns, and a ratio is that of two
neighbors in time; the table shows their medians. `equal`: all images keep the same number of patches. `differing`: 0.7 to 1.3 times
the share, so that shorter rows are padded and masked.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import timm
import torch

from attnbootreg import load_vit, masked_logits
from attnbootreg.faithful import can_drop
from attnbootreg.kernels import FastKernels


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    vit = load_vit(timm.create_model("vit_small_patch14_dinov2", img_size=448, num_classes=10), device="cpu")
    draw = torch.Generator().manual_seed(0)
    x, n = torch.randn(options.images, 3, *vit.img_size, generator=draw), vit.grid[0] * vit.grid[1]
    print(f"{vit}; tokens are {'dropped' if can_drop(vit) else 'hidden'}; {options.images} images, {torch.get_num_threads()} threads")

    def whole() -> None:
        with torch.inference_mode(), FastKernels():
            vit.model(x)

    whole()
    print(f"{'kept':>6} {'numbers':>10} {'whole, s':>9} {'masked, s':>9} {'ratio':>6}")
    for share in (0.1, 0.25, 0.5):
        for name, spread in (("equal", 0.0), ("differing", 0.3)):
            counts = (n * share * torch.linspace(1 - spread, 1 + spread, options.images)).round()
            keep = torch.rand(len(x), n, generator=draw).argsort(1).argsort(1) < counts[:, None]
            keep = keep.view(-1, *vit.grid)
            pairs = [(seconds(whole), seconds(lambda keep=keep: masked_logits(x, vit, keep))) for _ in range(options.turns)]
            times = [median(column) for column in zip(*pairs)]
            print(f"{share:>6.0%} {name:>10} {times[0]:>9.2f} {times[1]:>9.2f} {median(b / a for a, b in pairs):>6.2f}", flush=True)


if __name__ == "__main__":
    main()
