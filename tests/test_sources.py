"Pictures wherever they are: the same pixels give the same rows."

import functools
import http.server
import io
import tarfile
import threading
import zipfile

import fsspec
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from attnbootreg import Source, Sources, Study, load_study, run_study
from attnbootreg.sources import list_sources, read_bytes, read_source

NAMES = ("cats/0.png", "cats/1.png", "dogs/2.png")
STUDY = Study(null=1, recipe="calibrated")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    "Three pictures in two folders."
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name in NAMES:
        (root / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(root / name)
    return root


@pytest.fixture(scope="module")
def wanted(vit, pictures, tmp_path_factory):
    return rows_of(pictures, vit, tmp_path_factory.mktemp("wanted"))


def rows_of(images, vit, out):
    "What was measured, by the pictures' order."
    run_study(images, vit, out, STUDY, progress=False)
    table = load_study(out)
    assert table["error"].isna().all() and len(table) == len(NAMES), table["error"].tolist()
    return table.drop(columns=["image", "category", "seconds", "seconds_forward"])


def shard(pictures, path):
    with tarfile.open(path, "w") as tar:
        for i, name in enumerate(NAMES):
            tar.add(pictures / name, f"{i}.png")
            header = tarfile.TarInfo(f"{i}.cls")
            header.size = 1
            tar.addfile(header, io.BytesIO(b"7"))
    return path


def archive(pictures, path):
    with zipfile.ZipFile(path, "w") as file:
        for name in NAMES:
            file.write(pictures / name, name)
    return path


class Labels:
    def int2str(self, number):
        return ("cats", "dogs")[number]


class Hub:
    "As a dataset of Hugging Face, whose pictures are decoded or bytes."

    features = {"label": Labels()}

    def __init__(self, pictures, decode):
        self.pictures, self.decode = pictures, decode

    def __len__(self):
        return len(NAMES)

    def __getitem__(self, i):
        path = self.pictures / NAMES[i]
        return {"image": Image.open(path) if self.decode else {"bytes": path.read_bytes(), "path": None}, "label": i // 2}


def image_folder(pictures):
    from torchvision.datasets import ImageFolder

    return ImageFolder(pictures)


def in_memory(pictures):
    fsspec.filesystem("memory").put(f"{pictures}/", "memory://pets/", recursive=True)
    return "memory://pets"


WAYS = {
    "pattern": lambda root, tmp: root / "*" / "*.png",
    "list": lambda root, tmp: [root / name for name in NAMES],
    "iterator": lambda root, tmp: (root / name for name in NAMES),
    "local URL": lambda root, tmp: f"file://{root}",
    "memory": lambda root, tmp: in_memory(root),
    "pattern in memory": lambda root, tmp: f"{in_memory(root)}/*/*.png",
    "zip": lambda root, tmp: archive(root, tmp / "pets.zip"),
    "pattern in a zip": lambda root, tmp: f"zip://*/*.png::{archive(root, tmp / 'pets.zip')}",
    "shard": lambda root, tmp: shard(root, tmp / "pets-000.tar"),
    "shards": lambda root, tmp: shard(root, tmp / "pets-000.tar").parent / "pets-{000..000}.tar",
    "torchvision": lambda root, tmp: image_folder(root),
    "Hugging Face": lambda root, tmp: Hub(root, True),
    "Hugging Face, not decoded": lambda root, tmp: Hub(root, False),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_pixels_give_the_same_rows(vit, pictures, wanted, tmp_path, way):
    images = WAYS[way](pictures, tmp_path)
    pd.testing.assert_frame_equal(rows_of(images, vit, tmp_path / "out"), wanted, rtol=1e-5)


@pytest.fixture(scope="module")
def server(pictures):
    "Pictures, a table and a shard behind a URL; the server knows no ranges."
    shard(pictures, pictures / "pets.tar")
    pd.DataFrame(dict(path=[*NAMES])).to_csv(pictures / "list.csv", index=False)
    handler = functools.partial(Quiet, directory=pictures)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as one:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{one.server_port}"
        one.shutdown()
    for name in ("pets.tar", "list.csv"):
        (pictures / name).unlink()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.mark.parametrize("end", ["", "/list.csv", "/pets.tar"])
def test_a_web_server(vit, server, wanted, tmp_path, end):
    pytest.importorskip("aiohttp")
    pd.testing.assert_frame_equal(rows_of(server + end, vit, tmp_path / "out"), wanted, rtol=1e-5)


def test_names_and_categories(pictures, tmp_path):
    shard(pictures, tmp_path / "pets.tar")
    found = {way: [(one.name, one.category) for one in Sources(WAYS[way](pictures, tmp_path))] for way in ("memory", "zip", "local URL")}
    assert all(one == [(name, name.partition("/")[0]) for name in NAMES] for one in found.values())
    assert [(one.name, one.category) for one in Sources(tmp_path / "pets.tar")][1] == ("pets/1.png", "7")
    assert [one.name for one in Sources(Hub(pictures, True), limit=2)] == ["0", "1"]
    assert read_bytes(list_sources(tmp_path / "pets.tar")[2].path) == (pictures / NAMES[2]).read_bytes()


def test_what_is_listed_when(pictures, tmp_path):
    table = tmp_path / "list.csv"
    table.write_text("path\n" + "".join(f"{i}.png\n" for i in range(1000)))
    assert Sources(table).total() == 1000 and next(iter(Sources(table))).name == "0.png"
    assert Sources(pictures).total() == 3 and Sources(pictures, limit=2).total() == 2
    assert Sources("memory://pets").total() is None and Sources(iter(["a.png"])).total() is None
    assert Sources("scenes", 5).total() == 5 and Sources(Hub(pictures, True)).total() == 3


def test_what_cannot_be_read_says_where_it_is(vit, tmp_path):
    fsspec.filesystem("memory").pipe_file("/broken/a.png", b"no picture")
    with pytest.raises(ValueError, match="image: 'memory:///broken/a.png': its content is not a picture"):
        read_source(list_sources("memory://broken")[0], vit)
    with pytest.raises(FileNotFoundError):
        read_source(Source("b.png", "", "memory://broken/b.png"), vit)
    with pytest.raises(ValueError, match="images: item 0 has no key 'image', it has 'text'"):
        read_source(Source("0", "", "item 0"), vit, dataset=[{"text": "a"}])
    with pytest.raises(FileNotFoundError, match="images: there is no table 'memory://none.csv'"):
        list_sources("memory://none.csv")
