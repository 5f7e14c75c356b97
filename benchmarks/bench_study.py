"""A study: the share of its time that is the model's, memory, and what a second worker is worth.

    python benchmarks/bench_study.py

Prints ratios of one run: time in the model over all time, peak memory after many images over that after few, and the throughput
of two Ray workers of one thread each over that of one, without the start of Ray.
"""

import resource
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from attnbootreg import Engine, Study, load_study, load_vit, run_study, study

SETTINGS = Study(("square", "diffuse"), null=(1, 10), recipe=("calibrated", "paper", "released"))


def images_a_second(vit: object, out: Path, workers: int, limit: int) -> float:
    "Throughput of Ray without its start: from the first images to the last."
    write, times = study._write, []

    def timed(*part: object) -> None:
        times.append(time.perf_counter())
        write(*part)

    study._write = timed
    run_study("scenes", vit, out, SETTINGS, limit, Engine("ray", workers), progress=False)
    study._write = write
    first = 4 * workers
    return (limit - 1 - first) / (times[limit - 1] - times[first])


def main() -> None:
    import ray

    vit = load_vit(device="cpu")
    with TemporaryDirectory() as folder:
        memory = {}
        for limit in (20, 200):
            run_study("scenes", vit, Path(folder) / "local", replace(SETTINGS, null=1), limit, progress=False)
            memory[limit] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"peak memory after 200 images over that after 20: {memory[200] / memory[20]:.2f}")
        run_study("scenes", vit, Path(folder) / "whole", SETTINGS, limit=40, progress=False)
        times = load_study(Path(folder) / "whole", ["seconds", "seconds_forward"]).sum()
        print(f"share of the time in making and scoring null images: {times['seconds_forward'] / times['seconds']:.0%}")
        torch.set_num_threads(1)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        rates = {workers: images_a_second(vit, Path(folder) / f"ray{workers}", workers, 80) for workers in (1, 2)}
        print(f"two workers over one: {rates[2] / rates[1]:.2f} ({rates[1]:.1f} and {rates[2]:.1f} images a second)")


if __name__ == "__main__":
    main()
