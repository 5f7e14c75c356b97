"""A null that is learned once: what are its p-values worth on pictures that it has not seen, and what does it cost?

For each model and picture, null images of the picture itself are scored (`--draws`); the last of them say how often p of each way is at
most alpha: of a bank, of a bank that a few real null images correct, and of 5, 10 and 20 null images. Draws are kept in a folder, so that
nothing is computed twice. `--pixel` adds null images of the kind pixel. `--times` measures processor time, on scenes.

    python benchmarks/bank.py --out bank.parquet --cache FOLDER --photos FOLDER --ct FOLDER --tinyimagenet val.parquet
"""

import argparse
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.stats import norm

from attnbootreg import Attention, Noise, Null, Study, ViT, load_image, load_vit, make_scenes, regularize
from attnbootreg.attention import attention_scores
from attnbootreg.bank import NullBank, moments_of
from attnbootreg.explorer import Lab, Run, View
from attnbootreg.scores import score_maps
from attnbootreg.study import Source, study_image
from beside import pictures_of

ALPHAS = (0.01, 0.05, 0.1, 0.3)
KEPT = 20  # first draws, from which the ways are made; the others judge them
SCENES = 8_000_000  # the seed of scenes that neither models nor banks have seen


def every(items: list, n: int) -> list:
    "n of them, evenly spread."
    return items[:: max(1, len(items) // n)][:n]


def inputs(kind: str, n: int, vit: ViT, where: dict[str, Path]) -> list[torch.Tensor]:
    "Pictures of a kind as the model takes them."
    if kind == "scenes":
        return [load_image(image, vit) for image in make_scenes(n, SCENES, size=vit.img_size[0], start=500).images]
    if kind == "tinyimagenet":
        files = pd.read_parquet(where[kind], columns=["webp"])["webp"]
        return [load_image(Image.open(io.BytesIO(files[i])).convert("RGB"), vit) for i in every(list(range(len(files))), 300)[:n]]
    return [load_image(path, vit) for path in every(pictures_of(where[kind]), n)]


def drawn(vit: ViT, kind: str, n: int, draws: int, given: argparse.Namespace, null: str = "normal") -> dict[str, np.ndarray]:
    "Moments, observed scores and scores of null images of n pictures; from the folder where they are there."
    path = given.cache / f"{null}-{vit.name}-{kind}-{n}-{draws}.npz"
    if not path.is_file():
        xs = inputs(kind, n, vit, {"photos": given.photos, "ct": given.ct, "tinyimagenet": given.tinyimagenet})
        score = Attention(query="cls")
        maps = [Null(null, draws, groups=1).scores(x, vit, score, seed=i).values for i, x in enumerate(xs)]
        observed = [score_maps(score, vit, x[None])[0].numpy() for x in xs]
        np.savez(path, moments=np.stack([moments_of(x) for x in xs]), observed=np.stack(observed), maps=np.stack(maps))
    with np.load(path) as file:
        return dict(file)


def rates(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    "Share of each null image's scores (B, n) with p of at most alpha, (B, alphas), by the null scores of a way."
    order = np.sort(values, axis=None)
    p = (1 + len(order) - np.searchsorted(order, others)) / (1 + len(order))
    return np.stack([(p <= alpha).mean(1) for alpha in ALPHAS], 1)


def ways(bank: NullBank, moments: np.ndarray, first: np.ndarray) -> Iterator[tuple[str, np.ndarray, float]]:
    "Each way, its null scores, and what they are worth."
    point = bank.fitted.point(moments[None])[0]
    outside = bank.fitted.is_outside(point)
    told = bank.fitted.map(0).told(point, 4)
    expected = (np.arange(20 * first[0].size) + 0.5) / (20 * first[0].size)
    for m in (0, 1, 2, 3, 5):
        one = told.corrected(first[:m].reshape(m, -1)) if m else told
        yield f"bank + {m}" if m else "bank", one.quantiles(norm.ppf(expected)), 0.0 if outside else one.worth
    for n in (1, 5, 10, 20):
        yield str(n), first[:n], n


def measured(bank: NullBank, got: dict[str, np.ndarray], what: dict) -> Iterator[dict]:
    "A row for each picture and way."
    for i, (moments, observed, maps) in enumerate(zip(got["moments"], np.log(got["observed"]), np.log(got["maps"]))):
        first, others = maps[:KEPT], maps[KEPT:].reshape(len(maps) - KEPT, -1)
        right = observed.ravel() >= np.quantile(others, 0.95)
        for way, values, worth in ways(bank, moments, first):
            found = rates(values, others)
            decided = rates(values, observed.reshape(-1, 1))[:, 1] > 0
            row = dict(**what, picture=i, way=way, worth=worth, judges=len(others), agree=float((decided == right).mean()))
            for alpha, mean, noise in zip(ALPHAS, found.mean(0), found.var(0, ddof=1) / len(others)):
                row |= {f"rate {alpha}": mean, f"noise {alpha}": noise}
            yield row


def pixels(bank: NullBank, got: dict[str, np.ndarray], normal: dict[str, np.ndarray], what: dict) -> Iterator[dict]:
    "Rates of null images of the kind pixel, by null images of the kind normal."
    for i, (maps, others) in enumerate(zip(np.log(normal["maps"]), np.log(got["maps"]))):
        found = rates(maps, others.reshape(len(others), -1))
        shift = (others.mean() - maps.mean()) / maps.std()
        yield dict(**what, picture=i, way="pixel by normal", judges=len(others), shift=shift) | {
            f"rate {a}": mean for a, mean in zip(ALPHAS, found.mean(0))
        }  # fmt: skip


def least(works: dict, turns: int = 7) -> dict[str, float]:
    "Processor time of the quickest of some turns, seconds; all take turns."
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(turns):
        for name, work in works.items():
            start = time.process_time()
            work()
            taken[name].append(time.process_time() - start)
    return {name: min(values) for name, values in taken.items()}


def times(vit: ViT, bank: NullBank) -> dict[str, float]:
    "Processor times: of a picture, of a study's image, and of a new image in the explorer."
    scene = make_scenes(1, SCENES, start=500).images[0]
    image = scene.permute(1, 2, 0).numpy()
    told = dict(
        forward=lambda: attention_scores(load_image(image, vit), vit),
        bank=lambda: regularize(image, vit, null=bank, seed=0, progress=False),
    )
    told["drawn"] = lambda: regularize(image, vit, null=Null(n=20), recipe="calibrated", seed=0, progress=False)
    told["conditional"] = lambda: regularize(image, vit, seed=0, progress=False)
    of = lambda null: Study(Noise(), null=null, recipe="calibrated")
    for name, study in (("study, bank", of(bank)), ("study, drawn", of(Null(n=20)))):
        told[name] = lambda study=study: study_image(Source("scene 1", "", ""), vit, study)
    lab = Lab(vit, {str(i): one.permute(1, 2, 0).numpy() for i, one in enumerate(make_scenes(8, SCENES, start=500).images)})
    fresh = iter(range(8))
    told["explorer"] = lambda: lab.result(View(Run(str(next(fresh)), next(iter(lab.models)), null=bank)))
    told["forward"](), told["bank"]()
    return least(told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="table, .parquet")
    parser.add_argument("--cache", type=Path, required=True, help="folder for draws")
    for kind in ("photos", "ct", "tinyimagenet"):
        parser.add_argument(f"--{kind}", type=Path, help="pictures" if kind != "tinyimagenet" else "a table with a column webp")
    parser.add_argument("--model", default="scenes", help="an embedded model, or one of timm at random weights with --bank")
    parser.add_argument("--bank", type=Path, help="its bank; default: the one that it brings along")
    parser.add_argument("--numbers", default="photos=120,ct=75,scenes=300,tinyimagenet=300", help="pictures of each kind")
    parser.add_argument("--draws", type=int, default=40, help="null images of each picture")
    parser.add_argument("--pixel", action="store_true", help="null images of the kind pixel too")
    parser.add_argument("--times", action="store_true", help="processor times instead, into a file .json")
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    vit = load_vit(given.model, device="cpu", pretrained=given.bank is None)
    bank = NullBank.load(given.bank or vit)
    if given.times:
        given.out.write_text(json.dumps(times(vit, bank), indent=2) + "\n")
        return
    rows = []
    for kind, n in (one.split("=") for one in given.numbers.split(",")):
        got = drawn(vit, kind, int(n), given.draws, given)
        what = dict(model=vit.name, pictures=kind)
        rows += measured(bank, got, what)
        if given.pixel:
            rows += pixels(bank, drawn(vit, kind, int(n), given.draws, given, "pixel"), got, what)
    old = pd.read_parquet(given.out) if given.out.is_file() else pd.DataFrame()
    pd.concat([old, pd.DataFrame(rows)], ignore_index=True).to_parquet(given.out)


if __name__ == "__main__":
    main()
