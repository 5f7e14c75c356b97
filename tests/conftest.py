"What several tests share: models, a picture, and folders of the repository."

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything is imported: what is not here fails at once

import numpy as np
import pytest
from PIL import Image

from attnbootreg import load_vit, make_scenes

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def root():
    return ROOT


@pytest.fixture(scope="session")
def data():
    return ROOT / "tests" / "data"


@pytest.fixture(scope="session")
def vit():
    "The embedded model."
    return load_vit(device="cpu")


@pytest.fixture(scope="session")
def scene():
    "A scene with an object and a square of noise, (3, 128, 128) in [0, 1]."
    return make_scenes(1, seed=3, noise=1.0).images[0]


@pytest.fixture(scope="session")
def picture():
    "A small color picture."
    yy, xx = np.mgrid[:60, :80]
    return Image.fromarray(np.stack([3 * xx, 4 * yy, 128 + 90 * np.sin(xx / 9)], -1).astype(np.uint8))
