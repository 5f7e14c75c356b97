"The gallery shows the pictures that the pages store now, and each leads to where it was made."

import importlib.util
import re
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("gallery", ROOT / "tools" / "gallery.py")
gallery = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gallery)


def test_gallery_is_made_from_the_stored_pictures():
    text, found = gallery.gallery()
    assert len(found) >= 30
    assert (ROOT / "nbs" / "gallery.qmd").read_text() == text, "run python tools/gallery.py"
    assert {path.name for path in gallery.FOLDER.iterdir()} == set(found)
    for name in found:
        with Image.open(gallery.FOLDER / name) as image:
            assert max(image.size) <= gallery.WIDTH
    assert sum(path.stat().st_size for path in gallery.FOLDER.iterdir()) < 2e6


def test_pictures_have_words_and_lead_to_their_cells():
    text, found = gallery.gallery()
    items = re.findall(r"\[!\[([^\]]+)\]\(images/gallery/([^)]+)\)\]\(([^)#]+)(#[^)]*)?\)", text)
    assert [name for _, name, _, _ in items] == list(found)
    for alt, name, page, _ in items:
        assert len(alt) > 20 and (ROOT / "nbs" / page).exists()
        assert name.rsplit("_", 2)[1] in (ROOT / "nbs" / page).read_text()  # the cell that made it
