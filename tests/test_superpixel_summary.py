import numpy as np
import pytest
import torch

from cast_kernels import seeds, superpixel_summary
from cast_kernels.testing import superpixel_summary_oracle, synthetic_image

op = torch.ops.cast_kernels.superpixel_summary.default
SHAPES = [  # B, (H, W), S
    (1, (1, 1), 1),
    (2, (5, 13), 7),
    (3, (17, 1), 4),
    (1, (1, 19), 5),
    (2, (23, 31), 300),
]


def inputs(B, grid, S, seed=0, device="cpu"):
    """Labels in short runs, one too low and one too high among them, and noise."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, S + 1, (B, *grid), generator=g).repeat_interleave(3, 2)[:, :, : grid[1]]
    image = torch.randint(0, 256, (B, *grid, 3), generator=g, dtype=torch.uint8)
    return labels.to(device), image.to(device)


def assert_matches(found, exact):
    assert torch.equal(found[0].cpu(), exact[0])
    assert torch.equal(found[1].cpu(), exact[1])
    assert found[2].dtype == torch.float32
    assert torch.equal(found[2].cpu(), exact[2].float())
    assert torch.equal(found[3].cpu(), exact[3])


@pytest.mark.parametrize("boundary", ["thin", "thick"])
@pytest.mark.parametrize(("B", "grid", "S"), SHAPES)
def test_matches_oracle(B, grid, S, boundary, device, poison):
    labels, image = inputs(B, grid, S, device=device)
    exact = superpixel_summary_oracle(labels, S, image, boundary == "thick")
    assert_matches(superpixel_summary(labels, S, image, boundary=boundary), exact)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_label_dtypes_and_layouts(dtype, device):
    labels, image = inputs(2, (9, 14), 6, device=device)
    expected = superpixel_summary(labels.clamp(min=0), 6, image)
    labels = labels.clamp(min=0).to(dtype).mT.contiguous().mT
    found = superpixel_summary(labels, 6, image.permute(0, 3, 1, 2).contiguous())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_without_an_image_there_are_no_colours(device):
    labels, image = inputs(2, (9, 14), 6, device=device)
    found = superpixel_summary(labels, 6)
    assert found.color is None
    full = superpixel_summary(labels, 6, image)
    for name in ("area", "box", "boundary"):
        assert torch.equal(getattr(found, name), getattr(full, name))


def test_agrees_with_scikit_image(device):
    from skimage.measure import regionprops
    from skimage.segmentation import find_boundaries

    image = synthetic_image(61, 83)
    labels = seeds(image, 40)
    count = int(labels.max()) + 1
    found = superpixel_summary(labels.to(device), count, image.to(device), boundary="thick")
    regions = regionprops(labels[0].numpy() + 1, image[0].numpy())  # label 0 is its background
    assert found.area[0].tolist() == [round(region.area) for region in regions]
    assert found.box[0].tolist() == [list(region.bbox) for region in regions]
    means = np.stack([region.intensity_mean for region in regions])
    np.testing.assert_allclose(found.color[0].cpu().numpy(), means, rtol=1e-6)
    for mode in ("thick", "inner"):
        expected = find_boundaries(labels[0].numpy(), mode=mode, background=-1)
        assert np.array_equal(found.boundary[0].cpu().numpy(), expected)


def test_the_thin_boundary_is_one_pixel_wide():
    labels = torch.tensor([[[7, 7, 7, 2, 2, 2]] * 3])
    assert superpixel_summary(labels, 8).boundary[0].any(0).tolist() == [False, False, True, False, False, False]


def test_colours_of_large_segments_are_exact():
    """More than 2^24 levels in all: a float32 sum would round."""
    image = torch.randint(200, 256, (1, 400, 401, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    color = superpixel_summary(torch.zeros(1, 400, 401, dtype=torch.int32), 1, image).color
    assert torch.equal(color[:, 0], image.double().mean((1, 2)).float())


def test_no_images():
    found = superpixel_summary(torch.zeros(0, 4, 5).int(), 3, torch.zeros(0, 4, 5, 3, dtype=torch.uint8))
    assert [list(x.shape) for x in found] == [[0, 3], [0, 3, 4], [0, 3, 3], [0, 4, 5]]


def test_names_of_the_segments_do_not_matter(device):
    labels, image = inputs(2, (12, 17), 9, device=device)
    labels = labels.clamp(0, 8)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0)).to(device)
    found, renamed = superpixel_summary(labels, 9, image), superpixel_summary(order[labels], 9, image)
    for name in ("area", "box", "color"):
        assert torch.equal(getattr(renamed, name)[:, order], getattr(found, name))
    assert torch.equal(renamed.boundary, found.boundary)
    assert found.area.sum() == labels.numel()


def test_runs_are_equal_bit_for_bit(device):
    labels, image = inputs(2, (31, 40), 9, device=device)
    first = superpixel_summary(labels, 9, image)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(superpixel_summary(labels, 9, image), first, strict=True))


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "no image"])
def test_opcheck(layout, device):
    labels, image = inputs(2, (5, 7), 4, device=device)
    if layout == "transposed":
        labels, image = labels.mT.contiguous().mT, image.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)
    for kind in (torch.int64, torch.int32):
        torch.library.opcheck(op, (labels.to(kind), 4, None if layout == "no image" else image, True))


def test_compiles_whole(device):
    def measure(labels, image):
        found = superpixel_summary(labels, 5, image)
        return found.area + 1, found.box, found.color * 2, found.boundary

    compiled = torch.compile(measure, fullgraph=True, backend="aot_eager")
    for grid in ((6, 9), (8, 5)):
        case = inputs(2, grid, 5, device=device)
        assert all(torch.equal(a, b) for a, b in zip(compiled(*case), measure(*case), strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.zeros(2, 4, 5)}, TypeError, "int32, int64 or uint8"),
        ({"labels": torch.zeros(4, 5).int()}, ValueError, r"labels \[B, H, W\]"),
        ({"num_segments": 0}, ValueError, "num_segments >= 1"),
        ({"num_segments": 2.0}, TypeError, "num_segments to be an int"),
        ({"boundary": "outer"}, ValueError, "'thin', 'thick'"),
        ({"image": torch.zeros(2, 4, 5, 3)}, TypeError, "uint8"),
        ({"image": torch.zeros(4, 5, 3, dtype=torch.uint8)}, ValueError, "one image"),
        ({"image": torch.zeros(2, 5, 4, 3, dtype=torch.uint8)}, ValueError, "on the grid of labels"),
        ({"image": torch.zeros(2, 4, 5, 3, dtype=torch.uint8, device="meta")}, ValueError, "one device"),
    ],
)
def test_rejects_bad_input(change, error, message):
    arguments = {"labels": torch.zeros(2, 4, 5, dtype=torch.int32), "num_segments": 3} | change
    with pytest.raises(error, match=message):
        superpixel_summary(**arguments)
