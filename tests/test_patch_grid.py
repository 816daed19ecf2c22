import pytest
import torch
from small_vit import close, make_image, make_vit, wake_pools

from cast import Hierarchy, SuperpixelConfig, patch_timm
from cast_kernels import seeds, seeds_count


def seen_by_first_block(vit, *args, **kwargs):
    seen = []
    handle = vit.blocks[0].register_forward_pre_hook(
        lambda _, inputs, options: seen.append((inputs[0], options.get("rope"))), with_kwargs=True
    )
    vit(*args, **kwargs)
    handle.remove()
    return seen[0]


def blobs(batch, height, width, count):
    """Labels that follow no grid: the nearest of some random points; they may miss a number."""
    points = torch.rand(batch, count, 2) * torch.tensor([height, width])
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([y, x], -1).flatten(0, 1).float().expand(batch, -1, -1)
    return torch.cdist(pixels, points).argmin(2).view(batch, height, width)


@pytest.mark.parametrize("family", ["plain", "registers", "siglip", "dinov3", "mixed"])
@pytest.mark.parametrize("label_dtype", [torch.int32, torch.int64, torch.uint8])
@torch.no_grad()
def test_a_superpixel_is_the_mean_of_the_patches_under_its_pixels(family, label_dtype):
    vit = make_vit(family, grid=(3, 5), dtype=torch.float64)
    image = make_image(vit)
    tokens, rope = seen_by_first_block(vit, image)
    cut, (height, width) = vit.num_prefix_tokens, image.shape[2:]
    labels = blobs(2, height, width, 9)
    labels[labels == 4] = 200  # superpixel 4 is empty, and some pixels belong to none
    wake_pools(patch_timm(vit, {1: 3}))
    found, turned = seen_by_first_block(vit, image, superpixels=labels.to(label_dtype), num_segments=9)
    assert torch.equal(found[:, :cut], tokens[:, :cut])
    side = height // 3
    for b in range(2):
        for s in range(9):
            pixels = (labels[b] == s).nonzero()
            if s == 4:
                assert not pixels.numel()
                assert not found[b, cut + s].any()
                continue
            cells = pixels // side
            close(found[b, cut + s], tokens[b, cut:][cells[:, 0] * 5 + cells[:, 1]].mean(0))
            if rope is not None:
                row, column = cells.double().mean(0).round().long().tolist()
                expected = rope[..., row * 5 + column, :]
                assert (turned[b, :, s] == expected).all()


@pytest.mark.parametrize("family", ["plain", "distilled", "dinov3", "mixed"])
@torch.no_grad()
def test_a_superpixel_for_each_patch_is_the_model_without(family):
    vit = make_vit(family, grid=(3, 5), dtype=torch.float64)
    image = make_image(vit)
    expected = vit(image)
    patch_timm(vit, {0: 15})
    labels = torch.randperm(15)[vit.hierarchy(image).superpixels.long()]
    close(vit(image, superpixels=labels, num_segments=15), expected)


@torch.no_grad()
def test_an_empty_superpixel_is_no_centroid():
    vit = patch_timm(make_vit(), {0: 3})
    vit.pos_embed.data += 5.0  # so that zero tokens lie farthest from the others
    image = make_image(vit)
    labels = blobs(2, 64, 64, 4) * 2 + 1  # 1, 3, 5, 7 of 8
    for pool in vit.forward_hierarchy(image, superpixels=labels, num_segments=8).pools:
        assert (pool.indices % 2 == 1).all()


@torch.no_grad()
def test_hierarchy_of_patches():
    vit = wake_pools(patch_timm(make_vit(grid=(3, 5)), {0: 6, 2: 2}))
    image = make_image(vit)
    out = vit.forward_hierarchy(image)
    hierarchy = out.hierarchy
    assert isinstance(hierarchy, Hierarchy)
    assert hierarchy.num_segments == (15, 6, 2)
    assert hierarchy.size == (48, 80)
    assert torch.equal(out.logits, vit(image))
    for y in range(0, 48, 7):
        for x in range(0, 80, 9):
            patch = (y // 16) * 5 + x // 16
            assert (hierarchy.labels(0)[:, y, x] == patch).all()
            assert torch.equal(hierarchy.labels(1)[:, y, x].long(), out.pools[0].parents[:, patch])
    assert torch.equal(vit.hierarchy(image).label_maps(), hierarchy.label_maps())
    assert not vit.hierarchy(image).assignments[0].requires_grad


@pytest.mark.parametrize("size", [(64, 64), (48, 96), (16, 112)])
@torch.no_grad()
def test_grids_of_any_size(size):
    vit = patch_timm(make_vit(dynamic_img_size=True), {1: 7})
    hierarchy = vit.hierarchy(torch.randn(1, 3, *size))
    assert hierarchy.num_segments == (size[0] * size[1] // 256, 7)
    assert hierarchy.size == size
    assert hierarchy.areas(0).eq(256).all()


@torch.no_grad()
def test_patches_that_are_no_squares():
    vit = patch_timm(make_vit(patch_size=(8, 16), img_size=(32, 48)), {1: 7})
    hierarchy = vit.hierarchy(make_image(vit))
    assert hierarchy.num_segments == (12, 7)
    expected = torch.arange(12).view(4, 3).repeat_interleave(8, 0).repeat_interleave(16, 1)
    assert torch.equal(hierarchy.superpixels[1].long(), expected)


@pytest.mark.parametrize("family", ["plain", "dinov3"])
@torch.no_grad()
def test_padded_images(family):
    vit = patch_timm(make_vit(family, dynamic_img_size=True, dynamic_img_pad=True), {1: 7})
    image = torch.randn(2, 3, 37, 67)
    hierarchy = vit.hierarchy(image)
    assert hierarchy.num_segments == (15, 7)  # 3 x 5 patches
    areas = hierarchy.areas(0)[0].view(3, 5)
    assert areas[0].tolist() == [256, 256, 256, 256, 16 * 3]
    assert areas[2].tolist() == [80, 80, 80, 80, 5 * 3]
    labels = hierarchy.superpixels
    given = vit.forward_hierarchy(image, superpixels=labels, num_segments=15)
    close(given.logits, vit(image))
    assert torch.equal(given.hierarchy.label_maps(), hierarchy.label_maps())


@torch.no_grad()
def test_makes_superpixels_of_its_image():
    vit = make_vit()
    config = SuperpixelConfig(num_superpixels=16, bins=5, order="sequential", iterations=3)
    photo = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(vit.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    image = (photo / 255 - mean) / std
    labels = seeds(photo, 16, order="sequential", bins=5, prior=2, iterations=3, num_levels=1)
    count = seeds_count(64, 64, 16)
    given = patch_timm(vit, {0: 6}).forward_hierarchy(image, superpixels=labels, num_segments=count)
    vit.superpixel_config = config
    made = vit.forward_hierarchy(image)
    assert torch.equal(made.hierarchy.superpixels, labels)
    assert torch.equal(made.logits, given.logits)
    assert torch.equal(vit(image, superpixels=labels), given.logits)  # num_segments is that of such an image
    half = vit.to(torch.bfloat16).forward_hierarchy(image.bfloat16())
    assert half.hierarchy.num_segments == (count, 6)


@torch.no_grad()
def test_the_number_of_superpixels_grows_with_the_image():
    vit = patch_timm(make_vit(grid=(4, 8), dynamic_img_size=True), {0: 6}, superpixels=32)
    assert vit.hierarchy(torch.randn(1, 3, 64, 128)).num_segments[0] == seeds_count(64, 128, 32)
    assert vit.hierarchy(torch.randn(1, 3, 128, 128)).num_segments[0] == seeds_count(128, 128, 64)


@torch.no_grad()
def test_patch_dropout_pools_in_training_but_has_no_hierarchy():
    for family in ("plain", "dinov3", "mixed"):
        vit = patch_timm(make_vit(family, patch_drop_rate=0.5), {0: 6, 1: 3}).train()
        image = make_image(vit)
        assert vit(image).shape == (2, 5)
        with pytest.raises(ValueError, match=r"model.eval\(\)"):
            vit.hierarchy(image)
        with pytest.raises(ValueError, match=r"model.eval\(\)"):
            vit(image, superpixels=torch.zeros(2, 64, 64, dtype=torch.int64), num_segments=8)
        assert vit.eval().hierarchy(image).num_segments == (16, 6, 3)


def test_refuses_bad_superpixels():
    vit = patch_timm(make_vit(), {0: 6})
    image, labels = make_image(vit), torch.zeros(2, 64, 64, dtype=torch.int64)
    with pytest.raises(ValueError, match="expected num_segments with superpixels"):
        vit(image, superpixels=labels)
    with pytest.raises(ValueError, match="expected superpixels with num_segments"):
        vit(image, num_segments=9)
    with pytest.raises(ValueError, match=r"of \(64, 64\) pixels, got \(32, 64\)"):
        vit(image, superpixels=labels[:, ::2], num_segments=9)
    with pytest.raises(ValueError, match=r"labels \[2, H, W\]"):
        vit(image, superpixels=labels[:1], num_segments=9)
    with pytest.raises(TypeError, match=r"labels, got torch\.float32"):
        vit(image, superpixels=labels.float(), num_segments=9)
    with pytest.raises(ValueError, match="6 tokens to pool, got 5"):
        vit(image, superpixels=labels, num_segments=5)
    vit.superpixel_config = SuperpixelConfig(num_superpixels=16)
    with pytest.raises(ValueError, match="expected labels below"):
        vit(image, superpixels=labels + 500)
    with pytest.raises(ValueError, match="on no grid"):
        vit.forward_intermediates(image)


def test_superpixels_need_a_mean():
    vit = make_vit()
    vit.pretrained_cfg = None
    with pytest.raises(ValueError, match="pretrained_cfg"):
        patch_timm(vit, {0: 6}, superpixels=16)
