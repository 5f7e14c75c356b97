"The paper's figures: their numbers computed again from the study's table, and the command on scenes and on folders."

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from attnbootreg import load_study
from attnbootreg import figures as module
from attnbootreg.cli import app
from attnbootreg.figures import (
    calm, change_table, list_sources, make_example, one_setting, paper_studies, plot_before_after, plot_changes, plot_example, plot_suppression,
    plot_tradeoffs, plot_uniformity, suppression_table, table_plates,
)  # fmt: skip

QUICK = ["--n", "1", "--recipe", "calibrated", "--recipe", "released", "--examples", "0"]


def attnbootreg(*arguments):
    done = CliRunner().invoke(app, [*map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    "The command on 12 scenes; what it wrote but for pictures, which are drawn below."
    folder = tmp_path_factory.mktemp("figures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.Plate, "draw", property(lambda self: lambda: module.Picture(figsize=(1, 1))), raising=False)
        patch.setattr(sys, "argv", ["attnbootreg", "figures", "a study", "--images", "scenes"])
        done = attnbootreg("figures", folder / "study", "--out", folder / "out", "--images", "scenes", "--limit", 12, *QUICK)
    assert done.exit_code == 0, done.output
    return folder, done


@pytest.fixture(scope="module")
def tables(studied):
    return load_study(studied[0] / "study"), load_study(studied[0] / "study" / "nulls")


def test_the_command_makes_study_figures_and_page(studied):
    folder, done = studied
    assert re.search(r"12 images to do, about \d+ s", done.stderr)
    page = (folder / "out" / "index.html").read_text()
    names = {path.stem for path in (folder / "out").glob("*.png")}
    assert {
        "percentile",
        "suppression",
        "tradeoff",
        "noise-z",
        "uniformity",
        "number",
        "width",
        "kinds",
        "diffuse-all",
        "minmax",
        "share",
    } <= names
    for name in names:
        assert f'src="{name}.png"' in page and (folder / "out" / f"{name}.svg").stat().st_size > 100
    assert "attnbootreg figures &#x27;a study&#x27; --images scenes" in page and "n = " not in page and "12 images" in page


def test_before_and_after_are_those_of_the_table(tables):
    rows = one_setting(tables[0], noise="square", recipe="released")
    for metric in ("percentile", "nonzero"):
        for ax, (category, group) in zip(plot_before_after(rows, metric).axes, rows.groupby("category")):
            assert ax.get_title() == f"{category}, n = {len(group)}"
            dots = {line.get_label(): line.get_xydata() for line in ax.lines if line.get_marker() == "."}
            for title, rule in (("p ≤ 0.3", "p"), ("lfdr ≤ 0.3", "lfdr"), ("q ≤ 0.1", "q"), ("π₀", "pi0")):
                np.testing.assert_allclose(dots[title], group[["percentile_before", f"{metric}_{rule}"]], atol=1e-9)


def test_suppression_is_sum_over_sum(tables):
    rows = calm(one_setting(tables[0], noise="square", recipe="calibrated"), 2)
    ax = plot_suppression(rows).axes[0]
    bars = {container.get_label(): container for container in ax.containers if container.get_label().startswith(("p", "l", "q", "π"))}
    labels = [text.get_text() for text in ax.get_xticklabels()]
    groups = {**dict(list(rows.groupby("category"))), "all": rows}
    assert labels == [f"{name}\nn = {len(group)}" for name, group in groups.items()]
    for title, rule in (("p ≤ 0.3", "p"), ("lfdr ≤ 0.3", "lfdr"), ("q ≤ 0.1", "q"), ("π₀", "pi0")):
        for bar, error, group in zip(bars[title], bars[title].errorbar.lines[2][0].get_segments(), groups.values()):
            before, after = group["percentile_before"].to_numpy(), group[f"percentile_{rule}"].to_numpy()
            if len(group) < 2:
                assert np.isnan(bar.get_height())
                continue
            D, n = sum(after) / sum(before), len(group)
            spread = np.sqrt(n * np.var(after, ddof=1) / sum(before) ** 2 + n * np.var(before, ddof=1) * sum(after) ** 2 / sum(before) ** 4)
            assert bar.get_height() == pytest.approx(D, abs=1e-9)
            assert np.ptp(error[:, 1]) / 2 == pytest.approx(spread, abs=1e-9)


def test_medians_and_dots_of_the_tradeoff(tables):
    rows = one_setting(tables[0], noise="square", recipe="calibrated")
    for ax, name in zip(plot_tradeoffs(rows, each=99).axes, ("p", "lfdr")):
        median = next(line for line in ax.lines if line.get_label() == "median")
        for side, drawn in zip(("sensitivity", "specificity"), (median.get_xdata(), median.get_ydata())):
            np.testing.assert_allclose(drawn, np.median(np.stack(rows[f"curve_{name}_{side}"]), 0), atol=1e-9)
        dots = sorted(tuple(line.get_xydata()[0]) for line in ax.lines if line.get_marker() == "o")
        assert dots == sorted(zip(rows["sensitivity_pi0"], rows["specificity_pi0"]))


def test_uniformity_is_that_of_the_values_in_the_noise(tables, vit):
    rows = one_setting(tables[0], noise="square", recipe="calibrated")
    example = make_example(list_sources("scenes", 1)[0], vit, paper_studies()[""].noise[0], 1, "calibrated")
    inside, row = example.roi >= 0.5, rows[rows["image"] == "scene 0"].iloc[0]
    for name, column in (("p", "srmsd_roi"), ("lfdr", "srmsd_lfdr_roi")):
        values = np.sort(getattr(example.sig, name)[inside])
        even = (np.arange(len(values)) + 0.5) / len(values)
        assert row[column] == pytest.approx(np.sqrt(np.mean((values - even) ** 2)) * (-1 if np.median(values) > 0.5 else 1), abs=1e-9)
    drawn = [np.concatenate([line.get_ydata() for line in ax.lines if line.get_marker() == "."]) for ax in plot_uniformity(rows).axes]
    for got, column in zip(drawn, ("srmsd_roi", "srmsd_lfdr_roi")):
        np.testing.assert_allclose(sorted(got), sorted(rows[column]), atol=1e-9)


def test_percentile_under_a_map_is_counted_pixel_by_pixel(vit):
    example = make_example(list_sources("scenes", 1)[0], vit, "square", 2, "paper")
    maps, notes = list(module.example_maps(example).values()), []
    for ax in plot_example(example).subfigs[0].axes[1:6]:
        notes.append(float(ax.get_xlabel().split()[1]))
    side = round(128 * 100 / 488)
    assert example.roi.sum() * 64 == pytest.approx(side**2)
    big = np.repeat(example.scores.ravel(), 64)
    share = np.round(example.roi.ravel() * 64).astype(int)
    inside = np.concatenate([np.arange(64) < count for count in share])
    for map, note in zip(maps, notes):
        pixels = np.repeat(map.ravel(), 64)[inside]
        counted = 100 * np.mean([(big[~inside] < one).mean() for one in np.unique(pixels) for _ in range((pixels == one).sum())])
        assert note == pytest.approx(counted, abs=0.051)
    assert len({ax.get_title() for ax in plot_example(example).subfigs[1].axes} & {"p of the noise", "lfdr of the noise", "z"}) == 3


def test_changes_are_paired(tables):
    nulls = tables[1]
    rows = nulls[(nulls["null"] == "normal") & (nulls["width"] == 1)]
    found = change_table(rows).set_index(["recipe", "rule", "n_null"])
    assert "released, pool_observed=False" in found.index.get_level_values(0)
    for (recipe, rule, n), row in found.iterrows():
        one = rows[(rows["recipe"] == recipe) & (rows["n_null"] == n)]
        assert row["D"] == pytest.approx(one[f"percentile_{rule}"].sum() / one["percentile_before"].sum(), abs=1e-9)
    first = found.xs(1, level="n_null")
    assert (first[["change", "change_error"]] == 0).all(axis=None)
    same = rows[rows["n_null"] == 1]
    twice = pd.concat([same, same.assign(n_null=2)])
    assert (change_table(twice)["change_error"] < 1e-12).all() and len(plot_changes(twice).axes) == 8


def test_categories_are_the_folders_of_pictures(tmp_path, tables):
    rng = np.random.default_rng(0)
    for i, name in enumerate(("tench", "tench", "church", "church")):
        (tmp_path / "val" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (60, 60, 3), dtype=np.uint8)).save(tmp_path / "val" / name / f"{i}.png")
    common = ["--out", tmp_path / "out", "--n", "1", "--recipe", "paper", "--examples", "0", "--z-filter", "9", "-q"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_files_of", lambda plate, out: [plate.name] * (3 if plate.numbers is not None else 2))
        done = attnbootreg("figures", tmp_path / "study", "--images", tmp_path / "val", *common)
        assert done.exit_code == 0, done.output
    rows = one_setting(load_study(tmp_path / "study"), noise="square")
    assert suppression_table(rows)["images"].to_dict() == {"church": 2, "tench": 2, "all": 4}
    assert "4 images, 2 categories, mean |z| of the noise at most 9" in (tmp_path / "out" / "index.html").read_text()


def test_what_a_study_has_no_rows_for_is_left_out(tables):
    square = tables[0][tables[0]["noise"] == "square"]
    names = {plate.name for plate in table_plates(square)}
    assert "suppression-all" in names and not {"minmax", "diffuse-all", "number"} & names


def test_killed_and_started_again_gives_the_same(tmp_path, studied, tables):
    folder, _ = studied
    command = [sys.executable, "-c", "from attnbootreg.cli import app; app()", "figures", tmp_path / "study", "--out", tmp_path / "out"]
    command += ["--images", "scenes", "--limit", "5", *QUICK]
    started = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "study").glob("image-*.parquet")) and started.poll() is None:
        time.sleep(0.02)
    started.send_signal(signal.SIGKILL)
    started.wait()
    done = set(load_study(tmp_path / "study")["image"])
    assert 0 < len(done) <= 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_files_of", lambda plate, out: [shutil.copy(__file__, tmp_path / plate.name)])
        assert attnbootreg("figures", *command[4:], "-q").exit_code == 0
    first = [table[table["image"].isin([f"scene {i}" for i in range(5)])].reset_index(drop=True) for table in tables]
    for part, table in zip(("", "nulls"), first):
        again = load_study(tmp_path / "study" / part)
        columns = [name for name in table if not name.startswith("seconds")]
        pd.testing.assert_frame_equal(again[columns], table[columns])
    plates = {plate.name: plate.numbers for plate in table_plates(*(load_study(tmp_path / "study" / part) for part in ("", "nulls")))}
    for plate in table_plates(*first):
        assert plate.name in plates
        if plate.numbers is not None:
            pd.testing.assert_frame_equal(plates[plate.name], plate.numbers)
    assert (folder / "out" / "number.csv").exists()


@pytest.mark.parametrize(
    "arguments, why",
    [(["nowhere"], "there is no study in 'nowhere'"), (["study", "--images", "nowhere/*.png"], "there are none in"), (["study", "--images", "scenes"], "say how many")],
)  # fmt: skip
def test_mistakes_are_named(tmp_path, monkeypatch, arguments, why):
    monkeypatch.chdir(tmp_path)
    done = attnbootreg("figures", *arguments, "--out", "out")
    assert done.exit_code == 2 and why in done.stderr and not Path("out").exists()
