"Relevance maps: each against autograd on a model that is written out here, and what must hold for all of them."

import copy
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from types import MethodType

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models import VisionTransformer, VisionTransformerDistilled
from torch import nn

from attnbootreg import (
    CDAM, Captum, Concept, GradCAM, InputGradient, LeGrad, Null, PytorchGradCAM, Regularized, Relevance, Rollout, Study, load_image,
    load_study, load_vit, make_scenes, regularize, run_study,
)  # fmt: skip
from attnbootreg.adapters import blocks_of
from attnbootreg.batches import _LiveBytes, bytes_an_image, fitting_batch
from attnbootreg.method import _title
from attnbootreg.scores import score_maps, settled

OF_CLASS = {"CDAM": CDAM, "GradCAM": GradCAM, "Relevance": Relevance, "LeGrad": LeGrad, "InputGradient": InputGradient}
MODELS = {
    "class token": {},
    "registers": dict(reg_tokens=4),
    "rectangle, qk norm": dict(img_size=(32, 48), qk_norm=True, reg_tokens=2, no_embed_class=True),
    "layer scale": dict(init_values=0.5),
    "average pooling": dict(class_token=False, global_pool="avg"),
    "average pooling beside a class token": dict(global_pool="avg"),
    "distilled": dict(distilled=True),
}
TARGET = 2


def small(distilled=False, **options):
    "Random weights, whose attention is far from even, and a head that tells classes apart."
    options = {**dict(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=5), **options}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = (VisionTransformerDistilled if distilled else VisionTransformer)(**options)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "head" in name:
                    weight.normal_()
                elif weight.ndim == 2:
                    weight.mul_(6 if re.search(r"qkv", name) else 2)
    return model.eval()


def images(model, n=2):
    return torch.randn(n, 3, *model.patch_embed.img_size, generator=torch.Generator().manual_seed(1))


# ---- the model written out, in float64


class Written:
    """A timm model in plain formulas. Keeps the attention weights, what enters each attention, and the tokens after each block.

    `change` is given (block, what, tensor), what being "weights" or "entering", and gives what is used instead.
    """

    def __init__(self, model, x, change=lambda block, what, tensor: tensor):
        self.model = copy.deepcopy(model).double()
        self.weights, self.entering, self.after = [], [], []
        tokens = self.model.norm_pre(self.model._pos_embed(self.model.patch_embed(x.double())))
        for i, block in enumerate(self.model.blocks):
            entering = change(i, "entering", block.norm1(tokens))
            self.entering.append(entering)
            tokens = tokens + block.ls1(self.attention(i, block.attn, entering, change))
            tokens = tokens + block.ls2(block.mlp(block.norm2(tokens)))
            self.after.append(tokens)
        self.logits = self.tail(tokens)

    def attention(self, i, attn, entering, change):
        q, k, v = attn.qkv(entering).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        logits = attn.q_norm(q) @ attn.k_norm(k).mT * attn.head_dim**-0.5
        weights = change(i, "weights", logits.exp() / logits.exp().sum(-1, keepdim=True))
        self.weights.append(weights)
        return attn.proj((weights @ v).transpose(1, 2).flatten(2))

    def tail(self, tokens):
        return self.model.forward_head(self.model.norm(tokens))

    def gradients(self, values, sources):
        return torch.autograd.grad(values.sum(), sources)

    def on_grid(self, values):
        return values[:, self.model.num_prefix_tokens :].unflatten(-1, self.model.patch_embed.grid_size)


def as_written(score, model, x):
    "The map of a score, by the formulas of its paper; autograd does the rest."
    one = Written(model, x)
    f, prefix = one.logits[:, TARGET], model.num_prefix_tokens
    if isinstance(score, CDAM):
        (gradient,) = one.gradients(f, [one.entering[-1]])
        return one.on_grid((one.entering[-1] * gradient).sum(-1))
    if isinstance(score, GradCAM):
        tokens = one.entering[score.layer]
        if score.layer % len(one.entering) < len(one.entering) - 1:  # the residual stream is held fixed
            cut = Written(model, x, lambda i, what, t: t.detach().requires_grad_() if (i, what) == (score.layer, "entering") else t)
            tokens, f = cut.entering[score.layer], cut.logits[:, TARGET]
        (gradient,) = one.gradients(f, [tokens])
        alpha = gradient[:, prefix:].mean(1)
        return one.on_grid(torch.einsum("nd,nid->ni", alpha, tokens).clamp(min=0))
    if isinstance(score, Relevance):
        shared = [(A * g).clamp(min=0).mean(1) for A, g in zip(one.weights, one.gradients(f, one.weights))]
        R = torch.eye(shared[0].shape[-1], dtype=torch.float64)
        for A in shared:
            R = R + A @ R
        return one.on_grid(R[:, read_by(model)].mean(1))
    if isinstance(score, LeGrad):
        total = 0
        for A, tokens in list(zip(one.weights, one.after))[-(score.layers or 99) :]:
            s = one.tail(tokens.mean(1, keepdim=True).expand_as(tokens))[:, TARGET]
            (gradient,) = torch.autograd.grad(s.sum(), A, retain_graph=True)
            total = total + gradient.clamp(min=0).mean((1, 2))
        return one.on_grid(total)
    raise AssertionError(score)


def read_by(model):
    "The tokens that the head reads."
    if model.global_pool == "avg":
        return slice(model.num_prefix_tokens, None)
    return [0, 1] if hasattr(model, "head_dist") else [0]


def close(ours, want, tolerance=1e-4):
    "To a ten-thousandth of the largest value."
    torch.testing.assert_close(ours.double(), want.double(), atol=tolerance * float(want.abs().max()), rtol=0)


def test_the_written_model_is_the_model():
    for options in MODELS.values():
        model = small(**options)
        torch.testing.assert_close(
            Written(model, images(model)).logits, copy.deepcopy(model).double()(images(model).double()), atol=1e-8, rtol=1e-8
        )


def as_torchvision(model):
    "The same model, made of `nn.MultiheadAttention`."
    theirs = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=3, num_heads=3, hidden_dim=48, mlp_dim=192, num_classes=5
    )
    names = [
        (r"cls_token", "class_token"), (r"pos_embed", "encoder.pos_embedding"), (r"patch_embed\.proj", "conv_proj"), (r"^norm\.", "encoder.ln."),
        (r"blocks\.", "encoder.layers.encoder_layer_"), (r"norm(?=\d)", "ln_"), (r"attn\.qkv\.", "self_attention.in_proj_"),
        (r"attn\.proj", "self_attention.out_proj"), (r"fc1", "0"), (r"fc2", "3"), (r"^head", "heads.head"),
    ]  # fmt: skip
    state = {}
    for name, weight in model.state_dict().items():
        for ours, their in names:
            name = re.sub(ours, their, name)
        state[name] = weight
    theirs.load_state_dict(state)
    return theirs.eval()


def without_heads(model):
    "The same model of one head, whose attention has no axis of heads."

    def forward(attn, x, **options):
        return attn.proj(nn.functional.scaled_dot_product_attention(*attn.qkv(x).chunk(3, -1)))

    model = copy.deepcopy(model)
    for block in model.blocks:
        block.attn.forward = MethodType(forward, block.attn)
    return model


@pytest.mark.parametrize("other, heads", [(as_torchvision, 3), (without_heads, 1)])
def test_other_forms_of_the_same_model_give_the_same_maps(other, heads):
    model = small(num_heads=heads)
    vit, x = load_vit(model, device="cpu"), images(model)
    again = load_vit(other(model), device="cpu", **({} if heads == 3 else dict(patch_size=8, img_size=32, prefix=1)))
    assert (again.layers, again.prefix) == (3, 1)
    for score in [*SCORES, InputGradient(TARGET)]:
        close(score(again, x), score(vit, x))


def test_blocks_that_put_tokens_first_are_refused_by_legrad():
    class Turned(nn.Module):
        "Tokens and images change places; a block between is as it was."

        def __init__(self, inner=None):
            super().__init__()
            self.inner = inner

        def forward(self, tokens, **options):
            turned = tokens.transpose(0, 1)
            return turned if self.inner is None else self.inner(turned).transpose(0, 1)

    model = small()
    model.blocks = nn.Sequential(*map(Turned, model.blocks))
    model.norm_pre, model.norm = Turned(), nn.Sequential(Turned(), model.norm)
    close(CDAM(TARGET)(load_vit(model, device="cpu"), images(model)), CDAM(TARGET)(load_vit(small(), device="cpu"), images(model)))
    with pytest.raises(ValueError, match=re.escape("block 0 gives (17, 2, 48) for 2 images")):
        LeGrad(TARGET)(load_vit(model, device="cpu"), images(model))


SCORES = [
    CDAM(TARGET),
    GradCAM(TARGET),
    GradCAM(TARGET, layer=0),
    GradCAM(TARGET, layer=1),
    Relevance(TARGET),
    LeGrad(TARGET),
    LeGrad(TARGET, layers=2),
]


@pytest.mark.parametrize("score", SCORES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_formulas(name, score):
    model = small(**MODELS[name])
    x = images(model)
    maps = score(load_vit(model, device="cpu"), x)
    want = as_written(score, model, x).detach()
    assert want.abs().max() > 1e-4
    close(maps, want)
    assert not maps.requires_grad and (score.signed or (maps >= 0).all())


@pytest.mark.parametrize("name", MODELS)
def test_input_gradient_is_that_of_the_pixels(name):
    model = small(**MODELS[name])
    x = images(model)
    pixels = x.double().requires_grad_()
    (gradient,) = torch.autograd.grad(copy.deepcopy(model).double()(pixels)[:, TARGET].sum(), pixels)
    h, w = model.patch_embed.grid_size
    want = (pixels * gradient).detach().unflatten(2, (h, 8)).unflatten(4, (w, 8)).sum((1, 3, 5))
    close(InputGradient(TARGET)(load_vit(model, device="cpu"), x), want)


# ---- rollout


@pytest.mark.parametrize("name", MODELS)
def test_rollout_is_the_product(name):
    model = small(**MODELS[name])
    x, vit = images(model), load_vit(model, device="cpu")
    weights = [one.detach().mean(1).numpy() for one in Written(model, x).weights]
    for i in range(len(x)):
        R = np.eye(weights[0].shape[-1])
        for one in weights:
            R = 0.5 * (one[i] + np.eye(len(R))) @ R
        np.testing.assert_allclose(R.sum(1), 1)
        for row, query in enumerate(vit.tokens):
            close(Rollout(query)(vit, x)[i].flatten(), torch.from_numpy(R[row, vit.prefix :]))
        close(Rollout("mean")(vit, x)[i].flatten(), torch.from_numpy(R[vit.prefix :, vit.prefix :].mean(0)))


def test_rollout_of_uniform_attention_is_known():
    model = small(depth=4, reg_tokens=1)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.zero_()
    n, L = 2 + 16, 4
    maps = Rollout("register:0")(load_vit(model, device="cpu"), images(model))
    torch.testing.assert_close(maps, torch.full((2, 4, 4), (1 - 2.0**-L) / n))
    patch = Rollout((1, 2))(load_vit(model, device="cpu"), images(model))
    torch.testing.assert_close(patch[:, 1, 2], torch.full((2,), 2.0**-L + (1 - 2.0**-L) / n))


# ---- finite differences and closed forms


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 15), st.sampled_from(["class token", "registers", "average pooling"]), st.integers(0, 4))
def test_cdam_is_what_scaling_a_token_does(patch, name, target):
    model = small(**MODELS[name])
    x, token, step = images(model, 1), model.num_prefix_tokens + patch, 1e-4

    def scaled(by, which):
        def change(i, what, tensor):
            if (i, what) != (2, "entering"):
                return tensor
            scale = torch.ones(tensor.shape[1], 1, dtype=tensor.dtype)
            scale[which] = by
            return tensor * scale

        with torch.no_grad():
            return Written(model, x, change).logits[0, target]

    vit = load_vit(model, device="cpu")
    map = CDAM(target)(vit, x)[0].flatten().double()
    slope = (scaled(1 + step, token) - scaled(1 - step, token)) / (2 * step)
    assert map[patch] == pytest.approx(float(slope), abs=1e-4 * float(map.abs().max()))
    if not model.num_prefix_tokens:  # otherwise prefix tokens have a share of it
        whole = (scaled(1 + step, slice(None)) - scaled(1 - step, slice(None))) / (2 * step)
        assert map.sum() == pytest.approx(float(whole), abs=1e-4 * float(map.abs().sum()))


@pytest.mark.parametrize("name", ["class token", "registers", "average pooling"])
def test_gradients_of_attention_are_what_changing_a_weight_does(name):
    "LeGrad with one block, and relevance with one, from differences of single weights."
    model = small(**MODELS[name], depth=1, img_size=16)
    x, step = images(model, 1), 1e-4
    one = Written(model, x)
    heads, T = one.weights[0].shape[1:3]
    by_logit, by_mean = torch.zeros(heads, T, T), torch.zeros(heads, T, T)
    with torch.no_grad():
        for place in np.ndindex(heads, T, T):
            ends = []
            for sign in (1, -1):
                other = Written(model, x, lambda i, what, t: t + sign * step * single(t, place) if what == "weights" else t)  # noqa: B023
                ends.append(
                    (other.logits[0, TARGET], other.tail(other.after[0].mean(1, keepdim=True).expand_as(other.after[0]))[0, TARGET])
                )
            by_logit[place], by_mean[place] = ((up - down) / (2 * step) for up, down in zip(*ends))
    vit = load_vit(model, device="cpu")
    A = one.weights[0][0].detach()
    closed = (A * by_logit).clamp(min=0).mean(0)[read_by(model)].mean(0)  # rows of R = I + A without the identity
    if model.global_pool == "avg":
        closed = closed + 1 / T
    close(Relevance(TARGET)(vit, x), one.on_grid(closed[None]))
    close(LeGrad(TARGET)(vit, x), one.on_grid(by_mean.clamp(min=0).mean((0, 1))[None]))


def single(tensor, place):
    "One at a place of the first image."
    out = torch.zeros_like(tensor)
    out[(0, *place)] = 1
    return out


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(-20, 20).map(lambda tenths: tenths / 10), min_size=2, max_size=2))
def test_cdam_and_input_gradient_are_linear_in_the_target(scales):
    model = small(reg_tokens=2)
    vit, x = load_vit(model, device="cpu"), images(model)
    with torch.no_grad():
        vectors = vit.model.head.weight[:2]
    mixed = sum(scale * vector for scale, vector in zip(scales, vectors))
    if not mixed.any():
        return
    for kind in (CDAM, InputGradient):
        parts = [kind(i)(vit, x) for i in range(2)]
        close(kind(Concept("mixed", mixed))(vit, x), sum(s * part for s, part in zip(scales, parts)), 1e-3)


def test_equal_gradients_make_grad_cam_of_cdam():
    "Average pooling of uniform attention: each patch has the same gradient."
    model = small(depth=1, class_token=False, global_pool="avg")
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight[:96].zero_()
        model.blocks[0].mlp.fc2.weight.zero_()
        model.blocks[0].attn.proj.weight.mul_(1e-4)  # so small that the norm behind it is linear
    vit, x = load_vit(model, device="cpu"), images(model)
    cdam = CDAM(TARGET)(vit, x)
    close(GradCAM(TARGET)(vit, x), cdam.clamp(min=0), 1e-2)


# ---- what holds for every map of a class


@pytest.mark.parametrize("kind", OF_CLASS.values(), ids=OF_CLASS)
def test_classes_and_heads_make_a_difference(kind):
    model = small()
    vit, x = load_vit(model, device="cpu"), images(model)
    both = kind((0, 3))(vit, x)
    assert both.shape == (2, 2, 4, 4)
    for j, target in enumerate((0, 3)):
        close(both[:, j], kind(target)(vit, x))
    assert (both[:, 0] - both[:, 1]).abs().max() > 0.01 * both.abs().max()
    other = copy.deepcopy(model)
    nn.init.normal_(other.head.weight)
    assert (kind(0)(load_vit(other, device="cpu"), x) - both[:, 0]).abs().max() > 0.01 * both.abs().max()


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(16)), st.sampled_from([*OF_CLASS.values(), Rollout]), st.booleans())
def test_permuted_patches_permute_the_map(order, kind, registers):
    model = small(reg_tokens=2 * registers, no_embed_class=True)
    x, order = images(model, 1), list(order)
    patches = x.unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3)  # (1, 3, 16, 8, 8)
    shuffled = patches[:, :, order].unflatten(2, (4, 4)).transpose(3, 4).reshape(1, 3, 32, 32)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.pos_embed.copy_(model.pos_embed[:, order])
    score = kind() if kind is Rollout else kind(TARGET)
    map = score(load_vit(model, device="cpu"), x).flatten(1)
    close(score(load_vit(other, device="cpu"), shuffled).flatten(1), map[:, order])


@pytest.mark.parametrize("kind", OF_CLASS.values(), ids=OF_CLASS)
def test_images_of_a_batch_do_not_touch_each_other(kind):
    model = small(reg_tokens=1)
    vit, x = load_vit(model, device="cpu"), images(model, 3)
    together = kind()(vit, x)
    for i in range(3):
        close(together[i : i + 1], kind()(vit, x[i : i + 1]))


@pytest.mark.parametrize("kind", OF_CLASS.values(), ids=OF_CLASS)
def test_concepts_need_no_head(kind):
    model = small(num_classes=0, reg_tokens=1)
    with torch.no_grad():
        model.norm.weight.normal_()
    vit, x = load_vit(model, device="cpu"), images(model, 3)
    with pytest.raises(ValueError, match="has no head for classes"):
        kind()(vit, x)
    concept = Concept.of("these", x[1:], vit)
    np.testing.assert_allclose(concept.vector, model(x[1:]).mean(0).detach(), rtol=1e-3, atol=1e-5)
    headed = small(num_classes=5, reg_tokens=1)  # a class whose weights are the concept is the same target
    headed.load_state_dict({**headed.state_dict(), **model.state_dict()})
    with torch.no_grad():
        headed.head.weight[3] = torch.tensor(concept.vector)
    close(kind(concept)(vit, x), kind(3)(load_vit(headed, device="cpu"), x))
    close(kind(concept)(load_vit(headed, device="cpu"), x), kind(3)(load_vit(headed, device="cpu"), x))


@pytest.mark.parametrize("kind", [*OF_CLASS.values(), Rollout], ids=[*OF_CLASS, "Rollout"])
def test_bfloat16_is_close(kind):
    model = small(embed_dim=96)
    one, other = (kind()(load_vit(model, device="cpu", dtype=dtype), images(model)).flatten() for dtype in ("float32", "bfloat16"))
    assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.95 and other.dtype == torch.float32


# ---- refused, not shown as an empty map


def test_a_head_of_zeros_is_refused():
    model = small()
    nn.init.zeros_(model.head.weight)
    for kind in OF_CLASS.values():
        with pytest.raises(ValueError, match="is zero everywhere, so the target does not depend on it"):
            kind(TARGET)(load_vit(model, device="cpu"), images(model))


def test_an_unread_output_is_refused():
    class Pooled(VisionTransformer):
        def forward(self, x):
            return self.forward_features(x)

    model = Pooled(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5).eval()
    for kind in OF_CLASS.values():
        with pytest.raises(ValueError, match="neither logits nor embeddings"):
            kind(0)(load_vit(model, device="cpu"), images(model))


# ---- nothing remains, threads, memory


@pytest.mark.parametrize("kind", OF_CLASS.values(), ids=OF_CLASS)
def test_nothing_remains_in_the_model(kind):
    vit = load_vit(small(), device="cpu")
    x = images(vit.model)
    score_maps(kind(), vit, x)
    assert not any(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks for module in vit.model.modules())
    assert not torch.overrides._get_current_function_mode_stack() and torch.is_grad_enabled()
    assert all(weight.grad is None and not weight.requires_grad for weight in vit.model.parameters()) and not x.requires_grad
    with torch.no_grad():
        close(kind()(vit, x), kind()(vit, x))
    vit.model.norm.forward = None
    with pytest.raises(TypeError):
        kind()(vit, x)
    assert not any(module._forward_hooks for module in vit.model.modules())


def test_threads_do_not_disturb_each_other():
    vit = load_vit(small(), device="cpu")
    x, kinds = images(vit.model), list(OF_CLASS.values())
    want = [kind(1)(vit, x) for kind in kinds]
    with ThreadPoolExecutor(3) as pool:
        got = list(pool.map(lambda i: kinds[i % len(kinds)](1)(vit, x), range(40)))
    for i, map in enumerate(got):
        close(map, want[i % len(kinds)], 1e-5)


def training_step(model, x):
    "Bytes that live at once, in addition to the weights, in a step with gradients of all weights."
    weights = list(model.parameters())
    with _LiveBytes(*weights, x) as bytes_:
        nn.functional.cross_entropy(model(x), torch.zeros(len(x), dtype=torch.long)).backward()
    return bytes_.peak


@pytest.mark.parametrize("side", [64, 256])
@pytest.mark.parametrize("kind", OF_CLASS.values(), ids=OF_CLASS)
def test_memory_is_at_most_one_and_a_half_of_a_training_step(kind, side):
    "With 17 tokens and, where the weights of attention would be the most of it, with 1,025."
    model = VisionTransformer(img_size=side, patch_size=8, embed_dim=96, depth=6, num_heads=6, num_classes=5).eval()
    x = torch.randn(2, 3, side, side)
    step = training_step(copy.deepcopy(model), x)
    vit = load_vit(model, device="cpu")
    with _LiveBytes(*vit.model.parameters(), *vit.model.buffers(), x) as bytes_:
        kind(1)(vit, x)
    assert bytes_.peak <= 1.5 * step


def test_batches_fit_whatever_the_class():
    vit = load_vit(small(), device="cpu")
    one = bytes_an_image(CDAM(), vit)
    assert bytes_an_image(CDAM(3), vit) == one < bytes_an_image(InputGradient(), vit)
    assert fitting_batch(CDAM(4), vit) == fitting_batch(CDAM(), vit) >= 1
    assert bytes_an_image(CDAM((1, 2)), vit) >= one


# ---- the whole way


def ambiguous():
    "A model whose predicted class in noise is another than in the picture."
    vit = load_vit("scenes", device="cpu")
    scenes = make_scenes(6, seed=11)
    x = torch.stack([load_image(image, vit) for image in scenes.images])
    return vit, scenes, x


@pytest.mark.parametrize("kind", OF_CLASS.values(), ids=OF_CLASS)
def test_null_images_are_scored_for_the_class_of_the_picture(kind):
    vit, scenes, x = ambiguous()
    predicted = vit.model(x[0][None]).argmax(1)
    noise = torch.stack([image for image, _ in zip((image for image, _ in Null().images(x[0], vit, seed=0)), range(5))])
    assert (vit.model(noise).argmax(1) != predicted).any()
    name = vit.classes[int(predicted)]
    assert settled(kind(), vit, x[0]) == kind(name)
    left_open, named = (Null(n=5).scores(x[0], vit, score, seed=0).values for score in (kind(), kind(name)))
    np.testing.assert_array_equal(left_open, named)
    results = [regularize(scenes.images[0], vit, score, Null(n=5, groups=1), seed=0) for score in (kind(), kind(name))]
    np.testing.assert_array_equal(results[0].sig.p, results[1].sig.p)
    assert results[0].settings == results[1].settings and results[0].settings["score"]["target"] == name


@pytest.mark.filterwarnings(
    "ignore:z. the Poisson fit failed", "ignore:The design matrix is rank-deficient", "ignore:p. .* scores are too few"
)
@pytest.mark.parametrize(
    "score", [CDAM("red ring"), CDAM(("red ring", 4)), Rollout(), Relevance(), LeGrad(layers=2), GradCAM(layer=3), InputGradient()], ids=str
)
def test_from_the_image_to_the_file(tmp_path, score):
    vit, scenes, _ = ambiguous()
    res = regularize(scenes.images[0], vit, score, Null(n=5, groups=1), seed=0)
    assert res.sig.recipe.alternative == ("two-sided" if score.signed else "greater") and res.sig.recipe.scale == score.scale
    assert res.labels == (("red ring", "green bar") if isinstance(getattr(score, "target", None), tuple) else ())
    if score.signed:
        assert (res.scores < 0).any() and all(((map == 0) | (np.sign(map) == np.sign(res.scores))).all() for map in res.maps.values())
    res.save(tmp_path / "scene")
    again = Regularized.load(tmp_path / "scene")
    assert again.settings == res.settings and again.settings["score"]["type"] == type(score).__name__
    np.testing.assert_array_equal(again.scores, res.scores)


def test_concepts_are_saved_with_their_numbers(tmp_path):
    vit, scenes, x = ambiguous()
    concept = Concept.of("one", x[:2], vit)
    res = regularize(scenes.images[3], vit, CDAM(concept), Null(n=3, groups=1), seed=0)
    res.save(tmp_path / "scene")
    assert "CDAM(target=one), recipe" in _title(res)
    assert Regularized.load(tmp_path / "scene").settings["score"]["target"] == dict(type="Concept", name="one", vector=list(concept.vector))


def test_a_study_of_maps(tmp_path):
    vit = load_vit("scenes", device="cpu")
    study = Study(score=(CDAM(), CDAM(("red ring", "blue bar")), Rollout(), GradCAM(layer=4)), null=Null(n=3, groups=1))
    rows = load_study(run_study("scenes", vit, tmp_path / "study", study, limit=2, progress=False))
    assert rows["error"].isna().all() and len(rows) == 2 * 5
    assert set(rows["score"]) == {"CDAM()", "CDAM(target=('red ring', 'blue bar'))", "Rollout()", "GradCAM(layer=4)"}
    assert set(rows["map"]) == {"", "red ring", "blue bar"}


@pytest.mark.parametrize("score", [*SCORES, Rollout("mean"), CDAM(("a", 1)), LeGrad(Concept("c", np.arange(3.0)))], ids=str)
def test_scores_are_values(score):
    assert pickle.loads(pickle.dumps(score)) == score and hash(pickle.loads(pickle.dumps(score))) == hash(score)
    assert eval(repr(CDAM(("a", 1)))) == CDAM(("a", 1)) and str(score) == repr(score)


def test_blocks_are_found_or_refused():
    assert len(blocks_of(small(), 3)) == 3
    with pytest.raises(ValueError, match="no row of 5 blocks"):
        blocks_of(small(), 5)


# ---- maps of other packages


def test_input_x_gradient_of_captum():
    captum = pytest.importorskip("captum.attr")
    vit = load_vit(small(reg_tokens=2), device="cpu")
    x = images(vit.model)
    theirs = Captum(captum.InputXGradient(vit.model), target=(1, 3))
    close(theirs(vit, x), InputGradient((1, 3))(vit, x))
    close(Captum(captum.InputXGradient(vit.model))(vit, x), InputGradient()(vit, x))
    layer = captum.LayerGradientXActivation(vit.model, vit.model.blocks[-1].norm1)
    close(Captum(layer, target=1)(vit, x), CDAM(1)(vit, x))


def test_captum_goes_the_whole_way():
    captum = pytest.importorskip("captum.attr")
    vit, scenes, _ = ambiguous()
    score = Captum(captum.Saliency(vit.model), signed=False)
    res = regularize(scenes.images[0], vit, score, Null(n=3, groups=1), seed=0)
    assert res.settings["score"]["method"].endswith("Saliency.attribute") and res.settings["score"]["target"] in vit.classes
    assert res.sig.recipe.alternative == "greater" and (res.scores > 0).all()


def tokens_to_grid(vit):
    return lambda tokens: tokens[:, vit.prefix :].transpose(1, 2).unflatten(-1, vit.grid)


@pytest.mark.parametrize("name", ["class token", "registers", "rectangle, qk norm", "average pooling"])
def test_cams_of_pytorch_grad_cam(name):
    cams = pytest.importorskip("pytorch_grad_cam")
    vit = load_vit(small(**MODELS[name]), device="cpu")
    x = images(vit.model)
    layers = [vit.model.blocks[-1].norm1]
    theirs = PytorchGradCAM(cams.GradCAM(vit.model, layers, tokens_to_grid(vit)), target=(1, 3))
    close(theirs(vit, x), GradCAM((1, 3))(vit, x))
    close(PytorchGradCAM(cams.HiResCAM(vit.model, layers, tokens_to_grid(vit)))(vit, x), CDAM()(vit, x).clamp(min=0))
    stretched = theirs.cam(x.clone().requires_grad_(), [lambda out: out[1]] * 2)  # as it is shown there: the same up to its range and size
    ours = theirs(vit, x)[:, 0]
    low, high = ours.amin((1, 2), keepdim=True), ours.amax((1, 2), keepdim=True)
    small_again = torch.from_numpy(stretched)[:, 4::8, 4::8]
    assert torch.corrcoef(torch.stack([small_again.flatten(), ((ours - low) / (high - low)).flatten()]))[0, 1] > 0.7


def test_cams_without_a_gradient_or_of_another_model_are_refused():
    cams = pytest.importorskip("pytorch_grad_cam")
    vit = load_vit(small(), device="cpu")
    x = images(vit.model)
    late = cams.GradCAM(vit.model, [vit.model.blocks[-1]], tokens_to_grid(vit))  # behind the last block the class token alone is read
    with pytest.raises(ValueError, match="zero everywhere"):
        PytorchGradCAM(late)(vit, x)
    with pytest.raises(ValueError, match="made for another model"):
        PytorchGradCAM(late)(load_vit(small(), device="cpu"), x)


def test_eigen_cam_goes_the_whole_way():
    cams = pytest.importorskip("pytorch_grad_cam")
    vit, scenes, _ = ambiguous()
    score = PytorchGradCAM(cams.EigenCAM(vit.model, [vit.model.blocks[-1].norm1], tokens_to_grid(vit)))
    res = regularize(scenes.images[0], vit, score, Null(n=3, groups=1), seed=0)
    assert res.scores.shape == vit.grid and res.settings["score"]["cam"] == "pytorch_grad_cam.eigen_cam:EigenCAM"
