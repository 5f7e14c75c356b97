"The explorer as a person meets it: JupyterLab, a browser, a pointer. Pictures of each state are left in pytest's temporary folder."

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path

import pytest

try:
    from playwright.sync_api import expect, sync_playwright
except ImportError:
    sync_playwright = None

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None)
NEEDS = {"Chromium": CHROMIUM, "Playwright": sync_playwright, "JupyterLab": find_spec("jupyterlab")}
if missing := [name for name, there in NEEDS.items() if not there]:
    if os.environ.get("CI"):
        raise RuntimeError(f"in CI the explorer is tried in a browser, and there is no {' and no '.join(missing)}")
    pytest.skip(f"there is no {' and no '.join(missing)}", allow_module_level=True)

TOKEN = "explorer"
SECONDS = 1000  # of Playwright, which counts milliseconds


def lab_environment(folder):
    "All that Jupyter reads or writes lies in a folder of its own; no news, no trust database, no settings of the user."
    folders = (
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_DATA_DIR",
        "JUPYTER_RUNTIME_DIR",
        "JUPYTERLAB_SETTINGS_DIR",
        "JUPYTERLAB_WORKSPACES_DIR",
        "IPYTHONDIR",
    )
    places = {name: str(folder / name.lower()) for name in folders}
    page = folder / "jupyter_config_dir" / "labconfig" / "page_config.json"
    page.parent.mkdir(parents=True)
    page.write_text(json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}))
    return {**os.environ, **places, "OMP_NUM_THREADS": "1"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


SIGNED = """
import torch
from attnbootreg import Cuts, Explorer, Null, Score

def contrast(vit, x):
    "How much brighter each patch is than its image; zero in the left column."
    light = torch.nn.functional.avg_pool2d(x.mean(1), vit.patch_size)
    return (light - light.mean((1, 2), keepdim=True)) * (torch.arange(light.shape[-1]) > 0)

explorer = Explorer(score=Score(contrast, signed=True), null=Null(n=4), cuts=Cuts(z=1.0))
explorer
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    "JupyterLab on the notebook that `attnbootreg explore` writes, explorer.ipynb, and one of a signed score, signed.ipynb."
    import nbformat

    folder, port = tmp_path_factory.mktemp("lab"), free_port()
    command = Path(sys.executable).parent / "attnbootreg"
    subprocess.run([command, "explore", "--no-start", "--out", folder / "explorer.ipynb"], check=True, capture_output=True)
    signed = nbformat.read(folder / "explorer.ipynb", 4)
    signed.cells[0].source = SIGNED
    nbformat.write(signed, folder / "signed.ipynb")
    options = ["--no-browser", "--allow-root", f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}"]
    command = [sys.executable, "-m", "jupyterlab", *options]
    server = subprocess.Popen(command, cwd=folder, env=lab_environment(folder), stderr=subprocess.PIPE, text=True)
    try:
        said = list(takewhile(lambda line: "is running at" not in line, server.stderr))
        assert server.poll() is None, "".join(said)
        threading.Thread(target=server.stderr.read, daemon=True).start()  # a full pipe would stop the server
        yield f"http://127.0.0.1:{port}/doc/tree/{{}}?token={TOKEN}"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def opened(browser, address):
    "A notebook, with its cell run and the first result drawn."
    page = browser.new_page(viewport={"width": 1280, "height": 1700})
    page.set_default_timeout(30 * SECONDS)
    expect.set_options(timeout=30 * SECONDS)
    page.goto(address)
    page.get_by_text("(ipykernel) | Idle").wait_for()  # without a kernel, JupyterLab would ask for one
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.locator(".attnbootreg[data-frame]").wait_for(timeout=120 * SECONDS)  # the kernel imports PyTorch first
    return page


@pytest.fixture(scope="module")
def page(address, browser):
    "The notebook of the command line."
    return opened(browser, address.format("explorer.ipynb"))


@pytest.fixture
def shot(page, tmp_path):
    "Take a picture of the widget, for those who look."
    return lambda name: page.locator(".jp-OutputArea-output").last.screenshot(path=tmp_path / f"{name}.png")


def frame(page):
    return int(page.locator(".attnbootreg").get_attribute("data-frame"))


def redrawn(page, before):
    "Wait until something newer is drawn."
    page.wait_for_function("before => Number(document.querySelector('.attnbootreg').dataset.frame) > before", arg=before)


def pixels(page, name):
    return page.locator(f"[data-panel={name}] canvas").evaluate("canvas => canvas.toDataURL()")


def note(page, name):
    return page.locator(f"[data-panel={name}] .panel-note").inner_text()


def upload(page, path):
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload a picture").click()
    chooser.value.set_files(path)


def idle(page):
    expect(page.get_by_text("idle", exact=True)).to_be_visible()


def test_a_slider_changes_the_map(page, shot):
    shot("start")
    before, kept, drawn, untouched = frame(page), note(page, "p"), pixels(page, "p"), pixels(page, "lfdr")
    handle = page.locator(".noUi-handle").first
    handle.focus()
    for _ in range(20):
        handle.press("ArrowLeft")
    expect(page.locator("[data-panel=p] .panel-title")).to_have_text("p ≤ 0.2")
    redrawn(page, before)
    assert note(page, "p") != kept and pixels(page, "p") != drawn and pixels(page, "lfdr") == untouched
    shot("slider")


def test_hovering_reads_all_maps(page, shot):
    panel = page.locator("[data-panel=lfdr] .frame")
    patch = panel.bounding_box()["width"] / 16
    panel.hover(position={"x": 12.5 * patch, "y": 5.5 * patch})
    readout = page.locator(".readout")
    expect(readout).to_contain_text("row 6, column 13")
    for stat in ("score", "z", "p", "q", "lfdr"):
        expect(readout.locator(f"[data-stat={stat}]")).to_have_text(re.compile(rf"{stat} -?\d"))
    assert page.locator(".cursor:visible").count() == 8
    shot("hover")
    page.locator("[data-panel=image] .frame").focus()
    page.keyboard.press("ArrowUp")
    expect(readout).to_contain_text("row 5, column 13")


def test_colors_and_opacity_stay_in_the_browser(page, shot):
    before, viridis = frame(page), pixels(page, "scores")
    page.get_by_label("Colors").select_option("magma")
    magma = pixels(page, "scores")
    page.get_by_label("Overlay opacity").fill("1")
    assert len({viridis, magma, pixels(page, "scores")}) == 3 and frame(page) == before
    shot("colors")
    page.get_by_label("Colors").select_option("viridis")
    page.get_by_label("Overlay opacity").fill("0.75")


def test_a_click_puts_noise_there(page, shot):
    before, clean = frame(page), pixels(page, "image")
    page.locator("[data-panel=image] .frame").click(position={"x": 30, "y": 30})
    redrawn(page, before)
    assert pixels(page, "image") != clean and page.locator(".square:visible").count() == 8
    for name in ("suppression D", "sensitivity", "specificity"):
        expect(page.locator("thead th", has_text=name)).to_be_visible()
    expect(page.locator("tbody tr", has_text="scores").locator("td").nth(2)).to_have_text("100 %")
    expect(page.locator("pre", has_text="inject_noise")).to_contain_text("square_mask(vit.img_size, side=26, at=[(")
    idle(page)
    shot("noise")
    before = frame(page)
    page.get_by_role("button", name="Remove noise").click()
    redrawn(page, before)
    assert pixels(page, "image") == clean and not page.locator(".square:visible").count()


def test_a_long_run_is_cancelled(page, shot):
    idle(page)
    before, kept = frame(page), pixels(page, "p")
    B = page.get_by_label("B", exact=True)
    B.fill("5000")
    B.press("Enter")
    expect(page.get_by_text("of 80000 null images", exact=False).first).to_be_visible()
    shot("running")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".status")).to_have_text("Cancelled. What is shown is the result from before.")
    assert frame(page) == before and pixels(page, "p") == kept
    expect(B).to_have_value("4")
    shot("cancelled")


def test_a_bad_picture_is_told_in_words(page, shot, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    kept = pixels(page, "p")
    upload(page, tmp_path / "notes.txt")
    expect(page.locator(".failed")).to_have_text("Error: image: 'notes.txt' is not a picture that Pillow can read (or is empty)")
    assert pixels(page, "p") == kept and not page.locator("text=Traceback").count()
    shot("error")


def test_a_picture_is_uploaded(page, shot, tmp_path, picture):
    picture.save(tmp_path / "mine.png")
    before = frame(page)
    upload(page, tmp_path / "mine.png")
    redrawn(page, before)
    expect(page.locator(".failed")).to_be_hidden()
    expect(page.get_by_label("image", exact=True)).to_have_value("mine.png")
    shot("uploaded")


def test_files_are_saved(page, tmp_path):
    name = Path(page.get_by_label("image", exact=True).input_value()).stem
    for label, ending in (("Save figure (PNG)", "png"), ("Save arrays (npz)", "npz")):
        with page.expect_download() as download:
            page.get_by_role("button", name=label).click()
        assert download.value.suggested_filename == f"{name}.{ending}"
        download.value.save_as(tmp_path / f"saved.{ending}")
    assert (tmp_path / "saved.png").read_bytes()[:4] == b"\x89PNG" and (tmp_path / "saved.npz").read_bytes()[:2] == b"PK"


def test_every_control_has_a_name(page):
    for slider in ("p ≤", "q ≤", "lfdr ≤", "z ≥", "Overlay opacity"):
        expect(page.get_by_role("slider", name=slider, exact=True)).to_be_visible()
    for kind in ("combobox", "spinbutton", "slider", "button", "img"):
        for one in page.locator(".attnbootreg-explorer").get_by_role(kind).all():
            assert re.search(r"^- \S*" + kind + r' "', one.aria_snapshot()), one.evaluate("node => node.outerHTML")


def test_a_head_is_shown_without_a_run(page, shot):
    idle(page)
    before, mean = frame(page), pixels(page, "scores")
    page.get_by_label("head", exact=True).select_option("head 1")
    redrawn(page, before)
    assert pixels(page, "scores") != mean
    expect(page.locator("[data-panel=scores] .panel-title")).to_have_text("scores: head 1")
    expect(page.locator("pre", has_text="regularize")).to_contain_text("score=Attention(heads=1)")
    shot("head")


def test_it_fits_a_phone(page, shot):
    page.set_viewport_size({"width": 390, "height": 2600})
    expect(page.locator("[data-panel=p] canvas")).to_be_visible()
    shot("phone")
    inside = page.locator(".attnbootreg").bounding_box()
    for one in page.locator(".attnbootreg .panel").all():
        box = one.bounding_box()
        assert inside["x"] - 1 <= box["x"] and box["x"] + box["width"] <= inside["x"] + inside["width"] + 1


def color_at(page, name, row, column):
    "Red, green and blue of a panel in the middle of a patch."
    read = "(canvas, [y, x]) => [...canvas.getContext('2d').getImageData(x * canvas.width, y * canvas.height, 1, 1).data]"
    return page.locator(f"[data-panel={name}] canvas").evaluate(read, [(row + 0.5) / 16, (column + 0.5) / 16])[:3]


def test_signed_scores_have_diverging_colors(browser, address, tmp_path):
    page = opened(browser, address.format("signed.ipynb"))
    page.get_by_label("Overlay opacity").fill("1")
    expect(page.locator("[data-panel=z] .panel-title")).to_have_text("|z| ≥ 1")
    expect(page.get_by_role("slider", name="|z| ≥", exact=True)).to_be_visible()
    assert page.locator(".histograms svg").first.locator(".mark").count() == 2
    for name in ("layer", "map"):
        expect(page.get_by_label(name, exact=True)).to_be_disabled()
    seen = set()
    panel = page.locator("[data-panel=scores] .frame")
    size = panel.bounding_box()["width"] / 16
    for column in range(0, 16, 3):
        panel.hover(position={"x": (column + 0.5) * size, "y": 6.5 * size})
        score = float(page.locator("[data-stat=score]").inner_text().split()[-1])
        red, _, blue = color_at(page, "scores", 6, column)
        seen.add(sign := (score > 0) - (score < 0))
        assert abs(score) < 0.05 or (red > blue) == (sign > 0), f"column {column}: score {score}, red {red}, blue {blue}"
    assert {-1, 0, 1} <= seen and len(set(color_at(page, "scores", 6, 0))) == 1  # zero is the gray picture
    page.get_by_label("Colors").select_option("PuOr_r")
    expect(page.locator(".scale")).to_contain_text("(0: no color)")
    page.locator(".jp-OutputArea-output").last.screenshot(path=tmp_path / "signed.png")
    page.close()
