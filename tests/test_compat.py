"""``compat="published"``: the number of superpixels of the batch, and the bytes that superpixels are made of."""

import dataclasses

import numpy as np
import pytest
import torch
from small_model import VARIANTS, make_model, make_variant, photo
from torch import nn

from cast import create_model
from cast.layers import BlockFusion, GraphPool, resize_labels
from cast.models import inputs
from cast.models.compat import present_labels, present_superpixels, published_bytes
from cast_kernels import seeds

SEGMENTED = [name for name in VARIANTS if name != "vit"]
COUNT = 40  # superpixels asked for; fewer are there


def make_pair(name):
    """The same model as published and by default, in float64."""
    torch.manual_seed(0)
    published = make_variant(name, compat="published") if name != "cast" else make_model(compat="published")
    plain = make_variant(name) if name != "cast" else make_model()
    plain.load_state_dict(published.state_dict())
    for module in (*published.modules(), *plain.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return published.double(), plain.double()


def make_batch():
    """Two images of which the first has more labels, with gaps, and labels that the stem grid does not see."""
    labels = torch.randint(0, 24, (2, 8, 8)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    labels[1].clamp_(max=19)
    labels[labels == 5] = 6
    labels[0, 8, 8] = 27  # a top-left pixel of a cell
    labels[0, 3:6, 3:6] = 33  # nowhere on the grid, but in the picture
    labels[1, 9, 9] = 39 + 1  # belongs to no segment at all
    return torch.randn(2, 3, 64, 64, dtype=torch.float64), labels


def published_count(model, labels):
    """As the published code counts: the largest label of the batch where tokens are averaged, plus one."""
    on_grid = getattr(model.config, "stage", "pretrain") == "pretrain"
    seen = resize_labels(labels, (8, 8)) if on_grid else labels
    return int(seen[seen < COUNT].max()) + 1


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["cast", *SEGMENTED])
@pytest.mark.parametrize("train", [False, True])
def test_outputs_are_those_of_tensors_that_end_at_the_largest_label(name, train):
    published, plain = make_pair(name)
    image, labels = make_batch()
    count = published_count(plain, labels)
    assert count == (28 if getattr(plain.config, "stage", "pretrain") == "pretrain" else 34)
    published.train(train)
    plain.train(train)
    if name == "retrieval" and train:  # its norms are over segments, and it is published in eval mode alone
        published.head.eval()
        plain.head.eval()
    ours, theirs = published(image, labels, COUNT), plain(image, labels, count)
    if ours.ndim == 3:
        ours = ours[:, : theirs.shape[1]]
    close(ours, theirs)
    if train:
        ours.square().sum().backward()
        theirs.square().sum().backward()
        theirs_of = dict(plain.named_parameters())
        for key, p in published.named_parameters():
            if theirs_of[key].grad is None:
                assert p.grad is None or not p.grad.any(), key
            else:
                torch.testing.assert_close(p.grad, theirs_of[key].grad, rtol=1e-7, atol=1e-8, msg=key)
        buffers = dict(plain.named_buffers())
        for key, b in published.named_buffers():
            torch.testing.assert_close(b, buffers[key], rtol=1e-9, atol=1e-9, msg=key)
    else:
        assert not torch.allclose(plain(image, labels, COUNT).sum(), theirs.sum(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["cast", "pretrain", "segmentation"])
def test_levels_and_hierarchy(name):
    published, plain = make_pair(name)
    image, labels = make_batch()
    count = published_count(plain, labels)
    ours, theirs = published.forward_hierarchy(image, labels, COUNT), plain.forward_hierarchy(image, labels, count)
    for level, (a, b) in enumerate(zip(ours.levels, theirs.levels, strict=True)):
        n = b.tokens.shape[1]
        assert a.tokens.shape[1] == (COUNT if level == 0 else n)
        assert torch.equal(a.indices, b.indices)
        assert torch.equal(a.parents[:, :n], b.parents)
        for key in ("tokens", "cls", "logits", "pooled_tokens", "pooled_cls"):
            ours_of, theirs_of = getattr(a, key), getattr(b, key)
            close(ours_of[:, :n] if key in ("tokens", "logits") else ours_of, theirs_of)
    assert not ours.levels[0].tokens[:, count:].any()
    # pixels of labels that vanished from the grid follow the last superpixel, as the published notebooks have it
    followed = labels.clone()
    followed[(labels >= count) & (labels < COUNT)] = count - 1
    for level in range(1, 4):
        expected = theirs.hierarchy.parents[0].gather(1, followed.clamp(max=count - 1).flatten(1)).view_as(labels)
        for parents in theirs.hierarchy.parents[1:level]:
            expected = parents.gather(1, expected.flatten(1)).view_as(labels)
        found = ours.hierarchy.labels(level).long()
        assert torch.equal(found[labels < COUNT], expected[labels < COUNT])
        assert (found[labels >= COUNT] == -1).all()


def test_results_depend_on_the_batch_as_published():
    published, plain = make_pair("cast")
    image, labels = make_batch()
    together, alone = published(image, labels, COUNT)[1:], published(image[1:], labels[1:], COUNT)
    assert not torch.allclose(together, alone, rtol=1e-6, atol=1e-6)
    close(alone, plain(image[1:], labels[1:], 20))
    close(plain(image, labels, COUNT)[1:], plain(image[1:], labels[1:], COUNT))


def test_where_all_labels_are_there_nothing_changes():
    published, plain = make_pair("segmentation")
    labels = torch.arange(64).view(1, 8, 8).repeat_interleave(8, 1).repeat_interleave(8, 2)
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    close(published(image, labels, 64), plain(image, labels, 64))


def test_devices_checkpointing_and_compilation(device):
    model = make_model(compat="published", depths=(1, 1, 1)).to(device)
    image, labels = make_batch()
    image, labels = image.float().to(device), labels.to(device)
    expected = model(image, labels, COUNT)
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(image, labels, COUNT)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(image, labels, COUNT), expected)
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(image, labels, COUNT), expected)
    assert model(image[:0], labels[:0], COUNT).shape == (0, 5)


@pytest.mark.parametrize("name", ["cast", "pretrain", "segmenter"])
def test_half_precision(name):
    model, _ = make_pair(name)
    model.float()
    image, labels = make_batch()
    image = image.float()
    expected = model(image, labels, COUNT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model(image, labels, COUNT).float(), expected, rtol=0.1, atol=0.1)
        model.train()(image, labels, COUNT).float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    half = model.eval().to(torch.bfloat16)(image, labels, COUNT)
    assert half.dtype == torch.bfloat16
    assert half.isfinite().all()


def test_which_superpixels_are_present():
    mask = torch.tensor([[True, False, True, False, False], [False, False, False, True, False]])
    assert present_superpixels(mask).tolist() == [True, True, True, True, False]
    assert present_superpixels(mask[:1]).tolist() == [True, True, True, False, False]
    assert present_superpixels(torch.zeros(2, 3, dtype=torch.bool)).tolist() == [True, False, False]
    assert present_superpixels(mask[:0]).shape == (5,)
    labels = torch.tensor([[[0, 3], [-1, 9]], [[1, 1], [1, 1]]])
    assert present_labels(labels, 5).tolist() == [True, True, True, True, False]
    assert present_labels(labels, 10).all()
    assert present_labels(labels[:0], 3).all()


# --- the layers alone


@pytest.mark.parametrize("with_mask", [False, True])
def test_a_pool_of_some_tokens(with_mask):
    pool = GraphPool(24, 4, 3).double().eval()
    tokens, cls = torch.randn(2, 11, 24, dtype=torch.float64), torch.randn(2, 1, 24, dtype=torch.float64)
    order = torch.tensor([3, 0, 7, 10, 1, 5])  # those that are present, anywhere
    present = torch.zeros(2, 11, dtype=torch.bool).index_fill_(1, order, True)
    keep = order.sort().values
    mask = torch.rand(2, 11) > 0.2 if with_mask else None
    ours = pool(tokens, cls, mask, present)
    theirs = pool(tokens[:, keep], cls, None if mask is None else mask[:, keep])
    close(ours.tokens, theirs.tokens)
    close(ours.cls, theirs.cls)
    close(ours.logits[:, keep], theirs.logits)
    assert torch.equal(ours.indices, keep[theirs.indices])
    other = tokens.clone()
    other[~present] = 99.0
    close(pool(other, cls, mask, present).tokens, ours.tokens)
    everything = torch.ones(2, 11, dtype=torch.bool)
    close(pool(tokens, cls, mask, everything).tokens, pool(tokens, cls, mask).tokens)
    with pytest.raises(ValueError, match="expected a bool present"):
        pool(tokens, cls, None, present.long())
    with pytest.raises(TypeError, match="present"):
        pool(tokens, cls, None, [True] * 11)


def test_fused_norms_that_other_processes_share_are_refused():
    fusion = BlockFusion(8, 1).train()
    fusion.norm = nn.SyncBatchNorm(8)
    with pytest.raises(ValueError, match="got SyncBatchNorm"):
        fusion([torch.randn(2, 5, 8)], [], [torch.randn(2, 1, 8)], torch.arange(5) < 3)


# --- bytes


LEVELS = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, -1, -1)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_bytes_of_deit_lose_one_level_here_and_there():
    found = published_bytes(LEVELS, MEAN, STD, "deit")
    lost = LEVELS.long() - found.long()
    assert set(lost.unique().tolist()) == {0, 1}
    assert lost[0].flatten(1).sum(1).tolist() == [174, 53, 23]
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    normalised = inputs.normalise(LEVELS, mean, std, torch.float32)
    assert torch.equal(published_bytes(normalised, MEAN, STD, "deit"), found)
    as_numpy = (normalised.numpy() * np.array(STD).reshape(1, 3, 1, 1) + np.array(MEAN).reshape(1, 3, 1, 1)) * 255
    assert np.array_equal(found.numpy(), as_numpy.astype(np.uint8))
    beyond = torch.full((1, 3, 1, 1), 3.0)  # 255 * (3 std + mean) = 298.86, ...
    assert published_bytes(beyond, MEAN, STD, "deit").flatten().tolist() == [298 - 256, 287 - 256, 275 - 256]


def test_the_negative():
    found = published_bytes(LEVELS, MEAN, STD, "negative")
    assert torch.equal(found.long(), (256 - LEVELS.long()) % 256)


@pytest.mark.parametrize(
    ("name", "recipe"),
    [("cast_small", "image"), ("cast_deit_small", "deit"), ("cast_seg_small_voc", "image"),
     ("cast_seg_deit_small", "negative"), ("cast_segmenter_small", "negative")],
)  # fmt: skip
def test_superpixels_of_each_pipeline(name, recipe):
    image = photo(1, 64, 64)
    size = {"embed_dim": 24, "img_size": 64, "superpixels": {"num_superpixels": 25}}
    model, plain = create_model(name, compat="published", **size), create_model(name, **size)
    settings = dataclasses.asdict(model.config.superpixels)
    expected = image if recipe == "image" else published_bytes(image, MEAN, STD, recipe)
    assert torch.equal(model.superpixels(image), seeds(expected, **settings))
    assert settings["order"] == "sequential"
    own = dataclasses.asdict(plain.config.superpixels)
    assert torch.equal(plain.superpixels(image), seeds(image, **own))
    normalised = inputs.normalise(image, model.image_mean, model.image_std, torch.float32)
    assert torch.equal(model.superpixels(normalised), model.superpixels(image))


def test_compat_is_part_of_the_settings(tmp_path):
    with pytest.raises(ValueError, match="compat None or 'published', got 'paper'"):
        make_model(compat="paper")
    model = make_model(compat="published")
    model.save_pretrained(tmp_path)
    assert type(model).from_pretrained(tmp_path).config.compat == "published"
