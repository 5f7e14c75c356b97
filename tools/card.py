"Makes nbs/images/card.png, the picture that is shown where somebody links to the site: python tools/card.py"

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from attnbootreg import inject_noise, load_vit, make_scenes, regularize, square_mask

vit = load_vit("scenes-plain", device="cpu")
seed = 406  # the scene of the first page
scene = make_scenes(1, seed=seed)
noise = square_mask(vit.img_size, seed=seed, avoid=scene.masks[0])
res = regularize(inject_noise(scene.images[0], noise, seed=seed).clamp(0, 1), vit, seed=0)

card = Figure(figsize=(12, 6.3), dpi=100)  # 1200 x 630 pixels
FigureCanvasAgg(card)
card.text(0.05, 0.86, "attnbootreg", size=40, weight="bold", color="#1c2733")
card.text(0.05, 0.78, "Attention maps of vision transformers without the noise", size=21, color="#35618f")
panels = {"object and noise": res.image, "attention": res.scores, "more than chance": res.maps["q"]}
for i, (title, values) in enumerate(panels.items()):
    ax = card.add_axes((0.05 + 0.315 * i, 0.04, 0.27, 0.27 * 12 / 6.3))
    shown = values if values.ndim == 3 else np.ma.masked_equal(values, 0)
    ax.imshow(shown, cmap="viridis", vmin=0, vmax=res.scores.max(), interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.set_title(title, size=19, pad=8)
card.savefig(Path(__file__).parent.parent / "nbs" / "images" / "card.png")
