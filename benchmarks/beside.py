"""Noise beside structure: how often is it called signal, and how much of an object is found?

Squares of noise are put into scenes, beside the object and over a part of it, and into pictures of folders; some images
are all noise. Each is regularized with several recipes, and a row is written for each: rates of p on the patches that are
wholly noise, whether one of them has q <= 0.1, whether a bound claims signal among them, and what is found of the object.
Started again, it goes on where it stopped.

    python benchmarks/beside.py --out beside.parquet --photos FOLDER --ct FOLDER
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor
from tqdm import tqdm

from attnbootreg import (
    Attention, Null, Significance, ViT, attention_scores, coverage, inject_noise, load_image, load_vit, make_scenes, significance, square_mask,
    true_finds,
)  # fmt: skip
from attnbootreg.files import write_beside
from attnbootreg.recipes import RECIPES

WAYS = {name: RECIPES[name] for name in ("conditional", "calibrated", "released")} | {
    "discarding": replace(RECIPES["conditional"], q_method="discarding")
}
ALPHAS = (0.01, 0.02, 0.05, 0.1, 0.3)
SEED = 5_000_000  # of scenes that no model was trained on


class Case(NamedTuple):
    "A picture with noise in it."

    x: Tensor  # as the model takes it, (3, H, W)
    noise: np.ndarray  # (H, W) bool
    object_: np.ndarray | None  # what is left of the object, (H, W) bool


def scene_case(i: int, vit: ViT, kind: str) -> Case:
    "Scene i with a square beside its object, one over a part of it, or nothing but noise."
    scene = make_scenes(1, SEED, vit.img_size[0], start=i)
    thing, x = scene.masks[0].numpy().astype(bool), load_image(scene.images[0], vit)
    if kind == "pure noise":
        noise = np.ones(vit.img_size, bool)
    elif kind == "scenes, beside":
        noise = square_mask(vit.img_size, seed=SEED + i, avoid=thing)
    else:
        noise = _overlapping(thing, SEED + i)
    return Case(inject_noise(x, noise, SEED + i), noise, thing & ~noise)


def _overlapping(thing: np.ndarray, seed: int) -> np.ndarray:
    "A square, a quarter of the image wide, that holds a random pixel of the object."
    generator, side = np.random.default_rng(seed), thing.shape[0] // 4
    pixel = generator.choice(np.argwhere(thing))
    top, left = np.clip(pixel - generator.integers(side, size=2), 0, np.array(thing.shape) - side)
    return square_mask(thing.shape, side, at=[(int(top), int(left))])


def picture_case(path: Path, i: int, vit: ViT) -> Case:
    "A picture with two squares."
    noise = square_mask(vit.img_size, seed=SEED + i, n=2)
    return Case(inject_noise(load_image(path, vit), noise, SEED + i), noise, None)


def measure(scores: np.ndarray, sig: Significance, inside: np.ndarray, thing: np.ndarray) -> dict:
    "A row: what is said of patches that are wholly noise, and of those that are mostly object."
    share = lambda values: float(np.mean(values)) if len(values) else np.nan
    row = {f"noise p <= {alpha}": share(sig.p[inside] <= alpha) for alpha in ALPHAS}
    row |= {f"object p <= {alpha}": share(sig.p[thing] <= alpha) for alpha in ALPHAS}
    row |= {"noise patches": int(inside.sum()), "object patches": int(thing.sum()), "pi0": sig.pi0}
    row |= {"false q": bool((sig.q[inside] <= 0.1).any()), "object q": share(sig.q[thing] <= 0.1)}
    total = scores[thing].sum()
    row["object attention"] = float((scores * (sig.q <= 0.1))[thing].sum() / total) if total else np.nan
    if sig.recipe.plus_one:  # a bound needs p-values that are never 0
        row |= {"false claim": true_finds(sig.p, inside) > 0, "object claim": true_finds(sig.p, thing) / max(1, int(thing.sum()))}
    return row


def pictures_of(folder: Path) -> list[Path]:
    "The files of a folder."
    return sorted(path for path in folder.rglob("*") if path.is_file())


def cases(vit: ViT, n: int, folders: dict[str, Path]) -> Iterator[tuple[str, int, Case]]:
    "All pictures, by the name of their group and their number."
    for name, folder in folders.items():
        for i, path in enumerate(pictures_of(folder)):
            yield name, i, picture_case(path, i, vit)
    for kind in ("scenes, beside", "scenes, over a part", "pure noise"):
        for i in range(n):
            yield kind, i, scene_case(i, vit, kind)


def rows_of(case: Case, vit: ViT, seed: int) -> Iterator[dict]:
    inside = coverage(case.noise, vit.grid) > 0.999
    thing = np.zeros(vit.grid, bool) if case.object_ is None else coverage(case.object_, vit.grid) >= 0.5
    scores = attention_scores(case.x, vit).cpu().numpy()
    nulls = {name: Null().resolved(recipe.n_null, recipe.groups) for name, recipe in WAYS.items()}
    draws = {null: null.scores(case.x, vit, Attention(), seed=seed) for null in set(nulls.values())}
    for name, recipe in WAYS.items():
        yield {"recipe": name, **measure(scores, significance(scores, draws[nulls[name]], recipe), inside, thing)}


def arguments(doc: str | None) -> argparse.ArgumentParser:
    "What both benchmarks of noise in pictures take."
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="table of results, .parquet")
    parser.add_argument("--models", nargs="+", default=["scenes-plain", "scenes"], help="embedded models")
    parser.add_argument("--photos", type=Path, help="folder of photographs")
    parser.add_argument("--ct", type=Path, help="folder of CT slices")
    return parser


def fill(
    given: argparse.Namespace,
    cases: Callable[[ViT, dict[str, Path]], Iterator[tuple[str, int, Case]]],
    rows_of: Callable[[Case, ViT, int], Iterator[dict]],
) -> None:
    "Writes the rows of all cases that the table lacks."
    rows = pd.read_parquet(given.out).to_dict("records") if given.out.exists() else []
    done = {(row["model"], row["pictures"], row["image"]) for row in rows}
    folders = {name: folder for name, folder in (("photographs", given.photos), ("CT slices", given.ct)) if folder}
    save = lambda: write_beside({given.out: lambda file: pd.DataFrame(rows).to_parquet(file)})
    for model in given.models:
        vit = load_vit(model)
        for kind, i, case in tqdm(cases(vit, folders), desc=model):
            if (model, kind, i) not in done:
                rows += [dict(model=model, pictures=kind, image=i, **row) for row in rows_of(case, vit, SEED + i)]
                if i % 10 == 9:
                    save()
    save()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--scenes", type=int, default=300, help="scenes of each kind")
    given = parser.parse_args()
    fill(given, lambda vit, folders: cases(vit, given.scenes, folders), rows_of)


if __name__ == "__main__":
    main()
