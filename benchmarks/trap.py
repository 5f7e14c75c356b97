"""A trap and who falls in: one model fine-tuned on the whole image, and models that only see what a first stage selects.

A small vision transformer learns what the patches of trap scenes are, and to name place and hue of the whole picture, where
place and class are independent. From these weights, every arm takes the same steps on the same pictures, of which 95 % have
the place of their class:

- baseline: the whole picture, cross-entropy.
- learned: two stages with learned parts (arXiv:2506.08915); stage 2's loss reaches the patches that stage 2 has seen.
- learned, all: the same, and the loss reaches hidden patches too.
- released: as the released code trains it, without that gradient and with another draw for the mask.
- true mask: the object's own patches, for the baseline's loss; what a perfect stage 1 would give.
- significant p, significant q: the baseline, which receives only the patches that are significant; nothing is trained.

A row is written for each seed and arm: accuracy where place and class are independent, by group, the worst of them, and the
overlap of the mask with the object. Started again, it goes on where it stopped. With --ship, the models of the first seed
are written as the package ships them.

    python benchmarks/trap.py --out trap.csv
"""

import argparse
import json
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from tqdm import tqdm

from attnbootreg import Cuts, Significance, coverage, load_vit, regularize
from attnbootreg.checkpoints import save_embedded
from attnbootreg.datasets import group_accuracy
from attnbootreg.faithful import masked_logits
from attnbootreg.files import write_beside
from attnbootreg.layouts import ViT
from attnbootreg.masking import pixels_of, visible_tokens
from attnbootreg.parts import FactorAttention, FaithfulViT, Rates, save_faithful, train_faithful
from attnbootreg.scenes import HUES, PLACES, TRAP_CLASSES, TrapScenes, make_trap_scenes
from attnbootreg.training import MEAN, STD

ARCHITECTURE = dict(img_size=64, patch_size=4, embed_dim=96, depth=4, num_heads=3)
GRID, N = (16, 16), 256
RATES = Rates(backbone=5e-4, tokens=0.0, prototypes=5e-3, heads=5e-4)
BATCH, PARTS, TEST_SEED = 32, 2, 9_000_000


def normalized(images: Tensor) -> Tensor:
    return (images - MEAN[0]) / STD[0]


def scenes_of(step: int, seed: int, batch: int, agree: float) -> TrapScenes:
    return make_trap_scenes(batch, seed, agree=agree, start=step * batch)


def true_patches(masks: Tensor) -> Tensor:
    "Patches that are mostly object, (N, h, w) bool."
    return torch.from_numpy(coverage(masks, GRID)) > 0.5


def cosine(step: int, steps: int) -> float:
    return 0.5 * (1 + np.cos(np.pi * step / steps))


def write(path: Path, content: object) -> None:
    write_beside({path: partial(torch.save, content)})


# ---------------------------------------------------------------------------------------------- the weights that all start from


def start_loss(vit: VisionTransformer, head: nn.Module, scenes: TrapScenes, keep: Tensor) -> Tensor:
    "Each patch: its place, or shape and hue of the object; the class token: place and hue."
    tokens = visible_tokens(vit, normalized(scenes.images), keep)
    cover = torch.from_numpy(coverage(scenes.masks, GRID)).float().flatten(1).gather(1, keep)
    log_p = head(tokens[:, 1:]).log_softmax(-1)
    of = lambda label: log_p.gather(2, label[:, None, None].expand(-1, log_p.shape[1], 1))[..., 0]
    thing, back = len(PLACES) + scenes.labels * len(HUES) + scenes.hues, 0.2 * (1 - cover)
    patches = -(cover * of(thing) + back * of(scenes.places)).sum() / (cover + back).sum()
    place, hue = vit.head(tokens[:, 0]).split([len(PLACES), len(HUES)], 1)
    return patches + F.cross_entropy(place, scenes.places) + F.cross_entropy(hue, scenes.hues)


def train_start(path: Path, steps: int) -> VisionTransformer:
    "The model that all arms start from, without a head."
    torch.manual_seed(0)
    vit = VisionTransformer(**ARCHITECTURE, num_classes=len(PLACES) + len(HUES))
    head = nn.Linear(vit.embed_dim, len(PLACES) + len(TRAP_CLASSES) * len(HUES))
    if not path.exists():
        matrices = [p for p in vit.blocks.parameters() if p.ndim == 2]
        rest = [p for p in [*vit.parameters(), *head.parameters()] if all(p is not one for one in matrices)]
        muon = torch.optim.Muon(matrices, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        highest = {muon: 4e-3, torch.optim.AdamW(rest, weight_decay=0.05): 1e-3}
        for step in tqdm(range(steps), desc="start"):
            scenes = scenes_of(step, 1_000, 64, 0.5)
            seen = N // 2 if step < 0.7 * steps else N
            keep = torch.rand(64, N, generator=torch.Generator().manual_seed(step)).argsort(1)[:, :seen]
            rate = min((step + 1) / (0.1 * steps), cosine(max(0.0, step - 0.1 * steps), 0.9 * steps))
            for optimizer, most in highest.items():
                optimizer.zero_grad()
                for group in optimizer.param_groups:
                    group["lr"] = most * rate
            start_loss(vit, head, scenes, keep).backward()
            for optimizer in highest:
                optimizer.step()
        write(path, vit.state_dict())
    vit.load_state_dict(torch.load(path, weights_only=True))
    vit.reset_classifier(0)
    return vit.eval()


# ------------------------------------------------------------------------------------------------------------------------ the arms


def fine_tune(vit: VisionTransformer, seed: int, steps: int, true_mask: bool, path: Path) -> VisionTransformer:
    "The baseline, or a model that sees the object's own patches; trained whole or not at all."
    vit.reset_classifier(len(TRAP_CLASSES))
    nn.init.trunc_normal_(vit.head.weight, std=0.02, generator=torch.Generator().manual_seed(seed))
    if not path.exists():
        decays = [p for p in vit.parameters() if p.ndim > 1]
        others = [p for p in vit.parameters() if p.ndim <= 1]
        optimizer = torch.optim.AdamW([dict(params=decays, weight_decay=0.05), dict(params=others, weight_decay=0)], RATES.backbone)
        vit.train()
        for step in tqdm(range(steps), desc="true mask" if true_mask else "baseline"):
            scenes = scenes_of(step, seed, BATCH, 0.95)
            keep = true_patches(scenes.masks) if true_mask else torch.ones(BATCH, *GRID, dtype=torch.bool)
            for group in optimizer.param_groups:
                group["lr"] = RATES.backbone * cosine(step, steps)
            with FactorAttention(keep.flatten(1), vit.num_prefix_tokens):
                loss = F.cross_entropy(vit(normalized(scenes.images)), scenes.labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(vit.parameters(), 2.0)
            optimizer.step()
        write(path, vit.state_dict())
    vit.load_state_dict(torch.load(path, weights_only=True))
    return vit.eval()


def learn(vit: VisionTransformer, seed: int, steps: int, state: Path, **how: Any) -> FaithfulViT:
    "Two stages, as the package trains them; evaluated without noise whichever way they were trained."

    def batch(step: int) -> tuple[Tensor, Tensor]:
        scenes = scenes_of(step, seed, BATCH, 0.95)
        return normalized(scenes.images), scenes.labels

    model = FaithfulViT(vit, len(TRAP_CLASSES), PARTS, seed=seed, **how)
    train_faithful(model, batch, steps, state, seed, rates=RATES)
    model.released = False
    return model


# ------------------------------------------------------------------------------------------------------------------------ measured


def report(logits: Tensor, keep: Tensor, scenes: TrapScenes) -> dict[str, float]:
    "Accuracy by group where place and class are independent, and how far the mask is the object."
    names = [f"{TRAP_CLASSES[c]}, {PLACES[p]}" for c, p in zip(scenes.labels, scenes.places)]
    found = group_accuracy(scenes.labels.numpy(), logits.argmax(1).numpy(), names)
    pixels = pixels_of(keep, (4, 4))
    iou = (pixels & scenes.masks).sum((1, 2)) / (pixels | scenes.masks).sum((1, 2))
    row = {"n": len(logits), "accuracy": found.mean, "worst group": float(found.accuracy.min())}
    return (
        row | {"mask IoU": float(iou.mean()), "mask share": float(keep.float().mean())} | dict(zip(found.groups, found.accuracy.tolist()))
    )


def significant(vit: ViT, scenes: TrapScenes) -> list[Significance]:
    return [regularize(image, vit, seed=0).sig for image in tqdm(scenes.images, desc="significance")]


def masked_by(sigs: list[Significance], rule: str, level: float, vit: ViT, scenes: TrapScenes) -> dict[str, float]:
    "The baseline on significant patches alone; on all patches where none is significant."
    keep = torch.stack([torch.from_numpy(getattr(sig, rule) <= level) for sig in sigs])
    empty = ~keep.flatten(1).any(1)
    keep |= empty[:, None, None]
    return report(masked_logits(normalized(scenes.images), vit, keep), keep, scenes) | {"empty": float(empty.float().mean())}


def arms(args: argparse.Namespace, seed: int, test: TrapScenes) -> Iterator[tuple[str, Callable[[], dict[str, float]]]]:
    "Each arm's name, and what trains and measures it."
    folder, x = args.out.parent / f"{args.out.stem}-states", normalized(test.images)
    start = lambda: train_start(folder / "start.pt", args.start_steps)
    everywhere = torch.ones(len(x), *GRID, dtype=torch.bool)

    def baseline() -> ViT:
        vit = fine_tune(start(), seed, args.steps, False, folder / f"baseline-{seed}.pt")
        return load_vit(vit, device="cpu")

    def plain() -> dict[str, float]:
        return report(masked_logits(x, baseline(), everywhere), everywhere, test)

    def true_mask() -> dict[str, float]:
        keep = true_patches(test.masks)
        vit = load_vit(fine_tune(start(), seed, args.steps, True, folder / f"true-{seed}.pt"), device="cpu")
        return report(masked_logits(x, vit, keep), keep, test)

    def learned(name: str, **how: Any) -> dict[str, float]:
        model = learn(start(), seed, args.steps, folder / f"{name}-{seed}.pt", **how)
        with torch.inference_mode():
            outs = [model(part) for part in x.split(100)]
        keep = torch.cat([out.selection.mask for out in outs]) > 0.5
        first = report(torch.cat([out.selection.logits for out in outs]), keep, test)
        row = report(torch.cat([out.logits for out in outs]), keep, test)
        return row | {"stage 1 accuracy": first["accuracy"], "stage 1 worst group": first["worst group"]}

    few = TrapScenes(*(one[: args.significant] for one in test))
    sigs = cache(lambda: significant(baseline(), few))

    yield "baseline", plain
    yield "learned", partial(learned, "learned")
    yield "learned, all", partial(learned, "all", gradient="all")
    yield "released", partial(learned, "released", released=True)
    yield "true mask", true_mask
    for rule in ("p", "q"):
        level = getattr(Cuts(), rule)
        yield f"significant {rule}", lambda rule=rule, level=level: masked_by(sigs(), rule, level, baseline(), few)


def ship(args: argparse.Namespace, weights: Path) -> None:
    "The models of the first seed, as the package ships them."
    folder = args.out.parent / f"{args.out.stem}-states"
    vit = fine_tune(train_start(folder / "start.pt", args.start_steps), 0, args.steps, False, folder / "baseline-0.pt")
    training = dict(steps=args.steps, seed=0, start_steps=args.start_steps)
    save_embedded(vit, weights / "trap.safetensors", ARCHITECTURE | {"num_classes": len(TRAP_CLASSES)}, MEAN, STD, TRAP_CLASSES, training)
    model = learn(train_start(folder / "start.pt", args.start_steps), 0, args.steps, folder / "learned-0.pt")
    save_faithful(model, weights / "parts" / "trap.safetensors", ARCHITECTURE, MEAN, STD, TRAP_CLASSES, training)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("trap.csv"), help="table to write; states are kept beside it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200, help="of 32 pictures, for every arm")
    parser.add_argument("--start-steps", type=int, default=600, help="of 64 pictures, for the weights that all start from")
    parser.add_argument("--test", type=int, default=1000, help="pictures")
    parser.add_argument("--significant", type=int, default=200, help="of them for the training-free arms")
    parser.add_argument("--ship", type=Path, help="folder for the weights of the first seed")
    args = parser.parse_args()
    test = make_trap_scenes(args.test, TEST_SEED, agree=0.5)
    table = pd.read_csv(args.out) if args.out.exists() else pd.DataFrame(columns=["arm", "seed"])
    for seed in range(args.seeds):
        for arm, measure in arms(args, seed, test):
            if not ((table["arm"] == arm) & (table["seed"] == seed)).any():
                row = {"arm": arm, "seed": seed, "steps": args.steps} | measure()
                table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
                write_beside({args.out: lambda file, table=table: file.write(table.to_csv(index=False).encode())})
                print(json.dumps(row), flush=True)
    if args.ship:
        ship(args, args.ship)
    means = table.groupby("arm", sort=False)[["accuracy", "worst group", "mask IoU", "mask share"]]
    print(means.agg(["mean", "sem"]).round(3).to_string())


if __name__ == "__main__":
    main()
