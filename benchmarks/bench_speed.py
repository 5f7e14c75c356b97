"""Time and memory of `regularize`, compared with a naive pipeline and with the forward passes alone.

    python benchmarks/bench_speed.py [--out FILE.json] [--models ...] [--n 1 10 100] [--dtypes float32 bfloat16]

Every row is one run: the contenders take turns, the table shows the medians of their times and the ratios of these. Memory is
the peak of a turn above that of the process with the model loaded. A contender that would take longer than LIMIT seconds a turn, judged by
its own row with fewer null images, is left out of a row.

    ours   regularize(picture, vit, null=n, recipe="calibrated"), end to end
    naive  the same by `naive.py`, always in float32 as the description has it
    timm   1 + n forward passes of timm's model, same number format, same batches, in inference mode

Then the steps from the naive pipeline to ours, one after the other, and how the time of a pass grows with the pixels.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import subprocess
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch
from naive import naive_model, null_image, pixel_statistics, regularize_naively
from torch import Tensor

from attnbootreg import Attention, ViT, attention_scores, kernels, load_image, load_vit, regularize, significance, upsample
from attnbootreg.adapters import AttentionCall, listen
from attnbootreg.batches import fitting_batch
from attnbootreg.shrinkage import shrink_all

MODELS = {
    "ViT-Ti/16": ("vit_tiny_patch16_224", 224),
    "ViT-S/16": ("vit_small_patch16_224", 224),
    "ViT-S/8": ("vit_small_patch8_224", 488),
    "ViT-B/14-reg": ("vit_base_patch14_reg4_dinov2", 518),
}
LIMIT = 75  # seconds a contender may take for one turn
TURNS, LONG = 5, 10  # turns a row, or 2 where a turn takes longer than this many seconds


def machine() -> dict:
    "What the figures depend on."
    model = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in model.read_text().splitlines() if line.startswith("model name")]
        if model.exists()
        else []
    )
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(), "bfloat16 in oneDNN": torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        "cores": os.cpu_count(), "threads": torch.get_num_threads(), "python": platform.python_version(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "versions": {package: version(package) for package in ("attnbootreg", "torch", "timm", "numpy")},
    }  # fmt: skip


def status(name: str) -> float:
    "A line of /proc/self/status in MiB; NaN on other systems."
    file = Path("/proc/self/status")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(name)), float("nan"))


def fresh_memory(device: torch.device) -> None:
    "Give back what is free, and let the peak begin here."
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def held(device: torch.device) -> float:
    return torch.cuda.memory_allocated() / 2**20 if device.type == "cuda" else status("VmRSS")


def peak(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else status("VmHWM")


def seconds_of(work: object, device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_of(work: object, device: torch.device, loaded: float) -> float:
    "The peak memory of a call above what was loaded, MiB. It is a turn of its own, as memory that was given back is slow to get again."
    fresh_memory(device)
    work()
    return peak(device) - loaded


def plain_passes(images: Tensor, vit: ViT, n: int) -> None:
    "n forward passes of timm's model, in batches."
    with torch.inference_mode():
        for done in range(0, n, len(images)):
            vit.model(images[: n - done])


def rows_of(label: str, dtype: str, numbers: list[int], device: str) -> list[dict]:
    name, size = MODELS[label]
    vit = load_vit(name, img_size=size, pretrained=False, dtype=dtype, device=device)
    plain = load_vit(name, img_size=size, pretrained=False, device=device)
    picture = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    naive, rows, left_out = naive_model(plain), [], set() if vit.device.type == "cpu" else {"naive"}
    fresh_memory(vit.device)
    loaded = held(vit.device)
    regularize(picture, vit, null=2, recipe="calibrated", seed=0, progress=False)  # what is done once for all is done here
    for n in numbers:
        batch = min(n, fitting_batch(Attention(), vit))
        images = torch.randn(batch, 3, size, size, device=vit.device).to(vit.dtype)
        contenders = {
            "ours": partial(regularize, picture, vit, null=n, recipe="calibrated", seed=0, progress=False),
            "timm": partial(plain_passes, images, vit, 1 + n),
            "naive": partial(regularize_naively, picture, naive, plain, n),
        }
        contenders = {who: work for who, work in contenders.items() if who not in left_out}
        if not contenders:
            break
        memory = {who: peak_of(work, vit.device, loaded) for who, work in contenders.items()}
        turns = {who: [seconds_of(work, vit.device)] for who, work in contenders.items()}
        repeats = TURNS if max(max(turns.values())) < LONG else 2
        for _ in range(repeats - 1):
            for who, work in contenders.items():
                turns[who].append(seconds_of(work, vit.device))
        seconds = {who: median(done) for who, done in turns.items()}
        row = dict(model=label, pixels=size, n_null=n, dtype=dtype, batch=batch, turns=repeats, seconds=seconds, peak_mib=memory)
        rows.append(row)
        print(line_of(row), flush=True)
        following = numbers[numbers.index(n) + 1 :]
        grows = (1 + following[0]) / (1 + n) if following else 1
        left_out |= {who for who, second in seconds.items() if second * grows > LIMIT}
    return rows


def line_of(row: dict) -> str:
    seconds, memory = row["seconds"], row["peak_mib"]
    over = {who: second / seconds["ours"] for who, second in seconds.items() if "ours" in seconds}

    def cells(values: dict, whose: tuple[str, ...], form: str, width: int) -> str:
        return "".join((format(values[who], form) if who in values else "–").rjust(width) for who in whose)

    return (
        f"{row['model']:13}{row['pixels']:5}{row['n_null']:6}  {row['dtype']:9}{row['batch']:5}"
        + cells(seconds, ("ours", "timm", "naive"), ".3f", 10)
        + cells(over, ("timm", "naive"), ".2f", 10)
        + cells(memory, ("ours", "timm", "naive"), ".0f", 9)
    )


def whole_pass(x: Tensor, vit: ViT) -> Tensor:
    "Scores after a whole forward pass with fused attention, (h, w)."
    last: list[AttentionCall] = []

    def hear(call: AttentionCall) -> bool:
        last[:] = [call]
        return False  # the pass goes on to its end

    with torch.inference_mode():
        listen(lambda: vit.model(x[None].to(vit.dtype)), hear)
        return last[0].rows(slice(0, 1))[0, :, 0, vit.prefix :].mean(0).unflatten(0, vit.grid)


def alone(picture: np.ndarray, vit: ViT, n: int, score: object, pixels: bool) -> dict[str, np.ndarray]:
    "The method with one image at a time, and statistics of pixels or of patches."
    x = load_image(picture, vit)
    scores, null = score(x, vit), torch.stack([score(null_image(x), vit) for _ in range(n)])
    if pixels:
        return pixel_statistics(*(upsample(part, vit.img_size).numpy() for part in (scores, null)))
    sig = significance(scores, null, "calibrated")
    return shrink_all(scores.numpy(), sig)


def without_kernels(work: object) -> None:
    "A call in which PyTorch chooses the kernels."
    kept = dict(kernels.KERNELS)
    kernels.KERNELS.clear()
    try:
        work()
    finally:
        kernels.KERNELS.update(kept)


@torch.inference_mode()
def naively_without_gradients(*args: object) -> None:
    regularize_naively(*args)


def tricks_of(label: str, n: int) -> dict:
    "Median seconds from the naive pipeline to ours, one trick more at each step; on the CPU."
    name, size = MODELS[label]
    vits = {dtype: load_vit(name, img_size=size, pretrained=False, dtype=dtype, device="cpu") for dtype in ("float32", "bfloat16")}
    vit = vits["float32"]
    picture, naive = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8), naive_model(vit)
    ours = lambda vit: regularize(picture, vit, null=n, recipe="calibrated", seed=0, progress=False)
    steps = {
        "naive pipeline": lambda: regularize_naively(picture, naive, vit, n),
        "no gradients": lambda: naively_without_gradients(picture, naive, vit, n),
        "fused attention": lambda: without_kernels(lambda: alone(picture, vit, n, whole_pass, pixels=True)),
        "patches, not pixels": lambda: without_kernels(lambda: alone(picture, vit, n, whole_pass, pixels=False)),
        "one row of the last block": lambda: without_kernels(lambda: alone(picture, vit, n, attention_scores, pixels=False)),
        "batches": lambda: without_kernels(lambda: ours(vit)),
        "oneDNN": lambda: ours(vit),
        "bfloat16": lambda: ours(vits["bfloat16"]),
    }
    for work in steps.values():
        work()
    turns = [{step: seconds_of(work, vit.device) for step, work in steps.items()} for _ in range(TURNS)]
    seconds = {step: median(one[step] for one in turns) for step in steps}
    print(f"\n{label}, {size} px, {n} null images, each step with those above it:")
    print("\n".join(f"{step:28}{second:8.3f} s" for step, second in seconds.items()), flush=True)
    return dict(model=label, pixels=size, n_null=n, seconds=seconds)


def growth_of(name: str = "vit_small_patch16_224", sizes: tuple[int, ...] = (112, 224, 336, 448, 672, 896)) -> dict:
    "Seconds of one of our passes and of one of timm's, as the picture grows."
    rows = []
    for size in sizes:
        for dtype in ("float32", "bfloat16"):
            vit = load_vit(name, img_size=size, pretrained=False, dtype=dtype, device="cpu")
            images = torch.randn(1, 3, size, size).to(vit.dtype)
            works = {"ours": partial(attention_scores, images, vit), "timm": partial(plain_passes, images, vit, 1)}
            turns = [{who: seconds_of(work, vit.device) for who, work in works.items()} for _ in range(1 + TURNS)][1:]
            rows.append(
                dict(pixels=size, patches=(size // 16) ** 2, dtype=dtype, seconds={who: median(t[who] for t in turns) for who in works})
            )
    return dict(model="ViT-S/16", rows=rows)


def import_ratio(turns: int = 7) -> float:
    "The time to import `regularize` over that of what it cannot do without."

    def seconds(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - start

    both = [(seconds("import torch, timm, scipy.stats"), seconds("from attnbootreg import regularize")) for _ in range(turns)]
    return median(ours for _, ours in both) / median(base for base, _ in both)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("speed.json"), help="file for the figures")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--n", nargs="+", type=int, default=[1, 10, 100], help="numbers of null images")
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    about = machine()
    print("\n".join(f"{name}: {value}" for name, value in about.items()))
    ratio = import_ratio()
    print(f"from attnbootreg import regularize, over import torch, timm, scipy.stats: {ratio:.2f}\n")
    print(f"{'':38}{'seconds':>30}{'times as long as ours':>20}{'MiB above the model':>27}")
    print(
        f"{'model':13}{'px':>5}{'nulls':>6}  {'format':9}{'batch':>5}"
        + f"{'ours':>10}{'timm':>10}{'naive':>10}{'timm':>10}{'naive':>10}{'ours':>9}{'timm':>9}{'naive':>9}"
    )
    rows = [row for label in args.models for dtype in args.dtypes for row in rows_of(label, dtype, args.n, args.device)]
    tricks = [tricks_of("ViT-S/16", 10), tricks_of("ViT-S/8", 1)]
    figures = dict(machine=about, import_ratio=ratio, rows=rows, tricks=tricks, growth=growth_of())
    args.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"\nwrote {args.out}")


if __name__ == "__main__":
    main()
