"Attention scores: right on many architectures, and no more work than needed."

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from timm.models import VisionTransformer
from torch.utils._python_dispatch import TorchDispatchMode

from attnbootreg import Attention, Null, attention_scores, load_image, load_vit

ARCHITECTURES = {
    "plain": {},
    "registers": dict(reg_tokens=4),
    "qk norm": dict(qk_norm=True),
    "no qkv bias": dict(qkv_bias=False),
    "layer scale": dict(init_values=1e-2),
    "pre norm": dict(pre_norm=True),
    "no class position": dict(no_embed_class=True, reg_tokens=2),
    "mean pooling": dict(global_pool="avg"),
    "wide heads": dict(num_heads=2),
    "rectangle": dict(img_size=(32, 64)),
}


def small(**options):
    torch.manual_seed(0)
    return VisionTransformer(**{**dict(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=0), **options}).eval()


def softmax_rows(model, x, layer):
    "The CLS row of timm's own unfused attention."
    kept = {}
    for block in model.blocks:
        block.attn.fused_attn = False
    model.blocks[layer].attn.attn_drop.register_forward_hook(lambda module, args, out: kept.update(softmax=args[0]))
    with torch.no_grad():
        model.forward_features(x)
    return kept["softmax"][:, :, 0, model.num_prefix_tokens :].unflatten(-1, model.patch_embed.grid_size)


@pytest.mark.parametrize("options", ARCHITECTURES.values(), ids=ARCHITECTURES)
@pytest.mark.parametrize("layer", [-1, 0])
def test_equals_the_unfused_softmax(options, layer):
    model = small(**options)
    x = torch.randn(2, 3, *model.patch_embed.img_size)
    scores = attention_scores(x, load_vit(model, device="cpu"), layer, heads="each")
    want = softmax_rows(model, x, layer)
    torch.testing.assert_close(scores, want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(attention_scores(x, load_vit(model, device="cpu"), layer), want.mean(1), atol=1e-5, rtol=1e-5)


class Largest(TorchDispatchMode):
    "Remembers the largest tensor that any operation makes."

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numel = max(self.numel, out.numel())
        return out


def test_no_square_matrix_in_the_wanted_block():
    vit = load_vit(small(img_size=256, depth=1), device="cpu")  # 1,024 patches
    with Largest() as largest:
        attention_scores(torch.randn(1, 3, 256, 256), vit)
    assert largest.numel < 1024**2


def test_no_gradient_and_nothing_remains():
    "After a pass that is left early, and after one that fails, nobody listens any more."
    vit = load_vit(small(), device="cpu")
    x = torch.randn(1, 3, 32, 32, requires_grad=True)
    assert not attention_scores(x, vit).requires_grad
    vit.model.blocks[1].mlp.forward = None
    with pytest.raises(TypeError):
        attention_scores(x, vit)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in vit.model.modules())
    assert not torch.overrides._get_current_function_mode_stack()


def test_threads_do_not_hear_each_other():
    vit = load_vit(small(depth=6), device="cpu")
    x = torch.randn(1, 3, 32, 32)
    want = [attention_scores(x, vit, layer) for layer in range(6)]
    with ThreadPoolExecutor(3) as pool:
        got = list(pool.map(lambda i: attention_scores(x, vit, i % 6), range(120)))
    assert all(torch.equal(scores, want[i % 6]) for i, scores in enumerate(got))


def test_scores_are_ordinary_tensors(vit, scene):
    scores = attention_scores(scene * 4 - 2, vit)
    scores /= scores.max()
    assert scores.max() == 1


def test_bfloat16_is_close_to_float32(scene):
    full, half = load_vit(device="cpu"), load_vit(device="cpu", dtype="bfloat16")
    logs = torch.stack([attention_scores(load_image(scene, vit), vit).log().flatten() for vit in (full, half)])
    assert half.model.pos_embed.dtype == torch.bfloat16
    assert torch.corrcoef(logs)[0, 1] > 0.99


def test_the_callers_model_is_unchanged():
    model = small().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    vit = load_vit(model, img_size=64, dtype="bfloat16", device="cpu")
    attention_scores(torch.randn(1, 3, 64, 64), vit)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[name]) and value.dtype == before[name].dtype for name, value in model.state_dict().items())


def test_null_images_are_never_all_in_memory(vit, scene):
    sizes, attention = [], Attention()

    class Counting:
        scale, signed = "log", False

        def __call__(self, vit, x):
            sizes.append(len(x))
            return attention(vit, x)

    null = Null(n=20).scores(load_image(scene, vit), vit, Counting(), batch_size=6, seed=0)
    assert sizes == [6, 6, 6, 2] and len(null) == 20
