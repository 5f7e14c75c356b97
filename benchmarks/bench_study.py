"""Studies: how busy the model is, many sources, and what is left after kills.

    python benchmarks/bench_study.py speed            # against pictures one after the other, at one and two threads
    python benchmarks/bench_study.py many --images 1000000
    python benchmarks/bench_study.py kills            # drivers killed at random moments; rows none lost, none twice
    python benchmarks/bench_study.py cluster          # a Ray cluster of a head and two nodes of one core on this machine

Machines are noisy: ways are compared in alternation, the least time of each counts, and processor time stands beside it.
"""

import argparse
import os
import random
import resource
import secrets
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from attnbootreg import Engine, Study, load_study, load_vit, run_study, runs, store, study_status
from attnbootreg.sources import Source, Sources
from attnbootreg.study import study_image

ONE = Study(null=1, recipe="calibrated")  # two images for the model


def alone(vit: object, n: int) -> float:
    "Pictures one after the other, as one thread does it: seconds in the model."
    rows = [row for source in Sources("scenes", n) for row in study_image(source, vit, ONE)]
    return sum(row["seconds_forward"] for row in rows)


def together(vit: object, n: int) -> float:
    "A worker's way."
    with TemporaryDirectory() as folder:
        worker = runs.Worker(vit, ONE, folder)
        try:
            return worker.run("x", list(Sources("scenes", n))).model
        finally:
            worker.close()


def speed(given: argparse.Namespace) -> None:
    "Wall, processor and model seconds of both ways."
    vit = load_vit(device="cpu")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        runs.THREADS["cpu"] = given.threads
        least: dict[str, list[float]] = {}
        for _ in range(given.turns):
            for way in (alone, together):
                wall, cpu = time.perf_counter(), time.process_time()
                model = way(vit, given.images)
                took = [time.perf_counter() - wall, time.process_time() - cpu, model]
                least[way.__name__] = min(least.get(way.__name__, took), took)
        for name, (wall, cpu, model) in least.items():
            print(f"{threads} threads, {name}: {given.images / wall:.1f} pictures a second, {model / wall:.0%} of the wall time in the model, "
                  f"{cpu / given.images * 1e3:.1f} ms of processor time a picture")  # fmt: skip
        print(f"{threads} threads: {least['alone'][0] / least['together'][0]:.2f} times as fast together", flush=True)


def peak() -> float:
    "Most memory so far, MB."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def stub(source: Source, *_: object) -> list[dict]:
    "A row of nothing."
    return [dict(image=source.name, category=source.category, error=None, score="", pi0=1.0)]


def many(given: argparse.Namespace) -> None:
    "Sources with a stubbed row, and a list of which all but 1,000 are done."
    runs.study_image, vit = stub, load_vit(device="cpu")
    with TemporaryDirectory() as folder:
        table, out = Path(folder, "list.parquet"), Path(folder, "study")
        names = (f"s3://bucket/photographs/of/a/category/{i:09}.jpg" for i in range(given.images))
        with pq.ParquetWriter(table, pa.schema({"path": pa.string()})) as writer:
            while some := list(islice(names, 100_000)):
                writer.write_table(pa.table({"path": some}))
        print(f"before: {peak():.0f} MB", flush=True)
        start = time.perf_counter()
        run_study(str(table), vit, out, ONE, limit=given.computed, progress=False)
        took = time.perf_counter() - start
        print(
            f"{given.computed:,} stubbed: {given.computed / took:.0f} sources a second, {peak():.0f} MB, {len(store.Store(out).parts())} parts",
            flush=True,
        )
        names = [f"s3://bucket/photographs/of/a/category/{i:09}.jpg" for i in range(given.computed, given.images - 1000)]
        known = runs.schema()
        for i in range(0, len(names), 10_000):  # as workers leave them
            rows = pa.table({"image": names[i : i + 10_000]})
            whole = [rows["image"] if name == "image" else pa.nulls(len(rows), kind) for name, kind in zip(known.names, known.types)]
            store.Store(out).write_part(f"made{i}", pa.table(whole, schema=known))
        del names
        before, start = peak(), time.perf_counter()
        run_study(str(table), vit, out, ONE, progress=False)
        took = time.perf_counter() - start
        print(f"{given.images:,} listed, all but 1,000 done: {took:.1f} s, peak memory {before:.0f} MB before and {peak():.0f} MB after")
        print(study_status(out))


SCRIPT = """
import sys, torch
from attnbootreg import Engine, Study, load_vit, run_study
torch.set_num_threads(1)
run_study("scenes", load_vit(device="cpu"), sys.argv[1], Study(null=1, recipe="calibrated"), limit=int(sys.argv[2]), progress=False)
"""


def same(out: Path, whole: pd.DataFrame) -> None:
    "The rows of an undisturbed study, none lost, none twice."
    rows = store.Store(out).rows()
    table = load_study(out)
    columns = [name for name in whole if not name.startswith("seconds")]
    pd.testing.assert_frame_equal(table[columns], whole[columns], rtol=1e-4, atol=1e-4)
    assert rows == len(whole), f"{rows} rows written, {len(whole)} wanted"
    print(f"{len(table)} rows as in an undisturbed study, none lost, none twice")


def kills(given: argparse.Namespace) -> None:
    "A driver killed at random moments after its first part."
    vit, rng = load_vit(device="cpu"), random.Random(0)
    with TemporaryDirectory() as folder:
        run_study("scenes", vit, Path(folder, "whole"), ONE, given.images, progress=False)
        out, done = Path(folder, "study"), 0
        for _ in range(given.turns):
            process = subprocess.Popen([sys.executable, "-c", SCRIPT, out, str(given.images)])
            while len(store.Store(out).parts()) <= done and process.poll() is None:
                time.sleep(0.2)
            time.sleep(rng.uniform(0, 3))
            process.send_signal(signal.SIGKILL)
            print(f"killed ({process.wait()}) with {len(store.Store(out).parts())} parts", flush=True)
            done = len(store.Store(out).parts())
        run_study("scenes", vit, out, ONE, given.images, progress=False)
        same(out, load_study(Path(folder, "whole")))


def cluster(given: argparse.Namespace) -> None:
    "A head without cores and nodes of one core each; one of them is killed three times."
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # of this cluster alone, for all its processes
    import ray
    from ray.cluster_utils import Cluster

    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes, vit = [machines.add_node(num_cpus=1) for _ in range(2)], load_vit(device="cpu")
    with TemporaryDirectory() as folder:
        try:
            ray.init(machines.address, log_to_driver=False, logging_level="ERROR")
            rates = {}
            for workers in (1, 2, 1, 2):
                out = Path(folder, f"{len(rates)}-{workers}-{time.time()}")
                run_study("scenes", vit, out, ONE, given.images, Engine("ray", workers), progress=False)
                seconds = load_study(out, ["seconds"])["seconds"].sum()
                rates.setdefault(workers, []).append(rate_of_parts(out))
                print(
                    f"{workers} workers: {rates[workers][-1]:.2f} pictures a second, {given.images / seconds:.2f} a second of work",
                    flush=True,
                )
            print(f"two over one: {max(rates[2]) / max(rates[1]):.2f}", flush=True)
            whole, rng, original, killed = load_study(out), random.Random(0), runs._Ray.finished, []

            def disturbed(self: object, future: object) -> object:
                report = original(self, future)
                if report is not None and len(killed) < 3 and rng.random() < 0.2:
                    killed.append(nodes.pop(rng.randrange(2)))
                    machines.remove_node(killed[-1], allow_graceful=False)  # SIGKILL
                    nodes.append(machines.add_node(num_cpus=1))
                return report

            runs._Ray.finished = disturbed
            run_study("scenes", vit, Path(folder, "disturbed"), ONE, given.images, Engine("ray", 2), progress=False)
            print(f"{len(killed)} nodes killed", flush=True)
            same(Path(folder, "disturbed"), whole)
        finally:
            ray.shutdown()
            machines.shutdown()


def rate_of_parts(out: Path) -> float:
    "Pictures a second from the first part to the last, without the start of workers."
    folder = store.Store(out)
    written = sorted((Path(out, part).stat().st_mtime, folder.read_part(part, ["image"]).num_rows) for part in folder.parts())
    return sum(rows for _, rows in written[1:]) / (written[-1][0] - written[0][0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("speed", "many", "kills", "cluster"))
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--computed", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=4)
    given = parser.parse_args()
    {"speed": speed, "many": many, "kills": kills, "cluster": cluster}[given.what](given)
