"""Regions instead of patches: how much of an object is found, and how often is noise called signal?

Scenes with a square of noise beside the object, pictures of folders with two squares, and pictures that are noise all over. A row for
each picture and each way:
statements about whole images (single patches, clusters, bounds) from null images of the whole image, the same from draws in
groups, which are not joint, and a region that was chosen beforehand, redrawn as a whole while the rest is kept.
Started again, it goes on where it stopped.

    python benchmarks/regions.py --out regions.parquet --photos FOLDER --ct FOLDER
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.ndimage import label

from attnbootreg import Attention, Null, Significance, ViT, attention_scores, coverage, significance, true_finds
from beside import Case, arguments, fill, picture_case, pictures_of, scene_case

DRAWS = 60  # of the whole image
LEVEL = 0.05  # of all statements about whole images
CUTS = (0.05, 0.16)  # p at which clusters are cut; 0.16 is about one standard deviation


def enhanced(z: np.ndarray, step: float = 0.1) -> np.ndarray:
    "Threshold-free cluster enhancement of a map (Smith and Nichols, 2009; E = 0.5, H = 2)."
    out = np.zeros_like(z)
    for height in np.arange(step, max(z.max(), step), step):
        labels = label(z >= height)[0]
        sizes = np.bincount(labels.ravel()).astype(float)
        sizes[0] = 0
        out += sizes[labels] ** 0.5 * height**2 * step
    return out


def extents(z: np.ndarray, cut: float) -> np.ndarray:
    "Of each patch the size of the cluster of z > cut that it lies in."
    labels = label(z > cut)[0]
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return sizes[labels]


def beyond(observed: np.ndarray, null: np.ndarray) -> np.ndarray:
    "Patches whose statistic has a p of at most LEVEL among the maxima of the null maps (B, h, w)."
    maxima = null.max((1, 2))
    return (1 + (maxima[:, None, None] >= observed).sum(0)) / (1 + len(maxima)) <= LEVEL


def calibrated_bound(sig: Significance, inside: np.ndarray) -> int:
    "A lower bound on true finds in a set: Simes' line, its slope lowered until LEVEL of the null maps cross it (pARI)."
    n, ranks = sig.p.size, np.arange(1, sig.p.size + 1)
    order = np.sort(sig.z0, axis=None)
    p0 = (1 + sig.z0.size - np.searchsorted(order, sig.z0.reshape(len(sig.z0), -1), "left")) / (1 + sig.z0.size)
    slopes = np.sort((np.sort(p0, 1) * n / ranks).min(1))
    slope = slopes[int(np.floor(LEVEL * (1 + len(slopes)) + 1e-9)) - 1]
    below = np.searchsorted(np.sort(sig.p[inside]), slope * ranks / n, "left")  # strictly below, as the null maps are
    return int(max(0, (below - ranks + 1).max()))


def ways(sig: Significance) -> Iterator[tuple[str, np.ndarray]]:
    "Each way's name, and the patches that it calls signal."
    z, z0 = sig.z, sig.z0
    yield "largest z", beyond(z, z0)
    for cut in CUTS:
        height = np.quantile(z0, 1 - cut)
        yield f"cluster at p <= {cut}", beyond(extents(z, height), np.stack([extents(one, height) for one in z0]))
    yield "TFCE", beyond(enhanced(z), np.stack([enhanced(one) for one in z0]))


def rows_of(case: Case, vit: ViT, seed: int) -> Iterator[dict]:
    inside = coverage(case.noise, vit.grid) > 0.999
    touched = coverage(case.noise, vit.grid) > 0
    thing = np.zeros(vit.grid, bool) if case.object_ is None else (coverage(case.object_, vit.grid) >= 0.5) & ~touched
    scores = attention_scores(case.x, vit).cpu().numpy()
    share = lambda found: float(found[thing].mean()) if thing.any() else np.nan
    whole = significance(scores, Null(n=DRAWS, groups=1).scores(case.x, vit, Attention(), seed=seed), "calibrated")
    groups = significance(scores, Null(n=19, groups=16).scores(case.x, vit, Attention(), seed=seed), "conditional")
    for draws, sig in (("whole", whole), ("groups", groups)):
        for name, found in ways(sig):
            yield dict(draws=draws, way=name, noise=bool(found[inside].any()), object=share(found))
        for name, bound in (("bound by Simes", lambda sig, part: true_finds(sig.p, part, LEVEL)), ("bound by draws", calibrated_bound)):
            found = bound(sig, thing) / thing.sum() if thing.any() else np.nan
            yield dict(draws=draws, way=name, noise=bound(sig, inside) > 0, object=found)
    if not inside.all():
        given = Null(n=19, groups=1, keep=~inside).scores(case.x, vit, Attention(), seed=seed)
        sig = significance(scores, given, "calibrated", mask=inside)
        maxima = np.nanmax(sig.z0, axis=(1, 2))
        yield dict(
            draws="chosen region", way="largest z", noise=bool((1 + (maxima >= np.nanmax(sig.z)).sum()) / 20 <= LEVEL), object=np.nan
        )


def cases(vit: ViT, scenes: int, files: int, folders: dict[str, Path]) -> Iterator[tuple[str, int, Case]]:
    "Other scenes than those of the other benchmark, and the first pictures of each folder."
    for i in range(scenes):
        for kind in ("scenes, beside", "pure noise"):
            yield kind, i, scene_case(i + 1000, vit, kind)
    for name, folder in folders.items():
        for i, path in enumerate(pictures_of(folder)[:files]):
            yield name, i, picture_case(path, i + 1000, vit)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--scenes", type=int, default=60, help="scenes of each kind")
    parser.add_argument("--files", type=int, default=25, help="pictures of each folder, at most")
    given = parser.parse_args()
    fill(given, lambda vit, folders: cases(vit, given.scenes, given.files, folders), rows_of)


if __name__ == "__main__":
    main()
