"Whatever becomes of PyTorch's undocumented operator, results stay the same."

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from attnbootreg import attention_scores, kernels


def missing(input, weight, bias=None):
    return torch.ops.mkldnn._no_such_linear_pointwise(input, weight, bias, "none", [], "")


def another_signature(input, weight, bias=None):
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "", "one more")


def wrong(input, weight, bias=None):
    return 1.01 * F.linear(input, weight, bias) + 0.01


def wrong_where_strided(input, weight, bias=None):
    return F.linear(input if input.is_contiguous() else input.contiguous().flip(-1), weight, bias)


@pytest.fixture
def images():
    return torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def plain(vit, images):
    with torch.backends.mkldnn.flags(enabled=False):
        return attention_scores(images, vit, heads="each")


@pytest.fixture
def wide(monkeypatch):
    "As on a processor with wide instructions."
    monkeypatch.setattr(kernels, "has_instructions", lambda dtype: True)
    kernels.onednn_dtypes.cache_clear()
    yield
    monkeypatch.undo()
    kernels.onednn_dtypes.cache_clear()


@pytest.mark.parametrize("operator", [missing, another_signature, wrong, wrong_where_strided])
def test_a_changed_operator_is_not_used(operator, wide, monkeypatch, vit, images, plain):
    monkeypatch.setattr(kernels, "_onednn_linear", operator)
    assert kernels.onednn_dtypes() == frozenset()
    torch.testing.assert_close(attention_scores(images, vit, heads="each"), plain, atol=0, rtol=1e-5)


@pytest.mark.parametrize("switch", ["PyTorch's", "ours"])
def test_switches_leave_everything_to_pytorch(switch, wide, monkeypatch, vit, images, plain):
    monkeypatch.setattr(kernels, "onednn_dtypes", lambda: frozenset(kernels.FORMATS))
    monkeypatch.setattr(kernels, "_onednn_linear", wrong)
    if switch == "ours":
        monkeypatch.setenv(kernels.SWITCH, "torch")
        scores = attention_scores(images, vit, heads="each")
    else:
        with torch.backends.mkldnn.flags(enabled=False):
            scores = attention_scores(images, vit, heads="each")
    torch.testing.assert_close(scores, plain, atol=0, rtol=1e-5)


def test_kernels_and_pytorch_agree(vit, images, plain):
    torch.testing.assert_close(attention_scores(images, vit, heads="each"), plain, atol=1e-8, rtol=1e-5)


@pytest.mark.parametrize("narrow", [{"ATEN_CPU_CAPABILITY": "avx2"}, {"ONEDNN_MAX_CPU_ISA": "AVX2"}])
def test_without_wide_instructions_everything_stays_with_pytorch(narrow):
    code = "from attnbootreg.kernels import onednn_dtypes; assert not onednn_dtypes()"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **narrow})
