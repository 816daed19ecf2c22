import sys

import numpy as np
import pytest
import torch
from PIL import Image

from cast.panel import draw_outlines
from cast.superpixel_maps import Superpixels, superpixels
from cast_kernels import labels_to_edges, seeds, seeds_count, superpixel_summary
from cast_kernels.testing import synthetic_image

PHOTO = synthetic_image(48, 64, seed=3)
ARRAY = PHOTO[0].numpy()


def halves():
    """A photo of 6 x 8 pixels: left and right half, and a pixel that belongs to neither."""
    image = torch.randint(0, 256, (1, 6, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = (torch.arange(8) // 4).repeat(6, 1)[None].clone()
    labels[0, 2, 1] = 7
    return Superpixels(image, labels, 2)


def test_the_attribute_is_the_function():
    import cast.superpixel_maps

    assert cast.superpixels is superpixels
    assert cast.Superpixels is Superpixels
    assert callable(cast.superpixels)


@pytest.mark.parametrize(
    "given",
    [
        PHOTO,
        PHOTO[0],
        PHOTO.permute(0, 3, 1, 2).contiguous(),
        PHOTO[0].permute(2, 0, 1),
        ARRAY,
        ARRAY[None],
        ARRAY.transpose(2, 0, 1).copy(),
        Image.fromarray(ARRAY),
    ],
    ids=["batch", "image", "channels first", "image channels first", "HWC", "BHWC", "CHW", "PIL"],
)
def test_any_image_gives_the_labels_of_seeds(given):
    found = superpixels(given, 12, bins=5, iterations=3, order="sequential")
    assert torch.equal(found.labels, seeds(PHOTO, 12, bins=5, iterations=3, order="sequential"))
    assert found.labels.dtype == torch.int32
    assert found.num_segments == seeds_count(48, 64, 12)
    assert torch.equal(found.image, PHOTO)


def test_files_are_read(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(ARRAY).save(path)
    for name in (path, str(path)):
        assert torch.equal(superpixels(name, 12).labels, superpixels(ARRAY, 12).labels)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_pil_images_of_any_mode(mode):
    image = Image.fromarray(ARRAY).convert(mode)
    assert torch.equal(superpixels(image, 12).image[0], torch.from_numpy(np.array(image.convert("RGB"))))


def test_arrays_that_torch_cannot_share():
    mirrored = ARRAY[:, ::-1]
    frozen = mirrored.copy()
    frozen.flags.writeable = False
    for array in (mirrored, frozen):
        assert torch.equal(superpixels(array, 12).labels, superpixels(mirrored.copy(), 12).labels)


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize("method", ["seeds", "slic"])
def test_lists_of_unequal_sizes(method, kind):
    items = [ARRAY, Image.fromarray(ARRAY[:30]), PHOTO, PHOTO[0].flip(0)]
    found = superpixels(kind(items), 12, method=method)
    assert type(found) is list
    for item, one in zip(items, found, strict=True):
        alone = superpixels(item, 12, method=method)
        assert torch.equal(one.labels, alone.labels)
        assert torch.equal(one.image, alone.image)
        assert one.num_segments == alone.num_segments


@pytest.mark.parametrize("method", ["seeds", "slic"])
def test_a_batch_of_none(method):
    found = superpixels(PHOTO[:0], 12, method=method)
    assert len(found) == 0
    assert found.labels.shape == (0, 48, 64)
    assert found.outlined().shape == found.mosaic().shape == (0, 48, 64, 3)
    assert found.edges()[1].shape == (0,)


def test_an_empty_list_gives_an_empty_list():
    assert superpixels([]) == []


def test_options_reach_seeds():
    levels = superpixels(PHOTO, 12, num_levels=2, order="sequential")
    assert levels.num_segments == seeds_count(48, 64, 12, 2)
    assert torch.equal(levels.labels, seeds(PHOTO, 12, num_levels=2, order="sequential"))
    with pytest.raises(TypeError, match="compactness"):
        superpixels(PHOTO, 12, compactness=10)


def test_slic_is_that_of_scikit_image():
    from skimage.segmentation import slic

    pair = torch.cat([PHOTO, PHOTO.flip(1)])
    found = superpixels(pair, 20, method="slic", compactness=5.0)
    for labels, image in zip(found.labels.numpy(), pair.numpy(), strict=True):
        expected = slic(image, n_segments=20, compactness=5.0, start_label=0, channel_axis=-1)
        assert sorted(np.unique(labels)) == list(range(labels.max() + 1))
        pairs = set(zip(labels.ravel().tolist(), expected.ravel().tolist(), strict=True))
        assert len(pairs) == len(np.unique(labels)) == len(np.unique(expected))
    assert found.num_segments == int(found.labels.max()) + 1
    assert found.labels.dtype == torch.int32


def test_slic_leaves_out_what_its_mask_does():
    mask = np.ones((48, 64), bool)
    mask[:10] = False
    found = superpixels(ARRAY, 9, method="slic", mask=mask)
    assert ((found.labels[0] == -1).numpy() == ~mask).all()
    assert found.areas.sum() == mask.sum()
    assert sorted(found.labels.unique().tolist()) == [-1, *range(found.num_segments)]


def test_slic_without_scikit_image_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(ImportError, match=r'pip install "cast-kernels\[slic\]"'):
        superpixels(PHOTO, 12, method="slic")


def test_the_work_is_done_where_it_is_asked_for():
    with pytest.raises(ValueError, match='the images are on meta: pass device="cpu"'):
        superpixels(PHOTO, 12, method="slic", device="meta")
    assert superpixels(PHOTO.to("meta"), 12).labels.device.type == "meta"  # not quietly somewhere else


def test_properties_are_those_of_the_ops():
    found = superpixels(torch.cat([PHOTO, PHOTO.flip(2)]), 12)
    summary = superpixel_summary(found.labels, found.num_segments, found.image)
    for mine, expected in zip((found.areas, found.boxes, found.colors, found.boundaries), summary, strict=True):
        assert torch.equal(mine, expected)
    for options in ({}, {"max_edges": 150}):
        edges, count = labels_to_edges(found.labels, found.num_segments, **options)
        assert torch.equal(found.edges(**options)[0], edges)
        assert torch.equal(found.edges(**options)[1], count)


def test_the_summary_is_computed_once(monkeypatch):
    calls = []
    monkeypatch.setattr("cast.superpixel_maps.superpixel_summary", lambda *a: calls.append(1) or superpixel_summary(*a))
    found = halves()
    assert not calls
    assert found.areas.tolist() == [[23, 24]]
    assert found.boxes.tolist() == [[[0, 0, 6, 4], [0, 4, 6, 8]]]
    found.mosaic(), found.outlined()
    assert calls == [1]


def test_labels_out_of_range_belong_to_no_superpixel():
    assert halves().labels[0, 2, 1] == -1


def test_mosaic():
    found = halves()
    picture = found.mosaic()
    assert picture.dtype == torch.uint8
    right = found.image[0, :, 4:].double().mean((0, 1)).round()
    assert (picture[0, :, 4:] == right).all()
    assert torch.equal(picture[0, 2, 1], found.image[0, 2, 1])  # of no superpixel
    assert (picture[0, :2, :4] == picture[0, 0, 0]).all()


@pytest.mark.parametrize("thickness", [1, 2, 3, 4])
def test_outlines_are_the_panels(thickness):
    """But for the corners, which a box fills and two bars do not."""
    found = Superpixels(PHOTO, torch.arange(64)[None, None].expand(1, 48, 64) // 20, 4)
    expected = draw_outlines(ARRAY, found.labels[0].numpy(), thickness)
    difference = found.outlined(thickness)[0].int() - torch.from_numpy(expected).int()
    assert difference.abs().max() <= 1  # float32 against float64
    changed = (found.outlined(thickness) != PHOTO).any(-1)[0].any(0).sum()
    assert changed == 3 * 2 * thickness


def test_outlines_leave_the_inside_alone():
    found = superpixels(PHOTO, 12)
    near = torch.nn.functional.max_pool2d(found.boundaries.float(), 3, 1, 1) > 0
    assert torch.equal(found.outlined()[~near], PHOTO[~near])
    assert not torch.equal(found.outlined(), PHOTO)


def test_one_of_a_batch():
    both = superpixels(torch.cat([PHOTO, PHOTO.flip(2)]), 12)
    assert len(both) == 2
    for i, one in enumerate(both):
        assert torch.equal(one.labels, both.labels[i : i + 1])
        assert torch.equal(one.colors, both.colors[i : i + 1])
    assert torch.equal(both[-1].labels, both[1].labels)
    with pytest.raises(IndexError, match="image 2 of a batch of 2"):
        both[2]
    with pytest.raises(TypeError, match="integer"):
        both[:1]
    assert repr(both[0]) == f"Superpixels(batch_size=1, size=48x64, num_segments={both.num_segments}, device='cpu')"
    assert both.to("meta").labels.device.type == "meta"


@pytest.mark.parametrize("picture", ["outlined", "mosaic"])
def test_pictures_are_saved(picture, tmp_path):
    found = superpixels(PHOTO, 12)
    found.save(tmp_path / "it.png", picture)
    with Image.open(tmp_path / "it.png") as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), getattr(found, picture)()[0].numpy())
    assert [path.name for path in tmp_path.iterdir()] == ["it.png"]


def test_labels_are_saved(tmp_path):
    found = halves()
    found.save(tmp_path / "labels.PNG", "labels")
    expected = np.where(found.labels[0] < 0, 65535, found.labels[0])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "labels.PNG")), expected)


def test_what_cannot_be_saved(tmp_path):
    found = halves()
    with pytest.raises(ValueError, match=r"ends in \.png"):
        found.save(tmp_path / "it.jpg")
    with pytest.raises(ValueError, match="'outlined', 'mosaic', 'labels'"):
        found.save(tmp_path / "it.png", "colors")
    with pytest.raises(ValueError, match=r"superpixels\[i\]\.save"):
        superpixels(torch.cat([PHOTO, PHOTO]), 12).save(tmp_path / "it.png")
    with pytest.raises(ValueError, match="65536 labels do not fit"):
        Superpixels(found.image, found.labels, 65536).save(tmp_path / "it.png", "labels")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("image", "options", "error", "message"),
    [
        (PHOTO.float(), {}, TypeError, "image in uint8, got float32"),
        (ARRAY.astype(np.int64), {}, TypeError, "image in uint8, got int64"),
        (3, {}, TypeError, "a PIL image or a path, got int"),
        ([ARRAY, None], {}, TypeError, r"image\[1\] to be a tensor"),
        (ARRAY[..., 0], {}, ValueError, r"\[H, W, 3\] or \[3, H, W\]"),
        (ARRAY[..., :2], {}, ValueError, r"got \[48, 64, 2\]"),
        ("no/such/file.png", {}, ValueError, "cannot read"),
        (PHOTO, {"method": "felzenszwalb"}, ValueError, "'seeds', 'slic'"),
        (PHOTO, {"method": "slic", "num_superpixels": 0}, ValueError, "num_superpixels >= 1"),
        (PHOTO, {"stride": 8}, TypeError, "stride is no option here"),
        (PHOTO, {"method": "slic", "num_superpixels": 2.5}, TypeError, "num_superpixels to be an integer"),
        (PHOTO, {"bins": 99}, ValueError, "bins in 1..40"),
    ],
)
def test_rejects_bad_input(image, options, error, message):
    with pytest.raises(error, match=message):
        superpixels(image, **options)


@pytest.mark.parametrize(
    ("image", "labels", "count", "error", "message"),
    [
        (PHOTO[0], torch.zeros(1, 48, 64).int(), 3, TypeError, r"uint8 tensor \[B, H, W, 3\]"),
        (ARRAY[None], torch.zeros(1, 48, 64).int(), 3, TypeError, "got ndarray"),
        (PHOTO, torch.zeros(1, 48, 64), 3, TypeError, "integer tensor"),
        (PHOTO, torch.zeros(1, 24, 32).int(), 3, ValueError, r"labels \[1, 48, 64\] on cpu"),
        (PHOTO, torch.zeros(1, 48, 64).int(), 0, ValueError, "num_segments >= 1"),
    ],
)
def test_the_class_checks_its_parts(image, labels, count, error, message):
    with pytest.raises(error, match=message):
        Superpixels(image, labels, count)


def test_thickness_is_checked():
    with pytest.raises(ValueError, match="thickness >= 1"):
        halves().outlined(0)
