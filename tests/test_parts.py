"Two stages with learned parts: each loss by its gradient, each intervention, what hidden pixels can do, training that resumes."

import copy

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torchvision.transforms.functional import affine

from attnbootreg import load_vit
from attnbootreg.datasets import metashift
from attnbootreg.masking import compose
from attnbootreg.parts import (
    FactorAttention, FaithfulViT, LossWeights, Move, Pictures, Rates, background_presence, batch_of, concentration, draw_move, entropy,
    equivariance, evaluate_faithful, folder_pictures, gumbel_noise, leave_out, load_faithful, orthogonality, part_effects, part_losses,
    part_presence, part_thresholds, save_faithful, total_variation, train_faithful, trained_parameters, trap_pictures,
)  # fmt: skip
from attnbootreg.scenes import make_trap_scenes

ARCHITECTURE = dict(img_size=32, patch_size=4, embed_dim=32, depth=2, num_heads=2, reg_tokens=1)


def backbone(**changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VisionTransformer(**ARCHITECTURE | changes)


def two_stages(**changes):
    return FaithfulViT(backbone(), **dict(classes=3, parts=3, seed=1) | changes).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def model():
    return two_stages()


# ------------------------------------------------------------------------------------------------------------------ faithful


def test_a_hundred_images_whatever_stands_outside_the_mask(model):
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(100, 3, 32, 32, generator=draw)
    with torch.no_grad():
        out = model(images)
        hidden = out.selection.mask < 0.5
        assert hidden.flatten(1).any(1).all() and (~hidden).any()
        for other in (torch.randn(100, 3, 32, 32, generator=draw), torch.full_like(images, 1e30), torch.full_like(images, torch.nan)):
            assert torch.equal(model.predict(compose(images, ~hidden, other, (4, 4)), out.selection.mask), out.logits)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.02, 0.98))
def test_hidden_pixels_never_matter(seed, share):
    draw = torch.Generator().manual_seed(seed)
    model, images, other = two_stages(), *torch.randn(2, 3, 3, 32, 32, generator=draw)
    mask = (torch.rand(3, 8, 8, generator=draw) < share).float()
    with torch.no_grad():
        assert torch.equal(model.predict(images, mask), model.predict(compose(images, mask > 0.5, 100 * other, (4, 4)), mask))


def test_pixels_inside_matter(model, images):
    with torch.no_grad():
        out = model(images)
        inside = compose(images, out.selection.mask < 0.5, -images, (4, 4))
        assert not torch.equal(model.predict(inside, out.selection.mask), out.logits)


def test_dropped_patches_equal_hidden_ones(model, images):
    mask = (torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.3).float()
    with torch.no_grad():
        with FactorAttention(mask.flatten(1) > 0.5, 2):
            hidden = model.head(model.predictor.forward_features(images)[:, 0])
        with FactorAttention(mask.flatten(1), 2):
            factors = model.head(model.predictor.forward_features(images)[:, 0])
        torch.testing.assert_close(model.predict(images, mask), hidden, atol=1e-5, rtol=0)
        torch.testing.assert_close(factors, hidden, atol=1e-5, rtol=0)


def test_an_empty_mask_gives_every_image_the_same_logits(model, images):
    with torch.no_grad():
        logits = model.predict(images, torch.zeros(8, 8, 8))
    assert torch.isfinite(logits).all() and torch.equal(logits, logits[:1].expand(8, -1))


def test_evaluation_is_not_random(model, images):
    with torch.no_grad():
        first, again = model(images), model(images)
        some = model(images[:3])
    assert torch.equal(first.logits, again.logits) and torch.equal(first.selection.maps, again.selection.maps)
    torch.testing.assert_close(some.logits, first.logits[:3], atol=1e-5, rtol=0)
    assert torch.equal(first.selection.mask, (first.selection.parts < 3).float())  # the drawn map is what stage 2 received


def test_the_released_evaluation_is_random(images):
    released = two_stages(released=True)
    with torch.no_grad():
        assert not torch.equal(released(images).selection.maps, released(images).selection.maps)


def test_training_noise_comes_from_its_generator(model, images):
    model, state = copy.deepcopy(model).train(), torch.random.get_rng_state()
    outs = [model(images, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert torch.equal(outs[0].logits, outs[1].logits) and not torch.equal(outs[0].selection.maps, outs[2].selection.maps)
    assert torch.equal(state, torch.random.get_rng_state())


# ------------------------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("released", [False, True])
def test_the_loss_of_stage_2_moves_the_prototypes_unless_released(images, released):
    model = two_stages(released=released).train()
    F.cross_entropy(model(images, torch.Generator().manual_seed(0)).logits, torch.arange(8) % 3).backward()
    gradient = model.selector.prototypes.grad
    assert (gradient is None or not gradient.any()) if released else bool(gradient.any())


@pytest.mark.parametrize("gradient", ["seen", "all", "none"])
def test_which_patches_the_loss_of_stage_2_reaches(images, gradient):
    model = two_stages(gradient=gradient).train()
    for p in model.parameters():
        p.requires_grad_(False)
    maps = model.select(images, torch.Generator().manual_seed(0)).maps
    logits = maps.log().requires_grad_()
    model.selector.forward = lambda _: (torch.zeros(8, 64, 32), logits)
    model.dropout = 0.0
    selection = model.select(images, torch.Generator().manual_seed(0))
    if gradient == "none":
        assert not selection.mask.requires_grad
        return
    model.predict(images, selection.mask).square().sum().backward()
    reached, seen = logits.grad.abs().sum(1) > 0, selection.mask > 0.5
    assert reached[seen].float().mean() > 0.9 and bool(reached[~seen].any()) is (gradient == "all")
    with pytest.raises(ValueError, match="gradient"):
        two_stages(gradient="some")


def test_the_gradient_of_the_mask_is_that_of_finite_differences():
    model = two_stages().double().train()
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    mask = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda m: model.predict(images, m).sum(), mask.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("loss", [part_presence, background_presence, total_variation, entropy, concentration], ids=lambda f: f.__name__)
def test_gradient_of_a_loss_of_maps(loss):
    logits = torch.randn(2, 3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda one: loss(one.softmax(1)), logits)


def test_gradient_of_orthogonality_and_equivariance():
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(2, 4, 3, dtype=torch.float64, generator=draw).requires_grad_()
    assert torch.autograd.gradcheck(lambda one: orthogonality(one.float().double() * 0 + one), features)
    maps, moved = (torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=draw).requires_grad_() for _ in range(2))
    move = Move(30.0, (3, -2), 1.2)
    assert torch.autograd.gradcheck(lambda a, b: equivariance(a, b, move, (4, 4)), (maps, moved))


def test_orthogonal_features_cost_nothing_and_equal_ones_all():
    assert orthogonality(torch.eye(4)[None, :, :3]).item() == 0
    equal = torch.ones(1, 4, 3)
    np.testing.assert_allclose(orthogonality(equal), 6 / 9, rtol=1e-6)  # six of nine cosines are 1 and should be 0


def test_a_move_and_its_way_back():
    maps = torch.zeros(1, 2, 32, 32)
    maps[:, :, 12:20, 10:18] = 1
    for seed in range(5):
        move = draw_move((128, 128), np.random.default_rng(seed))
        assert abs(move.angle) <= 90 and max(map(abs, move.shift)) <= 14 and 0.8 <= move.scale <= 1.4
        moved = F.interpolate(move.of_images(F.interpolate(maps, scale_factor=4)), scale_factor=0.25)
        back = move.undone(moved, (4, 4))
        assert F.cosine_similarity(maps.flatten(), back.flatten(), dim=0) > 0.85
    shifted = Move(0.0, (8, -4), 1.0)
    expected = affine(maps, 0.0, [-1, 2], 1.0, [0.0])  # whole patches
    assert torch.equal(F.max_pool2d(shifted.of_images(F.interpolate(maps, scale_factor=4)), 4), expected)
    assert torch.equal(shifted.undone(expected, (4, 4)), maps)


# -------------------------------------------------------------------------------------------------------------- interventions


def test_leaving_a_part_out_makes_its_patches_background(model, images):
    with torch.no_grad():
        whole = model.select(images)
        for part in range(3):
            without = model.select(images, without=[part])
            mine = whole.parts == part
            assert mine.any() and (without.parts[mine] == 3).all()
            assert torch.equal(without.parts[~mine], whole.parts[~mine])
            torch.testing.assert_close(without.maps.sum(1), torch.ones(8, 8, 8))
        assert not model.select(images, without=range(3)).mask.any()
    with pytest.raises(ValueError, match="parts 0 to 2"):
        model.select(images, without=[3])


def test_effects_of_parts_are_differences_of_predictions(model, images):
    effects = part_effects(model, images)
    with torch.no_grad():
        for part in range(3):
            mask = model.select(images).mask * (model.select(images).parts != part)
            torch.testing.assert_close(effects[:, part], model(images).logits - model.predict(images, mask), atol=1e-5, rtol=0)
    assert effects.abs().max() > 0


def test_thresholds_that_bind_nowhere_change_nothing_and_others_send_patches_away(model, images):
    with torch.no_grad():
        logits, whole = model.selector(images)[1], model.select(images)
        lowest = torch.stack([logits[:, part][whole.parts == part].min() for part in range(3)])
        torch.testing.assert_close(part_thresholds(model, [images], 0.0), lowest)
        assert torch.equal(model.select(images, thresholds=lowest).parts, whole.parts)
        thresholds = part_thresholds(model, [images[:4], images[4:]], 0.2)
        fewer = model.select(images, thresholds=thresholds)
        for part in range(3):
            mine = whole.parts == part
            gone = mine & (fewer.parts != part)
            assert torch.equal(gone, mine & (logits[:, part] < thresholds[part]))
            assert abs(gone.sum() / mine.sum() - 0.2) < 0.05
            assert not (logits[:, part][fewer.parts == part] < thresholds[part]).any()


def test_a_part_without_patches_has_no_threshold():
    maps, logits = torch.zeros(1, 2, 2, 2), torch.full((1, 2, 2, 2), -5.0)
    maps[:, 1] = 1
    assert torch.equal(leave_out(maps, logits, thresholds=torch.tensor([-torch.inf])), maps)
    assert torch.equal(leave_out(1 - maps, logits, thresholds=torch.tensor([0.0])).argmax(1), torch.ones(1, 2, 2, dtype=torch.int64))


# ------------------------------------------------------------------------------------------------------------------- training


def batches(step):
    draw = torch.Generator().manual_seed(step)
    return torch.randn(4, 3, 32, 32, generator=draw), torch.randint(3, (4,), generator=draw)


RATES = Rates(backbone=1e-3, tokens=1e-4, prototypes=1e-2, heads=1e-3)


def test_what_is_trained_and_what_is_frozen():
    model = two_stages()
    groups = trained_parameters(model, RATES)
    rate_of = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert rate_of[id(named["selector.prototypes"])] == (1e-2, 0)
    assert rate_of[id(named["predictor.blocks.0.mlp.fc1.weight"])] == (1e-3, 0.05)
    assert id(named["selector.backbone.blocks.0.mlp.fc1.weight"]) not in rate_of
    for name in ("cls_token", "reg_token", "pos_embed"):
        assert rate_of[id(named[f"selector.backbone.{name}"])] == (1e-4, 0)
    trained_parameters(model, Rates(tokens=0))
    assert not any(p.requires_grad for p in model.selector.backbone.parameters()) and model.selector.prototypes.requires_grad
    shared = two_stages(separate=False)
    trained = {id(p) for group in trained_parameters(shared, RATES) for p in group["params"]}
    assert trained == {id(p) for p in shared.parameters()} and shared.predictor is shared.selector.backbone


def test_training_learns_and_goes_on_as_if_never_stopped(tmp_path):
    def stops(step):
        if step == 51:
            raise KeyboardInterrupt
        return batches(step % 2)

    whole, halved = two_stages(), two_stages()
    frozen = whole.selector.backbone.blocks[0].mlp.fc1.weight.clone()
    history = train_faithful(whole, lambda step: batches(step % 2), 60, tmp_path / "whole.pt", rates=RATES)
    with pytest.raises(KeyboardInterrupt):
        train_faithful(halved, stops, 60, tmp_path / "halved.pt", rates=RATES)
    again = two_stages()
    resumed = train_faithful(again, lambda step: batches(step % 2), 60, tmp_path / "halved.pt", rates=RATES)
    pd.testing.assert_frame_equal(history, resumed)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values()))
    assert torch.equal(frozen, whole.selector.backbone.blocks[0].mlp.fc1.weight) and not whole.training
    assert len(history) == 60 and list(history) == list(vars(LossWeights()))
    assert history["predictor"].tail(10).mean() < 0.7 * history["predictor"].head(10).mean()
    with pytest.raises(ValueError, match="was begun with"):
        train_faithful(two_stages(), batches, 60, tmp_path / "halved.pt", seed=1, rates=RATES)


def test_weights_of_the_loss_count(images):
    model, labels = two_stages().train(), torch.arange(8) % 3
    terms = part_losses(model, images, labels, Move(0.0, (0, 0), 1.0), torch.Generator().manual_seed(0))
    assert list(terms) == list(vars(LossWeights())) and all(torch.isfinite(term) for term in terms.values())
    for wrong in (-1.0, np.nan, "much"):
        with pytest.raises(ValueError, match="entropy"):
            LossWeights(entropy=wrong)
        with pytest.raises(ValueError, match="heads"):
            Rates(heads=wrong)


def test_a_loss_that_is_no_number_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="rates: the loss is"):
        train_faithful(two_stages(), lambda step: (torch.full((2, 3, 32, 32), torch.nan), torch.tensor([0, 1])), 3, tmp_path / "state.pt")
    assert not (tmp_path / "state.pt").exists()


# ------------------------------------------------------------------------------------------------------------ files and pictures


@pytest.mark.parametrize("separate", [True, False])
def test_saved_and_loaded(tmp_path, images, separate):
    model = two_stages(separate=separate)
    save_faithful(model, tmp_path / "two.safetensors", ARCHITECTURE, (0.5,) * 3, (0.25,) * 3, ("a", "b", "c"), {})
    loaded = load_faithful(tmp_path / "two.safetensors", device="cpu")
    assert loaded.vit.classes == ("a", "b", "c") and loaded.vit.mean == (0.5,) * 3 and loaded.separate is separate
    with torch.no_grad():
        torch.testing.assert_close(loaded(images).logits, model(images).logits, atol=2e-2, rtol=0)  # half precision
        torch.testing.assert_close(loaded.selector(images)[1], model.selector(images)[1], atol=0.5, rtol=0.02)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["two.safetensors"]


def test_files_that_are_not_two_stages(tmp_path):
    with pytest.raises(FileNotFoundError, match="embedded model .trap"):
        load_faithful("tarp")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="damaged"):
        load_faithful(tmp_path / "broken.safetensors")
    from attnbootreg.checkpoints import embedded_file

    with pytest.raises(ValueError, match="load_vit"):
        load_faithful(embedded_file("scenes"))


def test_backbones_that_do_not_fit():
    for wrong in (torch.nn.Linear(2, 2), backbone(class_token=False, global_pool="avg", reg_tokens=0)):
        with pytest.raises(TypeError, match="class token"):
            FaithfulViT(wrong, 3)
    for changes in (dict(parts=0), dict(classes=0), dict(dropout=1.5)):
        with pytest.raises(ValueError, match=next(iter(changes))):
            two_stages(**changes)


def test_the_shipped_model_against_its_claims():
    model = load_faithful("trap", device="cpu")
    report = evaluate_faithful(model, trap_pictures(model.vit, 120, seed=4242, agree=0.5))
    assert report["n"] == 120 and report["mask_iou"] > 0.6 and report["accuracy"] > 0.5
    assert sum(name.startswith(("cross", "triangle")) for name in report) == 4


def test_batches_see_every_picture_once_in_an_epoch():
    seen = []
    pictures = Pictures(6, ("a", "b"), lambda i: seen.append(i) or trap_pictures(load_vit("trap", device="cpu"), 6)[i])
    images, labels = batch_of(pictures, 0, 4)
    again, _ = batch_of(pictures, 0, 4)
    assert torch.equal(images, again) and labels.shape == (4,)
    del seen[:]
    for step in range(3):
        batch_of(pictures, step, 4)
    assert sorted(seen[:6]) == list(range(6)) == sorted(seen[6:])
    with pytest.raises(IndexError, match="0 to 5"):
        pictures[6]


def test_pictures_of_a_folder(tmp_path):
    for split in ("train", "test"):
        for name, color in (("cat", (255, 0, 0)), ("dog", (0, 0, 255))):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (20, 24), color).save(tmp_path / split / name / f"{split}{i}.png")
    vit = load_vit(backbone(num_classes=2), device="cpu")
    pictures = folder_pictures(metashift(tmp_path), vit, "test")
    assert len(pictures) == 4 and pictures.classes == ("cat", "dog") and pictures[0].image.shape == (3, 32, 32)
    assert [pictures[i].label for i in range(4)] == [0, 0, 1, 1] and pictures[0].mask is None
    assert pictures[0].image[0].mean() > pictures[0].image[2].mean()


def test_trap_pictures_are_trap_scenes():
    vit = load_vit("trap", device="cpu")
    picture, scene = trap_pictures(vit, 10, seed=3)[7], make_trap_scenes(1, 3, 64, start=7)
    assert picture.label == scene.labels[0] and torch.equal(picture.mask, scene.masks[0])
    assert (picture.image * 0.25 + 0.5 - scene.images[0]).abs().max() < 0.01


def test_noise_is_gumbel():
    scipy_stats = pytest.importorskip("scipy.stats")
    noise = gumbel_noise((5000,), torch.Generator().manual_seed(0)).numpy()
    assert scipy_stats.kstest(noise, "gumbel_r").pvalue > 0.01
