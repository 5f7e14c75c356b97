"""Which map finds the object? Relevance maps beside attention, raw and regularized.

Each picture gets a square of noise beside its object. A row is written for each picture and map: how well the map finds
the object (AUROC, average precision), how much of it lies on the noise, what deletion and insertion say, passes and
seconds; raw, and of what is left at p <= 0.3. More rows: pictures that are all noise (rates of p), scenes with two objects
(does a map of a class find its own?), and seconds at 224 px. Started again, it goes on where it stopped.

    python benchmarks/maps.py --out maps.parquet --scenes 500
    python benchmarks/maps.py --out mine.parquet --model vit_small_patch16_224 --checkpoint mine.pth --images PHOTOS --masks MASKS

A mask is a picture of the same name that is black where the object is not. A model without a head for classes has no maps
of a class, and no curves. The means are printed in the end.
"""

import argparse
import glob
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from attnbootreg import (
    CDAM, Attention, GradCAM, InputGradient, LeGrad, Masked, Null, Recipe, Relevance, Rollout, ViT, attention_share, auroc, average_precision,
    coverage, inject_noise, load_image, load_vit, make_scenes, perturb, roi_percentile, significance, square_mask, suppression_factor,
)  # fmt: skip
from attnbootreg.batches import fitting_batch
from attnbootreg.files import write_beside
from attnbootreg.recipes import RECIPES
from attnbootreg.scores import ScoreMap, score_maps, settled
from attnbootreg.shrinkage import shrink_all
from attnbootreg.sources import list_sources

ALPHAS = (0.01, 0.05, 0.1, 0.3)
SEED = 9_000_000  # of scenes that no model was trained on
STEPS = 8  # of deletion and insertion
NULLS = 20


class Case(NamedTuple):
    "A picture with a square of noise beside its object."

    x: Tensor  # as the model takes it, (3, H, W)
    noise: np.ndarray  # (H, W) bool
    object_: np.ndarray  # (H, W) bool


def scores_of(vit: ViT) -> list[ScoreMap]:
    "The maps, each as it is by default; without a class token for the mean of the patches, or for attention pooling."
    query = "pool" if vit.pool else vit.queries[0]
    of_class = [CDAM(), GradCAM(), Relevance(), LeGrad(), InputGradient()] if tells_classes(vit) else []
    return [Attention(query=query), Rollout(query), *(score for score in of_class if not (vit.pool and isinstance(score, LeGrad)))]


def tells_classes(vit: ViT) -> bool:
    return getattr(vit.model, "num_classes", 0) > 1


def name_of(score: ScoreMap) -> str:
    return type(score).__name__


def two_sided(score: ScoreMap) -> Recipe:
    return RECIPES["calibrated"].resolved(score.scale, score.signed)


# ---- pictures with an object and a square of noise


def scene_case(i: int, vit: ViT) -> Case:
    scene = make_scenes(1, SEED, vit.img_size[0], start=i)
    return with_noise(load_image(scene.images[0], vit), scene.masks[0].numpy().astype(bool), i)


def picture_case(path: Path, masks: Path, i: int, vit: ViT) -> Case:
    found = sorted(masks.rglob(f"{glob.escape(path.stem)}.*"))
    if len(found) != 1:
        raise SystemExit(f"masks: {masks} holds {len(found)} of the name {path.stem}; there should be one")
    try:
        mask = np.asarray(Masked(path, found[0]).mask, np.uint8) * 255
        inside = load_image(mask, replace(vit, mean=(0, 0, 0), std=(1, 1, 1), interpolation="nearest"))[0] > 0
        if inside.all() or not inside.any():
            raise ValueError("mask: the object must be some of the picture, but not all of it")
        return with_noise(load_image(path, vit), inside.numpy(), i)
    except ValueError as error:
        raise SystemExit(f"{path}: {error}") from error


def with_noise(x: Tensor, object_: np.ndarray, i: int) -> Case:
    "A square on a place without object, if there is one."
    noise = square_mask(x.shape[1:], seed=SEED + i, avoid=object_)
    return Case(inject_noise(x, noise, SEED + i), noise, object_)


def case_rows(case: Case, vit: ViT, seed: int, curved: bool = True) -> Iterator[dict]:
    "A row for each map, with curves of deletion and insertion or without."
    inside, noise = coverage(case.object_, vit.grid), coverage(case.noise, vit.grid)
    for score in scores_of(vit):
        start = time.process_time()
        meant = settled(score, vit, case.x)
        scores = score_maps(meant, vit, case.x[None].to(vit.device))[0].cpu().numpy()
        raw_seconds = time.process_time() - start
        draws = Null(n=NULLS, groups=1).scores(case.x, vit, meant, seed=seed)
        sig = significance(scores, draws, two_sided(score))
        maps = shrink_all(scores, sig)
        seconds = time.process_time() - start
        row = dict(map=name_of(score), seconds_raw=raw_seconds, seconds=seconds, pi0=sig.pi0, passes=1 + NULLS + (meant != score))
        for name, map in {"raw": scores, "p": maps["p"], "q": maps["q"]}.items():
            row |= {f"auroc {name}": auroc(map, inside), f"precision {name}": average_precision(map, inside)}
            if score.signed:  # and without its signs
                row |= {f"auroc size {name}": auroc(abs(map), inside), f"precision size {name}": average_precision(abs(map), inside)}
            row |= {f"object share {name}": attention_share(map, inside), f"noise share {name}": attention_share(map, noise)}
            row[f"percentile {name}"] = roi_percentile(map, scores, noise)
        for name in ("raw", "p") if curved and tells_classes(vit) else ():
            curves = perturb(case.x, scores if name == "raw" else maps[name], vit, steps=STEPS, seed=seed)
            row |= {f"deletion {name}": curves.deletion_area, f"insertion {name}": curves.insertion_area}
        within = noise > 0.999
        yield row | {f"noise p <= {alpha}": float((sig.p[within] <= alpha).mean()) for alpha in ALPHAS}


# ---- pictures that are all noise


def noise_rows(i: int, vit: ViT) -> Iterator[dict]:
    "Rates of p where there is nothing to find."
    scene = make_scenes(1, SEED, vit.img_size[0], start=i)
    x = inject_noise(load_image(scene.images[0], vit), np.ones(vit.img_size, bool), SEED + i)
    for score in scores_of(vit):
        scores = score_maps(score, vit, x[None].to(vit.device))[0].cpu().numpy()
        sig = significance(scores, Null(n=NULLS, groups=1).scores(x, vit, score, seed=SEED + i), two_sided(score))
        yield dict(map=name_of(score), pi0=sig.pi0) | {f"noise p <= {alpha}": float((sig.p <= alpha).mean()) for alpha in ALPHAS}


# ---- two objects of different classes


def two_objects(i: int, vit: ViT) -> tuple[Tensor, list[np.ndarray], list[int]]:
    "Scene i, and the first object of the scenes after it that is of another class and does not touch the first."
    size = vit.img_size[0]
    one = make_scenes(1, SEED, size, start=i)
    for j in itertools.count(1):
        draw = dict(n=1, seed=SEED + 1 + i, size=size, start=j)
        other, empty = make_scenes(**draw), make_scenes(**draw, empty=True)
        there = (other.images[0] != empty.images[0]).any(0)  # the object with its soft edge
        if other.labels[0] != one.labels[0] and not (there & one.masks[0]).any():
            picture = torch.where(there, other.images[0], one.images[0])
            return (
                load_image(picture, vit),
                [scene.masks[0].numpy() for scene in (one, other)],
                [int(scene.labels[0]) for scene in (one, other)],
            )
    raise AssertionError


def two_object_rows(i: int, vit: ViT) -> Iterator[dict]:
    "How well the map of each class finds its own object, in the picture and against the other object."
    x, masks, labels = two_objects(i, vit)
    covered = [coverage(mask, vit.grid) for mask in masks]
    either = covered[0] + covered[1] > 0
    for score in scores_of(vit):
        if not hasattr(score, "target"):
            continue
        maps = score_maps(replace(score, target=tuple(labels)), vit, x[None].to(vit.device))[0].cpu().numpy()
        own = [auroc(map, inside) for map, inside in zip(maps, covered)]
        apart = [
            auroc(map[either][None], (inside / (covered[0] + covered[1]).clip(1e-9))[either][None]) for map, inside in zip(maps, covered)
        ]
        yield dict(map=name_of(score), **{"auroc own": np.mean(own), "auroc apart": np.mean(apart)})


# ---- seconds


def speed_rows(model: str, repeats: int) -> Iterator[dict]:
    "Processor seconds of 20 null images, and of plain forward passes of them, in turn; the quickest counts."
    vit = load_vit(model, pretrained=False, device="cpu")
    for score in scores_of(vit):
        size = fitting_batch(score, vit)
        x = torch.randn(NULLS, 3, *vit.img_size, generator=torch.Generator().manual_seed(0))
        ways: dict[str, Callable[[Tensor], object]] = {
            "map": lambda part, score=score: score(vit, part),
            "forward": lambda part: plain(vit, part),
        }
        best = dict.fromkeys(ways, np.inf)
        for way in list(ways) * repeats:
            start = time.process_time()
            for part in x.split(size):
                ways[way](part)
            best[way] = min(best[way], time.process_time() - start)
        yield dict(map=name_of(score), seconds=best["map"], **{"seconds forward": best["forward"], "batch": size})


@torch.inference_mode()
def plain(vit: ViT, x: Tensor) -> Tensor:
    return vit.model(x)


# ---- the means


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    "Means and standard errors over the pictures with an object, a row for each map, raw and at p <= 0.3."
    rows = rows[rows["auroc raw"].notna()]
    columns = [f"{what} {name}" for what in ("auroc", "precision", "noise share") for name in ("raw", "p")]
    table = rows.groupby("map", sort=False)[columns].agg(lambda one: f"{one.mean():.3f} ± {one.sem():.3f}")
    for map, group in rows.groupby("map"):
        if len(group) > 1:
            table.loc[map, "D p"] = "{:.3f} ± {:.3f}".format(*suppression_factor(group["percentile raw"], group["percentile p"]))
    return table.T


# ---- all of it


def jobs(given: argparse.Namespace, vit: ViT) -> Iterator[tuple[str, str, Callable[[], Iterator[dict]]]]:
    "The kind of the pictures, the name of the picture, and what gives its rows."
    if given.images:
        for i, source in enumerate(list_sources(given.images)):
            path = Path(source.path)
            yield "yours", source.name, lambda path=path, i=i: case_rows(picture_case(path, given.masks, i, vit), vit, SEED + i)
        return
    for i in range(given.scenes):
        yield "scenes", str(i), lambda i=i: case_rows(scene_case(i, vit), vit, SEED + i, i % 2 == 0)
        if i % 2 == 0:
            yield "pure noise", str(i), lambda i=i: noise_rows(i, vit)
            yield "two objects", str(i), lambda i=i: two_object_rows(i, vit)
    if given.speed:
        yield "speed", given.speed, lambda: speed_rows(given.speed, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="table of results, .parquet")
    parser.add_argument("--model", default="scenes", help="an embedded model, or a timm name")
    parser.add_argument("--checkpoint", type=Path, help="file of its weights")
    parser.add_argument(
        "--scenes", type=int, default=500, help="scenes; every other one also with curves, as pure noise, and with a second object"
    )
    parser.add_argument("--images", type=Path, help="folder of pictures, instead of scenes")
    parser.add_argument("--masks", type=Path, help="folder of their masks")
    parser.add_argument("--speed", metavar="MODEL", help="time the maps too, on a timm model with random weights: vit_small_patch16_224")
    parser.add_argument("--minutes", type=float, default=np.inf, help="stop after so many")
    given = parser.parse_args()
    if (given.images is None) != (given.masks is None):
        parser.error("--images and --masks go together")
    vit = load_vit(given.model, checkpoint=given.checkpoint)
    rows = pd.read_parquet(given.out).to_dict("records") if given.out.exists() else []
    done = {(row["model"], row["pictures"], row["image"]) for row in rows}
    save = lambda: write_beside({given.out: lambda file: pd.DataFrame(rows).to_parquet(file)})
    end = time.monotonic() + 60 * given.minutes
    for count, (kind, image, run) in enumerate(tqdm(jobs(given, vit), desc=given.model)):
        if time.monotonic() > end:
            break
        if (given.model, kind, image) not in done:
            rows += [dict(model=given.model, pictures=kind, image=image, **row) for row in run()]
        if count % 20 == 19:
            save()
    save()
    table = pd.DataFrame(rows)
    if "auroc raw" in table:
        print(
            f"{table['auroc raw'].count() // table['map'].nunique()} pictures\n{summary(table[table['model'] == given.model]).to_string()}"
        )


if __name__ == "__main__":
    main()
