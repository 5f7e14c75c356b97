"The fast path is the plain path: kernels, number formats, batches, memory."

import gc

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbootreg import Attention, Null, Score, attention_scores, kernels, load_image, load_vit, make_scenes, significance
from attnbootreg.batches import CPU_BUDGET, _LiveBytes, bytes_an_image, fitting_batch
from attnbootreg.kernels import FastKernels, attention, linear

sizes = st.integers(1, 40)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(st.lists(sizes, min_size=0, max_size=2), sizes, sizes, st.booleans(), st.booleans(), st.integers(0, 99))
def test_linear_is_pytorchs(batch, k, m, with_bias, strided, seed):
    x, weight = normal(seed, *batch, k), normal(seed + 1, m, k)
    if strided:  # a transposed weight and every second row of the input, as a slice of a model's tensors may be
        weight, x = normal(seed + 1, k, m).T, normal(seed, *batch, 2 * k)[..., ::2]
    bias = normal(seed + 2, m) if with_bias else None
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias), atol=1e-4, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 70),
    st.sampled_from([1, 9, 65, 1030]),
    st.sampled_from([4, 16]),
    st.integers(0, 99),
)
def test_attention_is_pytorchs(images, heads, queries, tokens, d, seed):
    query, key, value = normal(seed, images, heads, queries, d), *normal(seed + 1, 2, images, heads, tokens, d)
    query, key = query * 3, key * 3  # far from even
    with torch.no_grad():
        exact = F.scaled_dot_product_attention(*(tensor.double() for tensor in (query, key, value)))
        torch.testing.assert_close(attention(query, key, value).double(), exact, atol=1e-5, rtol=1e-4)
        short = attention(*(tensor.bfloat16() for tensor in (query, key, value)))
        plain = F.scaled_dot_product_attention(*(tensor.bfloat16() for tensor in (query, key, value)))
        assert (short.double() - exact).abs().mean() <= 1.5 * (plain.double() - exact).abs().mean() + 0.01


def test_gradients_masks_and_other_formats_stay_with_pytorch():
    x, weight = normal(0, 2, 5, 8), normal(1, 3, 8)
    assert linear(x, weight.clone().requires_grad_()).requires_grad
    assert linear(x.double(), weight.double()).dtype == torch.float64
    query, key, value = normal(2, 3, 1, 2, 1100, 8)
    mask = torch.ones(1100, 1100, dtype=torch.bool).tril()
    with torch.no_grad(), FastKernels():
        torch.testing.assert_close(
            F.scaled_dot_product_attention(query, key, value, attn_mask=mask),
            F.scaled_dot_product_attention(query, key, value, is_causal=True),
        )


@pytest.mark.parametrize("size", [64, 272])  # 65 and 1,157 tokens
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 0.1)])
def test_scores_without_onednn(monkeypatch, size, dtype, tolerance):
    model = timm.models.VisionTransformer(img_size=size, patch_size=8, embed_dim=48, depth=3, num_heads=3, qk_norm=True, init_values=0.1)
    vit, images = load_vit(model, dtype=dtype, device="cpu"), normal(0, 2, 3, size, size)
    fast = attention_scores(images, vit, heads="each")
    monkeypatch.setattr(kernels, "onednn_dtypes", frozenset)
    torch.testing.assert_close(fast.log(), attention_scores(images, vit, heads="each").log(), atol=tolerance, rtol=0)


def test_bfloat16_decides_as_float32():
    scenes, flips = make_scenes(20, seed=8), []
    for i, image in enumerate(scenes.images):
        kept = {}
        for dtype in ("float32", "bfloat16"):
            vit = load_vit(dtype=dtype, device="cpu")
            x = load_image(image, vit)
            scores = attention_scores(x, vit).numpy()
            kept[dtype] = scores, significance(scores, Null(n=20).scores(x, vit, Attention(), seed=i)).p <= 0.3
        assert np.corrcoef(*(np.log(scores).ravel() for scores, _ in kept.values()))[0, 1] >= 0.999
        flips.append((kept["float32"][1] != kept["bfloat16"][1]).mean())
    assert np.mean(flips) <= 0.01


def test_a_pass_leaves_nothing_behind(vit, scene):
    x = load_image(scene, vit)
    attention_scores(x, vit)
    gc.collect()
    gc.disable()  # what is not freed at once, but by the collector some day, would add up
    try:
        with _LiveBytes(*vit.model.parameters(), x) as counted:
            scores = attention_scores(x, vit)
        assert counted.peak > 100 * scores.nbytes and counted.live == scores.nbytes
    finally:
        gc.enable()


def test_memory_does_not_grow_with_the_null_images(vit, scene):
    x, peaks = load_image(scene, vit), {}
    for n in (20, 200):
        with _LiveBytes(*vit.model.parameters(), x) as counted:
            Null(n=n).scores(x, vit, Attention(), seed=0)  # the scores themselves are arrays, which are not counted
        peaks[n] = counted.peak
    assert peaks[200] <= 1.01 * peaks[20] <= 1.3 * CPU_BUDGET


def test_batches_fit_the_budget():
    last, first = Attention(), Attention(0)
    greedy = Score(lambda vit, x: last(vit, x) + torch.zeros(len(x), 2**20)[:, :1, None])
    small, large = (load_vit("vit_tiny_patch16_224", pretrained=False, img_size=size, device="cpu") for size in (64, 448))
    assert fitting_batch(last, small) > fitting_batch(last, large) >= 1
    assert fitting_batch(last, small) * bytes_an_image(last, small) <= CPU_BUDGET
    assert bytes_an_image(first, small) <= bytes_an_image(last, small)
    assert bytes_an_image(greedy, small) > 2**22 > bytes_an_image(last, small)  # counted on the score that is asked for
    assert fitting_batch(greedy, small) * 2**22 <= CPU_BUDGET


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "many", None])
def test_batch_size_is_checked(vit, scene, wrong):
    with pytest.raises(ValueError, match="batch_size: must be a whole number of at least 1"):
        Null(n=2).scores(load_image(scene, vit), vit, Attention(), batch_size=wrong)
