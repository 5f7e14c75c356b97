"""How long a slider of the explorer takes to reach the picture: 50 moves at 61 x 61 patches, in a browser.

    python benchmarks/bench_explorer.py

From the key press to the first animation frame after the maps are drawn, so that time in JupyterLab, kernel and browser all
count. The model has random weights and one small block: a slider does not depend on it. Needs Chromium and Playwright.
"""

import os
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from shutil import which
from statistics import median

from playwright.sync_api import Page, sync_playwright

MOVES, TOKEN = 50, "explorer"
NOTEBOOK = """
from timm.models.vision_transformer import VisionTransformer
from attnbootreg import load_vit, make_scenes
from attnbootreg.widget import Explorer

vit = load_vit(VisionTransformer(img_size=488, patch_size=8, embed_dim=48, depth=1, num_heads=3, num_classes=2))
Explorer(vit, [make_scenes(1, size=488).images[0]])
"""
MOVE = """key => new Promise(done => {
    const root = document.querySelector(".attnbootreg"), start = performance.now();
    const watch = new MutationObserver(() => {
        watch.disconnect();
        requestAnimationFrame(() => done(performance.now() - start));
    });
    watch.observe(root, { attributeFilter: ["data-frame"] });
    document.querySelector(".noUi-handle").dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
})"""


def start(folder: Path) -> tuple[subprocess.Popen, str]:
    "JupyterLab on the notebook, in a folder of its own, and its address."
    import nbformat

    cell = nbformat.v4.new_code_cell(NOTEBOOK)
    nbformat.write(
        nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": {"name": "python3", "display_name": "python3"}}),
        folder / "bench.ipynb",
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    names = (
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_DATA_DIR",
        "JUPYTER_RUNTIME_DIR",
        "JUPYTERLAB_SETTINGS_DIR",
        "JUPYTERLAB_WORKSPACES_DIR",
        "IPYTHONDIR",
    )
    places = {name: str(folder / name.lower()) for name in names}
    options = ["--no-browser", "--allow-root", f"--port={port}", f"--IdentityProvider.token={TOKEN}"]
    command = [sys.executable, "-m", "jupyterlab", *options]
    server = subprocess.Popen(command, cwd=folder, env={**os.environ, **places}, stderr=subprocess.PIPE, text=True)
    next(line for line in server.stderr if "is running at" in line)
    threading.Thread(target=server.stderr.read, daemon=True).start()  # a full pipe would stop the server
    return server, f"http://127.0.0.1:{port}/doc/tree/bench.ipynb?token={TOKEN}"


def report(page: Page, state: str) -> None:
    "Move the slider to and fro, and print how long it took."
    times = [page.evaluate(MOVE, "ArrowLeft" if i % 2 else "ArrowRight") for i in range(MOVES)]
    kept = page.locator("[data-panel=p] .panel-note").inner_text().splitlines()[0]
    print(f"{state} ({kept} in the map p): {MOVES} moves, median {median(times):.0f} ms, worst {max(times):.0f} ms")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server, address = start(Path(folder))
        try:
            browser = playwright.chromium.launch(executable_path=which("chromium") or which("google-chrome"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 1700})
            page.goto(address)
            page.get_by_text("(ipykernel) | Idle").wait_for()
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
            page.locator(".attnbootreg[data-frame]").wait_for(timeout=120_000)
            report(page, "as it starts")
            page.locator("[data-panel=image] .frame").click(position={"x": 60, "y": 60})
            page.locator("thead th", has_text="sensitivity").wait_for(timeout=120_000)
            report(page, "with a square of noise")
            browser.close()
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
