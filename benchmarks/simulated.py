"""What is left of noise: D of every map, and what is kept of the object, for each recipe with its own null images.

Scenes with a square or a cloud of noise, off the object and anywhere, on both embedded models. Started again, it goes on
where it stopped.

    python benchmarks/simulated.py --out FOLDER
"""

import argparse
from pathlib import Path

from attnbootreg import RECIPES, Noise, Study, load_study, load_vit, run_study
from attnbootreg.files import write_beside

NOISES = tuple(Noise(kind, avoid=avoid) for avoid in (True, False) for kind in ("square", "diffuse"))
SEED = 7  # of the noise and the null images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder; a table for each model")
    parser.add_argument("--scenes", type=int, default=60, help="scenes")
    parser.add_argument("--models", nargs="+", default=["scenes-plain", "scenes"], help="embedded models")
    given = parser.parse_args()
    for model in given.models:
        run_study("scenes", load_vit(model), given.out / model, Study(NOISES, recipe=tuple(RECIPES), seed=SEED), limit=given.scenes)
        table = load_study(given.out / model)
        small = table.drop(columns=[name for name in table if name.startswith("curve_")])
        write_beside({given.out / f"simulated-{model}.parquet": small.to_parquet})


if __name__ == "__main__":
    main()
