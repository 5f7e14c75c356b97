"""What the statistics cost, compared with the forward passes that they judge: ViT-S/8 at 488 px, a grid of 61 x 61, 100 null images.

    python benchmarks/bench_statistics.py

Prints a ratio of two times of the same run. The forward passes are timed on a few images and scaled to 101.
"""

import time
from dataclasses import replace
from functools import partial
from statistics import median

import numpy as np
import torch

from attnbootreg import RECIPES, attention_scores, load_vit, significance

N_NULL, TIMED = 100, 2


def seconds(work: object, repeats: int) -> float:
    "The median time of a call, after one that does not count."
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times)


def main() -> None:
    vit = load_vit("vit_small_patch8_224", img_size=488, pretrained=False)
    images = torch.randn(TIMED, 3, *vit.img_size, device=vit.device)
    forward = seconds(lambda: attention_scores(images, vit).sum().item(), 1) / TIMED * (N_NULL + 1)
    rng = np.random.default_rng(0)
    scores, null = rng.gamma(4, 1, vit.grid), rng.gamma(4, 1, (N_NULL, *vit.grid))
    print(f"{vit}: {N_NULL + 1} forward passes {forward:.1f} s")
    for name, recipe in {"pooled": RECIPES["calibrated"], "position": replace(RECIPES["calibrated"], standardize="position")}.items():
        statistics = seconds(partial(significance, scores, null, recipe), 5)
        print(f"significance, {name}: {statistics:.3f} s, {statistics / forward:.3%} of the forward passes")


if __name__ == "__main__":
    main()
