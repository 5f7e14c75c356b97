"Studies: the same rows however they are computed, and nothing lost whatever happens."

import errno
import json
import os
import random
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from attnbootreg import (
    attention_scores, coverage, diffuse_mask, inject_noise, load_image, load_study, make_scenes, null_scores, roi_percentile, run_study, shrink,
    significance, square_mask, summarize, suppression_factor,
)  # fmt: skip
from attnbootreg import study as rooms

SMALL = dict(noise=("square", "diffuse"), n_boot=(1, 4), recipe=("calibrated", "released"), progress=False)


def same(one, two, **tolerance):
    "The rows but for the time they took."
    columns = [name for name in one if not name.startswith("seconds")]
    pd.testing.assert_frame_equal(one[columns], two[columns], **tolerance)


@pytest.fixture(scope="module")
def undisturbed(vit, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "scenes"
    run_study("scenes", vit, out, limit=12, **SMALL)
    return load_study(out)


def test_a_row_is_what_the_rooms_say(vit, undisturbed):
    row = undisturbed.query("image == 'scene 3' and noise == 'diffuse' and n_boot == 4 and recipe == 'calibrated'").iloc[0]
    scene = make_scenes(1, rooms.SCENES_SEED, start=3)
    seed = int(np.random.SeedSequence([0, zlib.crc32(b"scene 3")]).generate_state(1)[0])
    mask = diffuse_mask(vit.img_size, seed=seed, avoid=scene.masks[0].numpy())
    x = inject_noise(load_image(scene.images[0], vit), mask, seed)
    scores, inside = attention_scores(x, vit).numpy(), coverage(mask, vit.grid)
    sig = significance(scores, null_scores(x, vit, 4, seed=seed))
    assert row["percentile_before"] == pytest.approx(roi_percentile(scores, scores, inside))
    assert row["percentile_lfdr"] == pytest.approx(roi_percentile(shrink(scores, sig, "lfdr"), scores, inside))
    assert row["pi0"] == pytest.approx(sig.pi0) and row["side"] == 26


def test_fewer_null_images_are_the_first_of_more(vit, tmp_path, undisturbed):
    run_study("scenes", vit, tmp_path / "one", limit=3, **{**SMALL, "n_boot": 1})
    alone = load_study(tmp_path / "one")
    both = undisturbed[(undisturbed["n_boot"] == 1) & undisturbed["image"].isin(alone["image"])].reset_index(drop=True)
    same(alone, both, rtol=1e-5)


def test_patterns_reach_every_depth(vit, tmp_path, picture):
    for name in ("a.png", "one/b.png", "one/two/c.png"):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "pictures" / name)
    run_study(tmp_path / "pictures" / "**" / "*.png", vit, tmp_path / "out", n_boot=1, progress=False)
    assert {Path(image).name for image in load_study(tmp_path / "out")["image"]} == {"a.png", "b.png", "c.png"}


SCRIPT = """
import sys, torch
from attnbootreg import load_vit, run_study
torch.set_num_threads(1)
print("ready", flush=True)
run_study("scenes", load_vit(device="cpu"), sys.argv[1], limit=12, noise=("square", "diffuse"), n_boot=(1, 4), recipe=("calibrated", "released"), progress=False)
"""


def test_killed_and_started_again(tmp_path, vit, undisturbed):
    out, rng, kills = tmp_path / "study", random.Random(0), 0
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, out], stdout=subprocess.PIPE)
        process.stdout.readline()
        try:
            process.wait(rng.uniform(0.2, 1.2))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 2
    before = (
        {name for path in out.glob("image*.parquet") for name in pd.read_parquet(path, columns=["image"])["image"]}
        if out.exists()
        else set()
    )
    computed = []
    original = rooms.study_image
    rooms.study_image = lambda source, *rest: computed.append(source.name) or original(source, *rest)
    try:
        run_study("scenes", vit, out, limit=12, **SMALL)
    finally:
        rooms.study_image = original
    assert not before & set(computed) and len(before) + len(computed) == 12  # nothing twice, nothing lost
    same(load_study(out), undisturbed, rtol=1e-4, atol=1e-4)  # one thread there, more here: rounding


def test_killed_while_merging(tmp_path, vit, undisturbed, monkeypatch):
    unlink = Path.unlink

    def stop(self, missing_ok=False):
        if self.name.startswith("image-"):
            raise KeyboardInterrupt
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", stop)
    with pytest.raises(KeyboardInterrupt):
        run_study("scenes", vit, tmp_path / "study", limit=3, **SMALL)
    monkeypatch.undo()
    twice = load_study(tmp_path / "study")  # merged and not yet removed
    run_study("scenes", vit, tmp_path / "study", limit=12, **SMALL)
    assert len(twice) == 3 * 8
    same(load_study(tmp_path / "study"), undisturbed)


def test_a_full_disk_stops_clearly_and_the_resume_works(tmp_path, vit, undisturbed, monkeypatch):
    original, written = rooms.pyarrow.parquet.write_table, []

    def full(table, file, **options):
        if len(written) == 4:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(1)
        original(table, file, **options)

    monkeypatch.setattr(rooms.pyarrow.parquet, "write_table", full)
    with pytest.raises(OSError, match="could not be written.*free space"):
        run_study("scenes", vit, tmp_path / "study", limit=12, **SMALL)
    monkeypatch.undo()
    assert len(list((tmp_path / "study").glob("*.parquet"))) == 4 and not list((tmp_path / "study").glob(".*"))
    run_study("scenes", vit, tmp_path / "study", limit=12, **SMALL)
    same(load_study(tmp_path / "study"), undisturbed)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    "A folder of two categories with five pictures, and two that are none."
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for category, n in (("cats", 3), ("dogs", 2)):
        (root / category).mkdir()
        for i in range(n):
            Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(root / category / f"{i}.png")
    (root / "cats" / "bad.png").write_text("no picture")
    Image.new("RGB", (9, 9), "red").save(root / "dogs" / "plain.png")
    (root / "notes.txt").write_text("not looked at")
    return root


def test_bad_images_become_rows(vit, tmp_path, pictures):
    run_study(pictures, vit, tmp_path / "study", n_boot=2, progress=False)
    table = load_study(tmp_path / "study")
    assert len(table) == 7 and table["error"].notna().sum() == 2
    errors = table.dropna(subset="error").set_index("image")["error"]
    assert "not a picture" in errors["cats/bad.png"] and "one colour" in errors["dogs/plain.png"]
    summary = summarize(tmp_path / "study")
    assert summary["images"].tolist() == [3, 2] and summary["errors"].tolist() == [1, 1]
    cats = table[(table["category"] == "cats") & table["error"].isna()]
    assert (summary.loc["cats", "D_p"], summary.loc["cats", "D_p_error"]) == suppression_factor(
        cats["percentile_before"], cats["percentile_p"]
    )


def test_ways_to_name_images(vit, tmp_path, pictures):
    files = [pictures / "cats" / f"{i}.png" for i in range(3)]
    for name, frame in {"t.csv": pd.DataFrame.to_csv, "t.parquet": pd.DataFrame.to_parquet}.items():
        frame(
            pd.DataFrame(dict(path=[os.path.relpath(path, tmp_path) for path in files], category=["a", "b", "a"])),
            tmp_path / name,
            index=False,
        )
        sources = rooms.list_sources(tmp_path / name)
        assert [source.category for source in sources] == ["a", "b", "a"] and all(Path(source.path).is_file() for source in sources)
    assert len(rooms.list_sources(str(pictures / "cats" / "?.png"))) == len(rooms.list_sources(files)) == 3
    assert len(rooms.list_sources(pictures, limit=4)) == 4
    assert {source.category for source in rooms.list_sources(pictures)} == {"cats", "dogs"}


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(noise="round"), "noise: 'round'"),
        (dict(side=500), "side: .*does not fit"),
        (dict(bootstrap="norml"), "did you mean 'normal'"),
        (dict(n_boot=0), "n_boot"),
        (dict(n_boot=()), "n_boot: needs at least one"),
        (dict(recipe="relased"), "did you mean 'released'"),
        (dict(threshold=2), "threshold"),
        (dict(limit=0), "limit"),
        (dict(limit=None), "limit: there are endless scenes"),
        (dict(engine="spark"), "engine"),
        (dict(workers=0), "workers"),
        (dict(images="nowhere/*.png"), "images: there are none"),
        (dict(images="nowhere.csv"), "images: there is no table"),
    ],
)
def test_wrong_settings_begin_nothing(vit, tmp_path, wrong, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        run_study(**{**dict(images="scenes", vit=vit, out=tmp_path / "study", limit=2), **wrong})
    assert not (tmp_path / "study").exists()


def test_another_study_is_refused_with_the_difference(vit, tmp_path):
    run_study("scenes", vit, tmp_path / "study", limit=1, n_boot=1, progress=False)
    with pytest.raises(ValueError, match=r"holds another study: n_boot is \[1\] there and \[2\] here; recipe is"):
        run_study("scenes", vit, tmp_path / "study", limit=1, n_boot=2, recipe="paper", progress=False)
    with pytest.raises(FileNotFoundError, match="no study"):
        load_study(tmp_path)
    assert json.loads((tmp_path / "study" / "study.json").read_text())["versions"]["torch"]


def test_noise_avoids_the_object_and_means_what_it_says(vit, undisturbed):
    assert undisturbed["object_kept_p"].between(0, 1).all() and undisturbed["object_share_before"].mean() > 0.3
    assert not square_mask(vit.img_size, seed=1, avoid=make_scenes(1, 1).masks[0].numpy())[make_scenes(1, 1).masks[0].numpy()].any()


@pytest.fixture(scope="module")
def cluster():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def test_ray_gives_the_same_rows(cluster, vit, tmp_path, undisturbed):
    run_study("scenes", vit, tmp_path / "study", limit=12, engine="ray", workers=2, **SMALL)
    same(load_study(tmp_path / "study"), undisturbed, rtol=1e-4, atol=1e-4)


def test_a_worker_that_dies_is_replaced(cluster, vit, tmp_path, undisturbed, monkeypatch):
    import psutil

    original, killed = rooms._write, []

    def write_and_kill(folder, table, kind):
        original(folder, table, kind)
        if not killed:
            workers = [
                p
                for p in psutil.process_iter(["cmdline"])
                if p.info["cmdline"] and p.info["cmdline"][0].startswith("ray::") and "Map" in p.info["cmdline"][0]
            ]
            killed.extend(workers[:1])
            for process in killed:
                process.kill()

    monkeypatch.setattr(rooms, "_write", write_and_kill)
    run_study("scenes", vit, tmp_path / "study", limit=12, engine="ray", workers=2, **SMALL)
    assert killed
    same(load_study(tmp_path / "study"), undisturbed, rtol=1e-4, atol=1e-4)
