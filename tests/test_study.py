"Studies: the same rows however they are computed, and nothing lost whatever happens."

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from attnbootreg import (
    RECIPES, Attention, Cuts, Engine, Noise, Null, Recipe, Score, Status, Study, attention_scores, coverage, diffuse_mask, inject_noise, load_image, load_study,
    load_vit, make_scenes, plan_study, roi_percentile, run_study, shrink, significance, square_mask, study_status, summarize, suppression_factor,
    __version__,
)  # fmt: skip
from attnbootreg import runs, store
from attnbootreg import study as module
from attnbootreg.sources import SCENES_SEED, Source, list_sources, read_source
from attnbootreg.files import plain

SMALL = Study(("square", "diffuse"), null=(1, 4), recipe=("calibrated", "released"))


def same(one, two, **tolerance):
    "The rows but for the time they took."
    columns = [name for name in one if not name.startswith("seconds")]
    pd.testing.assert_frame_equal(one[columns], two[columns], **tolerance)


@pytest.fixture(scope="module")
def undisturbed(vit, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "scenes"
    run_study("scenes", vit, out, SMALL, limit=12, progress=False)
    return load_study(out)


def test_a_row_is_what_the_functions_say(vit, undisturbed):
    row = undisturbed.query("image == 'scene 3' and noise == 'diffuse' and n_null == 4 and recipe == 'calibrated'").iloc[0]
    scene = make_scenes(1, SCENES_SEED, start=3)
    seed = int(np.random.SeedSequence([0, zlib.crc32(b"scene 3")]).generate_state(1)[0])
    mask = diffuse_mask(vit.img_size, seed=seed, avoid=scene.masks[0].numpy())
    x = inject_noise(load_image(scene.images[0], vit), mask, seed)
    scores, inside = attention_scores(x, vit).numpy(), coverage(mask, vit.grid)
    sig = significance(scores, Null(n=4).scores(x, vit, Attention(), seed=seed))
    assert row["percentile_before"] == pytest.approx(roi_percentile(scores, scores, inside))
    assert row["percentile_lfdr"] == pytest.approx(roi_percentile(shrink(scores, sig, "lfdr"), scores, inside))
    assert row["pi0"] == pytest.approx(sig.pi0) and row["side"] == 26


def test_fewer_null_images_are_the_first_of_more(vit, tmp_path, undisturbed):
    run_study("scenes", vit, tmp_path / "one", replace(SMALL, null=1), limit=3, progress=False)
    alone = load_study(tmp_path / "one")
    both = undisturbed[(undisturbed["n_null"] == 1) & undisturbed["image"].isin(alone["image"])].reset_index(drop=True)
    same(alone, both, rtol=1e-5)


def test_patterns_reach_every_depth(vit, tmp_path, picture):
    for name in ("a.png", "one/b.png", "one/two/c.png"):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "pictures" / name)
    run_study(tmp_path / "pictures" / "**" / "*.png", vit, tmp_path / "out", Study(null=1), progress=False)
    assert {Path(image).name for image in load_study(tmp_path / "out")["image"]} == {"a.png", "b.png", "c.png"}
    assert set(load_study(tmp_path / "out")["image"]) == {"a.png", "one/b.png", "one/two/c.png"}  # as in the folder


SCRIPT = """
import os, signal, sys, torch
from attnbootreg import Study, load_vit, run_study, store
torch.set_num_threads(1)
study, write, parts = Study(("square", "diffuse"), null=(1, 4), recipe=("calibrated", "released")), store.Store.write_part, []

def write_and_die(self, *part):
    write(self, *part)
    parts.append(part)
    if len(parts) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

store.Store.write_part = write_and_die
run_study("scenes", load_vit(device="cpu"), sys.argv[1], study, limit=12, progress=False)
"""


def computing(monkeypatch):
    "Names of the images that are computed from now on."
    computed, original = [], runs.study_image
    monkeypatch.setattr(runs, "study_image", lambda source, *rest: computed.append(source.name) or original(source, *rest))
    return computed


def images_in(out):
    return {name for names in store.Store(out).images() for name in names}


def test_killed_and_started_again(tmp_path, vit, undisturbed, monkeypatch):
    out = tmp_path / "study"
    assert subprocess.run([sys.executable, "-c", SCRIPT, out]).returncode == -signal.SIGKILL
    before, computed = images_in(out), computing(monkeypatch)
    assert len(before) >= 3
    run_study("scenes", vit, out, SMALL, limit=12, progress=False)
    assert not before & set(computed) and len(before) + len(computed) == 12  # nothing twice, nothing lost
    same(load_study(out), undisturbed, rtol=1e-4, atol=1e-4)  # one thread there, more here: rounding


def test_a_full_disk_stops_clearly_and_the_resume_works(tmp_path, vit, undisturbed, monkeypatch):
    original, written = store.pq.write_table, []

    def full(table, file, **options):
        if written:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(1)
        original(table, file, **options)

    monkeypatch.setattr(store.pq, "write_table", full)
    with pytest.raises(OSError, match="could not be written.*free space"):
        run_study("scenes", vit, tmp_path / "study", SMALL, limit=12, progress=False)
    monkeypatch.undo()
    assert len(list((tmp_path / "study").glob("*.parquet"))) == 1 and not list((tmp_path / "study").glob(".part*"))
    run_study("scenes", vit, tmp_path / "study", SMALL, limit=12, progress=False)
    same(load_study(tmp_path / "study"), undisturbed, rtol=1e-5)


def test_a_second_driver_is_refused(tmp_path, vit, monkeypatch):
    original = runs.study_image

    def meanwhile(source, *rest):
        with pytest.raises(ValueError, match=f"out: process {os.getpid()} on .* is running the study"):
            run_study("scenes", vit, tmp_path / "study", Study(null=1), limit=3, progress=False)
        return original(source, *rest)

    monkeypatch.setattr(runs, "study_image", meanwhile)
    run_study("scenes", vit, tmp_path / "study", Study(null=1), limit=1, progress=False)
    assert len(load_study(tmp_path / "study")) == 1 and not study_status(tmp_path / "study").running


def test_a_lease_that_was_taken_stops_the_first(tmp_path, vit, monkeypatch):
    "Behind a URL there is no lock: the later of two that began together goes on."
    monkeypatch.setattr(store, "BEAT", 0.01)
    place = store.Store("memory://taken")
    with pytest.raises(ValueError, match="out: process 5 on elsewhere is running the study"), store.Lease(place) as lease:
        place.write(
            "run.json", lambda file: file.write(json.dumps({"id": "another", "pid": 5, "host": "elsewhere", "beat": 1e12}).encode())
        )
        lease._thread.join(60)
        lease.tell(done=1)
    assert store.read_run(place)["id"] == "another"
    with pytest.raises(ValueError, match="process 5 on elsewhere"), store.Lease(place):
        pass


def test_a_plan_and_a_status(vit, tmp_path):
    plan = plan_study("scenes", vit, Study(("square", "none"), null=(1, 3)), limit=1000, tried=2)
    assert (plan.images, plan.settings, plan.passes) == (1000, 4, 2 * (1 + 3 * 16)) and plan.hours == 1000 * plan.seconds / 3600
    assert "1,000 images, 4 settings, 98 forward passes an image: 98,000 passes" in str(plan)
    status = Status(True, "process 5 on here", 30, 120, 0, 0.5, 0.9)
    assert status.seconds_left == 180 and str(status).splitlines()[0] == "30 of 120 images done; run by process 5 on here"
    assert replace(status, total=None).seconds_left is None and replace(status, running=False).seconds_left is None
    with pytest.raises(FileNotFoundError, match="study: there is no study in"):
        study_status(tmp_path)


def stub(source, vit, study, *rest):
    "A row of nothing."
    return [dict(image=source.name, category="", error=None, score="", pi0=1.0)]


def test_of_many_that_are_done_only_the_others_are_computed(tmp_path, vit, monkeypatch):
    monkeypatch.setattr(runs, "study_image", stub)
    names = [f"s3://bucket/{i:05}.png" for i in range(3000)]
    for some in (names[:2000], names):
        run_study(some, vit, tmp_path / "study", Study(null=1), progress=False)
    assert images_in(tmp_path / "study") == set(names) and store.Store(tmp_path / "study").rows() == 3000
    computed = computing(monkeypatch)
    run_study(iter(names), vit, tmp_path / "study", Study(null=1), limit=2500, progress=False)
    assert not computed and study_status(tmp_path / "study").done == 3000


class Shaky(runs._Here):
    "A worker that is lost after every third chunk, which it has written."

    each = 3

    def finished(self, future):
        report = super().finished(future)
        self.reports = getattr(self, "reports", 0) + 1
        return None if self.reports % self.each == 0 else report


def test_chunks_of_lost_workers_are_done_again_and_are_there_once(tmp_path, vit, monkeypatch):
    monkeypatch.setattr(runs, "study_image", stub)
    monkeypatch.setattr(runs, "_Here", Shaky)
    monkeypatch.setattr(runs, "MOST", 10)
    run_study([f"s3://bucket/{i:05}.png" for i in range(300)], vit, tmp_path / "study", Study(null=1), progress=False)
    assert len(images_in(tmp_path / "study")) == store.Store(tmp_path / "study").rows() == 300
    monkeypatch.setattr(Shaky, "each", 1)
    with pytest.raises(RuntimeError, match="engine: 5 workers were lost at the images from 's3://bucket/00000.png'"):
        run_study(["s3://bucket/00000.png"], vit, tmp_path / "other", Study(null=1), progress=False)


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
    run_study(pictures, vit, tmp_path / "study", Study(null=2), progress=False)
    table = load_study(tmp_path / "study")
    assert len(table) == 7 and table["error"].notna().sum() == 2
    errors = table.dropna(subset="error").set_index("image")["error"]
    assert "not a picture" in errors["cats/bad.png"] and "one color" in errors["dogs/plain.png"]
    summary = summarize(tmp_path / "study")
    assert summary["images"].tolist() == [3, 2] and summary["errors"].tolist() == [1, 1]
    cats = table[(table["category"] == "cats") & table["error"].isna()]
    assert (summary.loc["cats", "D_p"], summary.loc["cats", "D_p_error"]) == suppression_factor(
        cats["percentile_before"], cats["percentile_p"]
    )


def test_the_version_stands_in_the_files(vit, tmp_path):
    run_study("scenes", vit, tmp_path / "out", Study(null=1), limit=1, progress=False)
    (part,) = (tmp_path / "out").glob("*.parquet")
    assert pq.read_schema(part).metadata[b"attnbootreg"].decode() == __version__


def test_ways_to_name_images(vit, tmp_path, pictures):
    files = [pictures / "cats" / f"{i}.png" for i in range(3)]
    for name, frame in {"t.csv": pd.DataFrame.to_csv, "t.parquet": pd.DataFrame.to_parquet}.items():
        frame(
            pd.DataFrame(dict(path=[os.path.relpath(path, tmp_path) for path in files], category=["a", "b", "a"])),
            tmp_path / name,
            index=False,
        )
        sources = list_sources(tmp_path / name)
        assert [source.category for source in sources] == ["a", "b", "a"] and all(Path(source.path).is_file() for source in sources)
    assert len(list_sources(str(pictures / "cats" / "?.png"))) == len(list_sources(files)) == 3
    assert len(list_sources(pictures, limit=4)) == 4
    assert {source.category for source in list_sources(pictures)} == {"cats", "dogs"}


def test_the_same_picture_gets_the_same_noise_however_it_is_named(vit, tmp_path, pictures):
    ways = {
        "folder": pictures,
        "pattern": pictures / "*" / "?.png",
        "list": [pictures / category / f"{i}.png" for category, n in (("cats", 3), ("dogs", 2)) for i in range(n)],
    }
    tables = {}
    for name, images in ways.items():
        run_study(images, vit, tmp_path / name, Study(null=2), progress=False)
        tables[name] = load_study(tmp_path / name).query("error.isna()").reset_index(drop=True)
    same(tables["folder"], tables["pattern"], check_dtype=False)  # names and all
    measured = [name for name in tables["list"] if name not in ("image", "category", "error")]
    same(tables["folder"][measured], tables["list"][measured], check_dtype=False)
    assert tables["folder"]["z_roi"].nunique() == 5


def test_the_pixels_of_a_picture_make_its_noise(vit, tmp_path, pictures):
    source, copy = list_sources(pictures / "cats" / "0.png")[0], tmp_path / "other name.tiff"
    Image.open(source.path).save(copy)
    one, other, third = (read_source(list_sources(path)[0], vit) for path in (source.path, copy, pictures / "cats" / "1.png"))
    assert one.seed(7) == other.seed(7) != one.seed(8) and one.seed(7) != third.seed(7)


@pytest.mark.parametrize(
    "pattern, name, category",
    [
        ("cats/0.png", "0.png", "cats"),
        ("cats/*.png", "0.png", "cats"),
        ("*/0.png", "cats/0.png", "cats"),
        ("**/0.png", "cats/0.png", "cats"),
        ("c?ts/[01].png", "cats/0.png", "cats"),
        (".", "cats/0.png", "cats"),
        ("cats", "0.png", "cats"),
        ("../*/cats/0.png", None, "cats"),  # the folder of the fixture is a part of the name
    ],
)
def test_names_of_a_pattern_are_those_of_its_fixed_folder(pictures, monkeypatch, pattern, name, category):
    monkeypatch.chdir(pictures)
    first = next(source for source in list_sources(pattern) if source.path.endswith("0.png"))
    assert (first.name, first.category) == (name or f"{pictures.name}/cats/0.png", category if name else f"{pictures.name}/cats")


def test_wrong_settings_say_which_field_it_is():
    keep = np.eye(16, dtype=bool)
    for field, wrong, says in (
        ("noise", "round", "noise: kind: there is no 'round'"),
        ("noise", 3, "noise: expected Noise"),
        ("noise", [], "noise: needs at least one"),
        ("noise", Noise, "noise: expected Noise"),
        ("score", "attention", "score: expected Attention"),
        ("score", Attention, "score: expected .*the class Attention"),
        ("score", (lambda vit, x: x, lambda vit, x: 2 * x), "score: two different ones are named '<lambda>'"),
        ("null", "norml", "null: kind: .*did you mean 'normal'"),
        ("null", 0, "null: n: must be a whole number of at least 1"),
        ("null", (1, 2.5), "null: expected Null"),
        ("null", (), "null: needs at least one"),
        ("null", "auto", "null: kind: there is no 'auto'"),
        ("null", Null(n="auto"), "null: n='auto' takes another number for each image"),
        ("null", (Null(), Null(keep=keep)), "null: keep names patches of one image"),
        ("recipe", "relased", "recipe: .*did you mean 'released'"),
        ("recipe", 0.3, "recipe: expected a name"),
        ("recipe", Recipe(standardize="position", n_null=1), "null: standardize='position' needs at least"),
        ("cuts", 0.3, "cuts: expected Cuts"),
        ("cuts", (Cuts(), "p"), "cuts: expected Cuts"),
        ("seed", -1, "seed: must be"),
        ("seed", 0.5, "seed: must be"),
    ):
        with pytest.raises((ValueError, TypeError), match=says):
            Study(**{field: wrong})


def draw_nothing(x, generator):
    return x + 0.1


def embedding_norm(vit, x):
    with torch.inference_mode():
        return vit.model.patch_embed(x.to(vit.dtype)).norm(dim=-1).unflatten(1, vit.grid)


def test_a_study_is_one_value_or_several_and_travels():
    study = Study(
        ["diffuse", Noise(side=20)], (Attention(), Attention(), embedding_norm), [1, "pixel", Null(n=1), draw_nothing], ("paper", Recipe()),
        [Cuts(), Cuts(p=0.1)], seed=3,
    )  # fmt: skip
    assert study.noise == (Noise("diffuse"), Noise(side=20)) and study.score == (Attention(), Score(embedding_norm))
    assert study.null == (Null(n=1), Null("pixel"), Null(draw_nothing)) and len(study.recipe) == len(study.cuts) == 2
    assert len(study) == 2 * 2 * (3 * 2) * 2
    assert pickle.loads(pickle.dumps(study)) == study and hash(study) == hash(replace(study)) and replace(study, seed=4) != study
    assert "draw_nothing" in repr(study) and "score=(Attention(), embedding_norm)" in repr(study) and "0x" not in repr(study)
    assert len(json.loads(json.dumps(plain(study)))["null"]) == 3
    with pytest.raises(AttributeError):
        study.seed = 1


def test_no_number_is_the_recipes_number(vit, tmp_path):
    three = replace(RECIPES["calibrated"], n_null=3)
    study = Study(recipe=("calibrated", "paper", three), null=(Null(), 20))
    assert len(study) == 5  # 20, 1 and 3, and 20 for two of them that have another
    run_study("scenes", vit, tmp_path / "study", study, limit=1, progress=False)
    table = load_study(tmp_path / "study")
    assert set(zip(table["recipe"], table["n_null"])) == {
        ("calibrated", 20), ("paper", 1), ("paper", 20), ("calibrated, n_null=3", 3), ("calibrated, n_null=3", 20),
    }  # fmt: skip


def test_each_kind_of_null_images_is_drawn_once(vit, monkeypatch):
    drawn, original = [], Null.scores
    monkeypatch.setattr(Null, "scores", lambda self, *rest, **more: drawn.append(self) or original(self, *rest, **more))
    study = Study(
        null=[Null(n=2), Null(n=5), Null(n=3, width=2), Null("pixel", n=2)], recipe=("calibrated", "paper"), cuts=(Cuts(), Cuts(p=0.1))
    )
    assert len(module.study_image(Source("scene 0", "", ""), vit, study)) == len(study) == 4 * 2 * 2
    assert drawn == [Null(n=5, groups=1), Null(n=3, width=2, groups=1), Null("pixel", n=2, groups=1)]


def centered_norm(vit, x):
    "Signed, with exact zeros."
    norms = embedding_norm(vit, x)
    norms = norms - norms.mean((1, 2), keepdim=True)
    return torch.where(norms.abs() < 0.3, 0, norms)


def test_any_score_goes_through(vit, tmp_path):
    scores = (Score(embedding_norm, scale="log"), Score(centered_norm, signed=True), Attention(heads="each"), Attention(layer=(0, 1)))
    study = Study(score=scores, null=5, recipe=("calibrated", "paper"))
    run_study("scenes", vit, tmp_path / "study", study, limit=3, progress=False)
    table = load_study(tmp_path / "study")
    assert table["error"].isna().all() and len(table) == 3 * 2 * (1 + 1 + vit.heads + 2)
    maps = table.groupby("score")["map"].unique().map(sorted)
    assert maps["embedding_norm"] == maps["centered_norm"] == [""] and maps["Attention(heads='each')"] == ["head 0", "head 1"]
    assert maps["Attention(layer=(0, 1))"] == ["layer 0, mean of heads", "layer 1, mean of heads"]
    assert table["percentile_before"].between(0, 100).all() and table["object_kept_p"].between(0, 1).all()
    assert len(summarize(table)) == len(table.groupby(["category", "score", "map", "recipe"]))
    head = table.query("score == \"Attention(heads='each')\" and map == 'head 1'").drop(columns=["score", "map"]).reset_index(drop=True)
    run_study("scenes", vit, tmp_path / "head", replace(study, score=Attention(heads=1)), limit=3, progress=False)
    same(head, load_study(tmp_path / "head").drop(columns=["score", "map"]), rtol=1e-5)


def test_a_score_that_fails_becomes_errors(vit, tmp_path):
    run_study("scenes", vit, tmp_path / "study", Study(score=lambda vit, x: x), limit=2, progress=False)
    assert load_study(tmp_path / "study")["error"].str.contains("it must give").all()
    assert summarize(tmp_path / "study").empty


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(study=Study(Noise(side=500))), "side: .*does not fit"),
        (dict(study=Study(score=Attention(layer=50))), "score: layer|layer: 50 is not a block"),
        (dict(study="square"), "study: expected Study"),
        (dict(limit=0), "limit"),
        (dict(limit=None), "limit: there are endless scenes"),
        (dict(engine="spark"), "engine"),
        (dict(engine=2), "engine: expected Engine"),
        (dict(images="nowhere/*.png"), "images: there are none"),
        (dict(images="nowhere.csv"), "images: there is no table"),
        (dict(vit="scenes"), "vit: expected what load_vit gives"),
    ],
)
def test_wrong_settings_begin_nothing(vit, tmp_path, wrong, says):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=says):
        run_study(**{**dict(images="scenes", vit=vit, out=tmp_path / "study", limit=2), **wrong})
    assert not (tmp_path / "study").exists()


def test_scenes_need_a_square(tmp_path):
    with pytest.raises(ValueError, match="images: scenes are square"):
        run_study("scenes", load_vit(device="cpu", img_size=(128, 64)), tmp_path / "study", limit=2)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(kind="spark"), "kind"),
        (dict(workers=0), "workers"),
        (dict(workers=1.5), "workers"),
        (dict(address="auto"), "address"),
        (dict(kind="ray", address=5), "address"),
    ],
)
def test_an_engine_is_checked(wrong, says):
    with pytest.raises(ValueError, match=f"^{says}: "):
        Engine(**wrong)
    assert Engine("ray", 3, "auto") == pickle.loads(pickle.dumps(Engine("ray", 3, "auto")))


def test_another_study_is_refused_with_the_difference(vit, tmp_path):
    run_study("scenes", vit, tmp_path / "study", Study(null=1), limit=1, progress=False)
    with pytest.raises(
        ValueError, match=r"holds another study: null.n is 1 there and 2 here; recipe.name is 'conditional' there and 'paper'"
    ):
        run_study("scenes", vit, tmp_path / "study", Study(null=2, recipe="paper"), limit=1, progress=False)
    for other, says in (
        (Study(null=Null("pixel", n=1)), "null.kind is 'normal' there and 'pixel' here"),
        (Study(null=(1, 2)), r"null.n is 1 there and \[1, 2\] here"),
        (Study(null=1, cuts=Cuts(q=0.2)), "cuts.q is 0.1 there and 0.2 here"),
        (Study(null=1, score=Attention(layer=0)), "score.layer is -1 there and 0 here"),
        (Study(null=1, score=embedding_norm), "score.type is 'Attention' there and 'Score' here"),
        (Study(null=1, noise=Noise(avoid=False), seed=1), "seed is 0 there and 1 here; noise.avoid is True there and False here"),
    ):
        with pytest.raises(ValueError, match=says):
            run_study("scenes", vit, tmp_path / "study", other, limit=1, progress=False)
    with pytest.raises(FileNotFoundError, match="no study"):
        load_study(tmp_path)
    settings = json.loads((tmp_path / "study" / "study.json").read_text())
    assert settings["versions"]["torch"] and settings["study"]["null"][0] == plain(Null(n=1)) and settings["model"]["name"] == vit.name


def test_a_study_of_the_first_version_is_refused(vit, tmp_path):
    old = {"model": "scenes", "weights": "embedded", "noise": ["square"], "n_boot": [20], "versions": {"attnbootreg": "0.1.0"}}
    (tmp_path / "study.json").write_text(json.dumps(old))
    for call in (lambda: load_study(tmp_path), lambda: run_study("scenes", vit, tmp_path, limit=1), lambda: summarize(tmp_path)):
        with pytest.raises(ValueError, match="holds a study of attnbootreg 0.1.*another folder"):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["study.json"]
    with pytest.raises(ValueError, match="study: the table has no column 'score'.*0.1"):
        summarize(pd.DataFrame(dict(image=["a"], error=[None], category=["b"], n_boot=[20])))


def test_the_filter_counts_the_images_that_it_leaves(vit, tmp_path, undisturbed):
    rows = undisturbed.query("noise == 'square' and n_null == 4 and recipe == 'calibrated'").assign(category="all")
    limit = rows["z_roi"].abs().sort_values().iloc[4]  # five of twelve
    summary = summarize(rows, z_filter=limit).loc["all"]
    assert summary["images"] == 5 and summary["kept by |z|"] == pytest.approx(5 / 12)
    assert summary["D_p"] == summarize(rows[rows["z_roi"].abs() <= limit]).loc["all", "D_p"]
    assert summarize(rows).loc["all", "images"] == 12
    assert summarize(rows, z_filter=0).loc["all", "images"] == 0


@pytest.mark.parametrize("name", ["scenes", "nulls"])
def test_stored_tables_are_read(root, name):
    table = pd.read_parquet(root / "nbs" / "tutorials" / "studies" / f"{name}.parquet")
    key = [*module.KEY, *{"model"}.intersection(table)]  # one of the tables is of two models
    assert set(table) - {"model"} <= set(module.schema().names) and set(module.KEY) <= set(table)
    assert not table.duplicated(key).any() and table[key].notna().all().all()
    summary = summarize(table, z_filter=1)
    assert 0 < summary["images"].sum() < len(table) and summary["D_p"].dropna().between(0, 1).all()


def test_noise_avoids_the_object_and_means_what_it_says(vit, undisturbed):
    assert undisturbed["object_kept_p"].between(0, 1).all() and undisturbed["object_share_before"].mean() > 0.3
    assert not square_mask(vit.img_size, seed=1, avoid=make_scenes(1, 1).masks[0].numpy())[make_scenes(1, 1).masks[0].numpy()].any()


@pytest.fixture(scope="module")
def cluster():
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def test_ray_gives_the_same_rows(cluster, vit, tmp_path, undisturbed):
    run_study("scenes", vit, tmp_path / "study", SMALL, limit=12, engine=Engine("ray", workers=2), progress=False)
    same(load_study(tmp_path / "study"), undisturbed, rtol=1e-4, atol=1e-4)


def test_a_worker_that_dies_is_replaced(cluster, vit, tmp_path, undisturbed, monkeypatch):
    import psutil

    original, killed = runs._Ray.finished, []

    def finished_and_kill(self, future):
        report = original(self, future)
        if not killed and isinstance(report, tuple):
            killed.extend([p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [""])[0].startswith("ray::Worker")][:1])
            killed[0].kill()
        return report

    monkeypatch.setattr(runs._Ray, "finished", finished_and_kill)
    run_study("scenes", vit, tmp_path / "study", SMALL, limit=12, engine=Engine("ray", workers=2), progress=False)
    assert killed and store.Store(tmp_path / "study").rows() == len(undisturbed)
    same(load_study(tmp_path / "study"), undisturbed, rtol=1e-4, atol=1e-4)
