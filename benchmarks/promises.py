"""All measurements of the page "What is promised", into one folder; what is there already is not measured again.

python benchmarks/promises.py --out nbs/tutorials/studies --photos FOLDER --ct FOLDER

With 120 photographs and 75 slices it takes about 55 minutes on two cores, and about 37 with --scenes 120 (from the seconds
of 60 pictures).
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--photos", help="folder of photographs")
    parser.add_argument("--ct", help="folder of CT slices")
    parser.add_argument("--scenes", type=int, default=300, help="scenes of each kind in the first table")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    folders = [part for name in ("photos", "ct") if (value := getattr(given, name)) for part in (f"--{name}", value)]
    for name, options in {
        "beside.py": ["--out", given.out / "beside.parquet", "--scenes", given.scenes, *folders],
        "regions.py": ["--out", given.out / "regions.parquet", *folders],
        "simulated.py": ["--out", given.out],
    }.items():
        print(name, flush=True)
        subprocess.run([sys.executable, HERE / name, *map(str, options)], check=True)


if __name__ == "__main__":
    main()
