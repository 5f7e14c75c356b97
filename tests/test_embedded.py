"The embedded model: its attention keeps the objects of scenes, and noise that is put into them goes."

import numpy as np
import pytest

from attnbootreg import (
    Attention, Cuts, Null, attention_scores, coverage, inject_noise, load_image, make_scenes, roi_percentile, shrink, significance,
    square_mask, suppression_factor,
)  # fmt: skip

SEED = 2_000_000  # of scenes that nobody trained on


@pytest.fixture(scope="module")
def noisy_scenes(vit):
    "Scores, significance, and coverages of noise and object of 50 scenes with a square of noise."
    rows = []
    for i in range(50):
        scene = make_scenes(1, SEED, start=i)
        noise = square_mask(vit.img_size, seed=i, avoid=scene.masks[0])
        x = inject_noise(load_image(scene.images[0], vit), noise, seed=i)
        scores = attention_scores(x, vit).numpy()
        sig = significance(scores, Null(n=20).scores(x, vit, Attention(), seed=i))
        rows.append((scores, sig, coverage(noise, vit.grid), coverage(scene.masks[0], vit.grid)))
    return rows


@pytest.mark.parametrize("method, threshold, most", [("p", 0.3, 0.3), ("p", 0.05, 0.1), ("lfdr", 0.3, 0.15), ("q", 0.1, 0.15)])
def test_noise_goes_and_the_object_stays(noisy_scenes, method, threshold, most):
    before, after, kept = [], [], []
    for scores, sig, noise, thing in noisy_scenes:
        map = shrink(scores, sig, method, Cuts(**{method: threshold}))
        before.append(roi_percentile(scores, scores, noise))
        after.append(roi_percentile(map, scores, noise))
        kept.append((map * thing).sum() / (scores * thing).sum())
    assert suppression_factor(np.array(before), np.array(after))[0] <= most
    assert np.mean(kept) >= (0.9 if method == "p" else 0.5)


def test_noise_squares_are_not_all_alike(noisy_scenes):
    mean_z = np.array([(sig.z * noise).sum() / noise.sum() for _, sig, noise, _ in noisy_scenes])
    assert (np.abs(mean_z) <= 1).mean() >= 0.15
