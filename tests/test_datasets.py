"Folders of public data sets, made small: what is listed, what is refused, and the accuracy of groups by hand."

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from attnbootreg import load_image
from attnbootreg.datasets import (
    COLUMNS,
    IMAGENET9,
    Samples,
    cub,
    group_accuracy,
    imagenet9,
    imagenet9_classes,
    metashift,
    siim_acr,
    waterbirds,
    with_validation,
)


def pictures(folder, *files):
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len(file)).integers(0, 255, (8, 10, 3), np.uint8)
        Image.fromarray(pixels if file.lower().endswith(("jpg", "jpeg")) else pixels[..., 0]).save(folder / file)


def make_waterbirds(folder, **change):
    names = [f"{1 + i % 2:03}.Bird/Bird_{i:04}.jpg" for i in range(6)]
    pictures(folder, *names)
    columns = dict(img_id=range(1, 7), img_filename=names, y=[0, 1] * 3, split=[0, 0, 1, 1, 2, 2], place=[0, 1, 1, 1, 1, 0])
    pd.DataFrame(columns | dict(place_filename="p.jpg") | change).to_csv(folder / "metadata.csv", index=False)
    return folder


def make_metashift(folder):
    pictures(folder, *(f"train/cat/cat({where})/{i}.jpg" for where in ("sofa", "bed") for i in range(10)))
    pictures(folder, *(f"train/dog/dog({where})/{i}.jpg" for where in ("bench", "bike") for i in range(10, 20)))
    pictures(folder, "test/cat/cat(shelf)/90.jpg", "test/dog/dog(shelf)/91.jpg", "test/dog/92.JPG")
    return folder


def make_cub(folder, **change):
    files = ["001.Black_footed_Albatross/a.jpg", "002.Laysan_Albatross/b.jpg", "002.Laysan_Albatross/c.jpg"]
    pictures(folder / "images", *files)
    tables = dict(
        images=files, image_class_labels=[1, 2, 2], train_test_split=[1, 1, 0], classes=["001.Black_footed_Albatross", "002.Laysan_Albatross"],
        bounding_boxes=["1.0 2.0 5.0 4.0", "0.0 0.0 9.0 8.0", "3.0 1.0 2.0 2.0"],
    )  # fmt: skip
    for name, values in (tables | change).items():
        (folder / f"{name}.txt").write_text("".join(f"{i} {value}\n" for i, value in enumerate(values, 1)))
    return folder


def make_imagenet9(folder):
    for variation in ("original", "mixed_same", "mixed_rand"):
        pictures(folder, *(f"{variation}/val/{i:02}_{name}/fg_{i}.JPEG" for i, name in enumerate(IMAGENET9)))
    return folder


def make_siim(folder):
    for name in ("train_set/0/a", "train_set/1/b", "full_test_set/0/c", "full_test_set/1/d", "robust_test_set/1/d", "robust_test_set/0/e"):
        (folder / f"{name}.dcm").parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.dcm").write_bytes(b"")
    pictures(folder, "all_masks/a.png", "all_masks/b.png", "all_masks/d.png")
    return folder


ALL = {waterbirds: make_waterbirds, metashift: make_metashift, cub: make_cub, imagenet9: make_imagenet9, siim_acr: make_siim}


@pytest.mark.parametrize("read", ALL, ids=lambda read: read.__name__)
def test_one_form_for_all(read, tmp_path):
    samples = read(ALL[read](tmp_path / "data"))
    table = samples.table
    assert tuple(table.columns[: len(COLUMNS)]) == COLUMNS and list(table.index) == list(range(len(samples)))
    assert all(Path(path).is_file() for path in table["path"]) and table["path"].is_unique
    assert [samples.classes[label] for label in table["label"]] == table["class_name"].tolist()
    assert table["split"].isin(["train", "val", "test"]).all() and table["group"].notna().all()
    assert all(mask is None or Path(mask).is_file() for mask in table["mask"])
    pd.testing.assert_frame_equal(table, read(str(tmp_path / "data")).table)  # a name does as well, and the order stays
    parts = [samples.of(split).table["path"].tolist() for split in table["split"].unique()]
    assert sorted(sum(parts, [])) == sorted(table["path"])


def test_paths_are_what_load_image_takes(tmp_path, vit):
    for path in cub(make_cub(tmp_path)).table["path"]:
        assert load_image(path, vit).shape == (3, 128, 128)


@pytest.mark.parametrize("read", ALL, ids=lambda read: read.__name__)
def test_other_folders_are_refused(read, tmp_path):
    with pytest.raises(FileNotFoundError, match="folder: .*nowhere does not exist"):
        read(tmp_path / "nowhere")
    pictures(tmp_path / "other", "holiday/1.jpg")
    with pytest.raises(FileNotFoundError, match=r"Looked for .*not there: .*It holds holiday/"):
        read(tmp_path / "other")
    ALL[read](tmp_path / "above" / "data")  # one folder too high, the usual mistake
    with pytest.raises(FileNotFoundError, match="It holds data/"):
        read(tmp_path / "above")


def test_waterbirds(tmp_path):
    samples = waterbirds(make_waterbirds(tmp_path))
    table = samples.table
    assert samples.classes == ("landbird", "waterbird") and repr(samples) == "Samples(Waterbirds, 2 classes, train 2, val 2, test 2)"
    assert table["background"].tolist() == ["land", "water", "water", "water", "water", "land"]
    assert table["group"].tolist()[-2:] == ["landbird, water", "waterbird, land"] and table["mask"].isna().all()
    with pytest.raises(ValueError, match="validation split of 2 pictures"):
        with_validation(samples)


def test_waterbirds_with_masks_of_cub(tmp_path):
    make_waterbirds(tmp_path / "birds")
    pictures(tmp_path / "masks", "001.Bird/Bird_0000.png")
    masks = waterbirds(tmp_path / "birds", tmp_path / "masks").table["mask"]
    assert masks[0] == str(tmp_path / "masks/001.Bird/Bird_0000.png") and masks[1:].isna().all()
    with pytest.raises(FileNotFoundError, match="masks: .* holds no mask of these pictures; looked for .*Bird_0000.png and 5 more"):
        waterbirds(tmp_path / "birds", tmp_path)


@pytest.mark.parametrize(
    "change, error, words",
    [
        (dict(y=2), ValueError, "y in metadata.csv should hold 0 to 1, got 2"),
        (dict(place="sea"), ValueError, "place in metadata.csv should hold 0 to 1, got sea"),
        (dict(split=[0, 1, 2, 3, 0, 1]), ValueError, "split in metadata.csv should hold 0 to 2, got 3"),
        (
            dict(img_filename=["gone.jpg"] * 6),
            FileNotFoundError,
            "6 of 6 pictures that metadata.csv lists are not there, the first: .*gone.jpg",
        ),
        (dict(img_filename=["001.Bird/Bird_0000.jpg"] * 6), ValueError, "Bird_0000.jpg stands in more than one split"),
    ],
)
def test_waterbirds_with_a_wrong_table(tmp_path, change, error, words):
    with pytest.raises(error, match=words):
        waterbirds(make_waterbirds(tmp_path, **change))


def test_waterbirds_without_a_column(tmp_path):
    make_waterbirds(tmp_path)
    pd.read_csv(tmp_path / "metadata.csv").drop(columns="place").to_csv(tmp_path / "metadata.csv", index=False)
    with pytest.raises(ValueError, match="metadata.csv has no column place; it has img_id, img_filename, y, split, place_filename"):
        waterbirds(tmp_path)


def test_metashift(tmp_path):
    table = metashift(make_metashift(tmp_path)).table
    counts = table.groupby(["split", "group"]).size()
    assert counts["train"].to_dict() == {"cat, bed": 10, "cat, sofa": 10, "dog, bench": 10, "dog, bike": 10}
    assert counts["test"].to_dict() == {"cat, shelf": 1, "dog": 1, "dog, shelf": 1}
    pictures(tmp_path, "train/cat/dog(bed)/1.jpg")
    with pytest.raises(ValueError, match=r"expected a name like cat\(sofa\)"):
        metashift(tmp_path)


def test_cub(tmp_path):
    samples = cub(make_cub(tmp_path))
    assert samples.classes == ("Black footed Albatross", "Laysan Albatross")
    assert samples.table["split"].tolist() == ["train", "train", "test"] and samples.table["label"].tolist() == [0, 1, 1]
    assert samples.table.loc[0, ["left", "top", "width", "height"]].tolist() == [1, 2, 5, 4] and samples.table["mask"].isna().all()
    pictures(tmp_path / "segmentations", "001.Black_footed_Albatross/a.png")
    assert cub(tmp_path).table["mask"][0].endswith("segmentations/001.Black_footed_Albatross/a.png")
    elsewhere = tmp_path / "waterbirds"
    (tmp_path / "images").rename(elsewhere)
    again = cub(tmp_path, images=elsewhere).table
    assert [Path(path).relative_to(elsewhere) for path in again["path"]] == [
        Path(f).relative_to(tmp_path / "images") for f in samples.table["path"]
    ]
    with pytest.raises(FileNotFoundError, match="not there: images"):
        cub(tmp_path)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(image_class_labels=[1, 2, 3]), "image_class_labels.txt should hold 1 to 2, got 3"),
        (dict(train_test_split=[1, 0]), "train_test_split.txt and images.txt in .* list different pictures"),
        (dict(bounding_boxes=[1, 2, 3]), "should hold lines of id, left, top, width, height; got 1 1"),
        (dict(images=[]), "should hold lines of id, file; got nothing"),
        (dict(images=["001.Black_footed_Albatross/a.jpg\n1 x.jpg"]), "has the id 1 twice"),
    ],
)
def test_cub_with_wrong_tables(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        cub(make_cub(tmp_path, **change))


def test_imagenet9(tmp_path):
    samples = imagenet9(make_imagenet9(tmp_path))
    assert samples.table.groupby("group")["label"].apply(list).tolist() == [list(range(9))] * 3
    with pytest.raises(ValueError, match="ImageNet-9 has no training pictures"):
        with_validation(samples)
    (tmp_path / "mixed_same/val/08_fish").rename(tmp_path / "mixed_same/val/8_fish")
    with pytest.raises(FileNotFoundError, match="mixed_same.*not there: 08_fish"):
        imagenet9(tmp_path)
    (tmp_path / "mixed_same/val/08_fish").mkdir()
    with pytest.raises(ValueError, match=r"08_fish holds no picture \(.jpg, .jpeg, .png\); it holds nothing"):
        imagenet9(tmp_path)


def test_classes_of_imagenet_in_nine(tmp_path):
    file = tmp_path / "in_to_in9.json"
    told = {str(i): (i * 7) % 10 - 1 for i in reversed(range(1000))}
    file.write_text(json.dumps(told))
    assert imagenet9_classes(file).tolist() == [(i * 7) % 10 - 1 for i in range(1000)]
    for text, words in [
        (json.dumps(told | {"5": 9}), "0 to 999 to -1 to 8"), (json.dumps({"0": 1}), "got 1 classes"), ("[1]", "does not map"), ("{", "does not map"),
    ]:  # fmt: skip
        file.write_text(text)
        with pytest.raises(ValueError, match=words):
            imagenet9_classes(file)
    with pytest.raises(FileNotFoundError, match="backgrounds_challenge"):
        imagenet9_classes(tmp_path / "none.json")


def test_siim_acr(tmp_path):
    make_siim(tmp_path)
    table = siim_acr(tmp_path).table
    assert [Path(path).stem for path in table["path"]] == ["a", "b", "c", "d"] and table["split"].tolist() == ["train"] * 2 + ["test"] * 2
    assert [mask and Path(mask).name for mask in table["mask"]] == ["a.png", "b.png", None, "d.png"]
    assert [Path(path).stem for path in siim_acr(tmp_path, "robust_test_set").of("test").table["path"]] == ["e", "d"]
    with pytest.raises(ValueError, match="test: there is no 'robust'. Choose from 'full_test_set', 'robust_test_set'"):
        siim_acr(tmp_path, "robust")
    (tmp_path / "train_set/1/b.dcm").rename(tmp_path / "train_set/1/b.png")
    with pytest.raises(ValueError, match=r"train_set/1 holds no picture \(.dcm\); it holds b.png"):
        siim_acr(tmp_path)


def test_no_validation_split_appears_by_itself(tmp_path):
    samples = metashift(make_metashift(tmp_path))
    with pytest.raises(ValueError, match="split: there is no 'val'.*'train', 'test'"):
        samples.of("val")
    split = with_validation(samples, 0.3, seed=5)
    before, after = samples.table, split.table
    pd.testing.assert_frame_equal(before.drop(columns="split"), after.drop(columns="split"))
    assert (after.loc[before["split"] == "test", "split"] == "test").all()  # the test set stays as it is
    assert set(split.of("val").table["path"]) <= set(samples.of("train").table["path"])
    assert not set(split.of("val").table["path"]) & set(split.of("test").table["path"])
    names = {one: {Path(path).name for path in split.of(one).table["path"]} for one in ("train", "val")}
    assert not names["train"] & names["val"]  # the same picture in cat(sofa) and cat(bed) goes to one side
    assert len(names["val"]) == 3 + 3  # of ten cats and ten dogs, each of which is in two folders
    assert (split.table["split"] == "val").sum() == 12
    shuffled = Samples(samples.name, before.sample(frac=1, random_state=0), samples.classes)
    assert set(with_validation(shuffled, 0.3, seed=5).of("val").table["path"]) == set(split.of("val").table["path"])
    assert set(with_validation(samples, 0.3, seed=6).of("val").table["path"]) != set(split.of("val").table["path"])
    for share, words in ((0, "share: must lie between 0 and 1"), (1, "share"), (0.01, "share: 0.01 of no group is a whole picture")):
        with pytest.raises(ValueError, match=words):
            with_validation(samples, share)


def test_samples_check_their_table(tmp_path):
    samples = metashift(make_metashift(tmp_path))
    with pytest.raises(ValueError, match="table: has no mask; a table of samples has path"):
        Samples("mine", samples.table.drop(columns="mask"), samples.classes)
    twice = pd.concat([samples.table, samples.of("train").table.assign(split="val")])
    with pytest.raises(ValueError, match="stands in more than one split"):
        Samples("mine", twice, samples.classes)
    with pytest.raises(AttributeError):
        samples.name = "other"


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.sampled_from("abc")), min_size=1, max_size=30))
def test_group_accuracy_by_hand(rows):
    labels, predictions, groups = zip(*rows)
    got = group_accuracy(labels, np.array(predictions), groups)
    by_hand = {}
    for label, prediction, group in rows:
        by_hand.setdefault(group, []).append(label == prediction)
    assert got.groups == tuple(sorted(by_hand)) and got.n.tolist() == [len(by_hand[group]) for group in got.groups]
    assert got.accuracy.tolist() == pytest.approx([sum(by_hand[group]) / len(by_hand[group]) for group in got.groups])
    assert got.mean == pytest.approx(sum(label == prediction for label, prediction, _ in rows) / len(rows))
    assert got.worst == pytest.approx(min(sum(right) / len(right) for right in by_hand.values())) and got.worst <= got.mean + 1e-12
    assert np.mean(by_hand[got.worst_group]) == pytest.approx(got.worst)


@pytest.mark.parametrize(
    "labels, predictions, groups, words",
    [
        ([], [], [], "above zero"),
        ([0, 1], [0], ["a", "b"], r"got shapes \(2,\), \(1,\) and \(2,\)"),
        ([0, 1], [0, 1], ["a"], "above zero"),
        ([0, 1], [[0.5, 0.5], [0.1, 0.9]], ["a", "b"], "predictions"),
        ([0, 1], [0, 1], ["a", None], "groups: picture 1 has no group"),
    ],
)
def test_group_accuracy_refuses(labels, predictions, groups, words):
    with pytest.raises(ValueError, match=words):
        group_accuracy(labels, predictions, groups)
