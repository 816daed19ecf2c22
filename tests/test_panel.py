import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from cast.colors import hierarchy_colors
from cast.hierarchy import Hierarchy
from cast.panel import color_map, draw_outlines, draw_panel, outlines


def halves(height=16, width=24, levels=4):
    """Left and right half, then everything."""
    superpixels = (torch.arange(width) * 2 // width).repeat(height, 1)[None]
    parents = [torch.tensor([[0, 1]])] * (levels - 1) + [torch.tensor([[0, 0]])]
    return Hierarchy(superpixels, parents)


@pytest.mark.parametrize(("thickness", "columns"), [(1, [2]), (2, [2, 3]), (3, [1, 2, 3]), (4, [1, 2, 3, 4])])
def test_outlines_lie_evenly_over_the_border(thickness, columns):
    labels = np.array([[7, 7, 7, 2, 2, 2]] * 3)
    for edge in (outlines(labels, thickness), outlines(labels.T, thickness).T):
        assert edge.any(0).nonzero()[0].tolist() == columns
        assert (edge == edge[0]).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (2, 2)])
def test_outlines_of_tiny_maps(shape):
    labels = np.arange(np.prod(shape)).reshape(shape)
    for thickness in (1, 2, 9):
        edge = outlines(labels, thickness)
        assert edge.shape == shape
        assert edge.any() == (labels.size > 1)


def test_one_segment_has_no_outline():
    photo = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(draw_outlines(photo, np.zeros((9, 7), int)), photo)


def test_drawn_outlines_leave_the_inside_and_the_input_alone():
    photo = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    before = photo.copy()
    labels = np.repeat(np.arange(2), 15)[None].repeat(20, 0)
    picture = draw_outlines(photo, labels, 2)
    np.testing.assert_array_equal(photo, before)
    changed = (picture != photo).any(2).any(0).nonzero()[0]
    assert changed.min() >= 13
    assert changed.max() <= 16
    assert (picture[:, 14:16, 0] > 200).all()
    assert (picture[:, 14:16, 2] < 120).all()
    with pytest.raises(ValueError, match="photo's size"):
        draw_outlines(photo, labels.T)


def test_lines_grow_with_the_resolution():
    labels = np.repeat(np.arange(2), 1000)[None].repeat(1200, 0)
    photo = np.full((1200, 2000, 3), 128, np.uint8)
    yellow = (draw_outlines(photo, labels)[0] == draw_outlines(photo, labels)[0, 1000]).all(1)
    assert yellow.sum() == 3


def test_palette_image_holds_the_labels():
    labels = np.random.default_rng(0).integers(0, 64, (10, 12))
    colors = np.random.default_rng(1).integers(0, 256, (64, 3), dtype=np.uint8)
    image = color_map(labels, colors)
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), labels)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), colors[labels])


def test_more_colours_than_a_palette_holds():
    labels = np.arange(300).reshape(20, 15)
    colors = np.random.default_rng(1).integers(0, 256, (300, 3), dtype=np.uint8)
    image = color_map(labels, colors)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), colors[labels])


@pytest.mark.parametrize("count", [3, 255, 256, 300])
def test_pixels_without_a_segment_are_white(count):
    labels = np.array([[-1, count - 1]], np.int32)
    colors = np.full((count, 3), 10, np.uint8)
    image = np.asarray(color_map(labels, colors).convert("RGB"))
    np.testing.assert_array_equal(image, [[[255] * 3, [10] * 3]])


@pytest.mark.parametrize("levels", [1, 4, 7])
@pytest.mark.parametrize(("height", "width"), [(16, 24), (24, 16), (16, 16), (8, 128), (128, 8)])
def test_panel_of_any_shape_and_number_of_levels(height, width, levels):
    photo = np.full((height * 3, width * 3, 3), 90, np.uint8)
    hierarchy = halves(height, width, levels)
    panel = draw_panel(photo, hierarchy)
    assert panel.mode == "RGB"
    assert max(panel.size) < 6000
    view = (np.asarray(panel) == 90).all(2)
    factor = max(1, round(560 / max(height, width)))
    # the first tile is the photo itself, the second mostly
    assert height * width * factor**2 <= view.sum() <= 2 * height * width * factor**2


def test_panel_shows_every_level_in_its_colours():
    hierarchy = halves(16, 24, 1)
    photo = np.full((16, 24, 3), 128, np.uint8)  # mid-grey shades nothing but by 1/255
    panel = np.asarray(draw_panel(photo, hierarchy)).astype(int)
    for color in hierarchy_colors(hierarchy)[1][:1].astype(int):
        assert (np.abs(panel - color).max(2) <= 2).sum() > 1000


@pytest.mark.parametrize(("height", "width"), [(16, 24), (128, 8)])
def test_every_tile_has_its_caption(monkeypatch, height, width):
    photo, hierarchy = np.full((height, width, 3), 90, np.uint8), halves(height, width)
    written, places, text = [], [], ImageDraw.ImageDraw.text

    def remember(draw, place, caption, *arguments, **options):
        if caption:
            written.append(caption)
            places.append(place)
        text(draw, place, caption, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ImageDraw.ImageDraw, "text", remember)
        captioned = np.asarray(draw_panel(photo, hierarchy)).astype(int)
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda *_, **__: None)
    bare = np.asarray(draw_panel(photo, hierarchy)).astype(int)
    ways = ["level 1: 2-way", "level 2: 2-way", "level 3: 2-way", "level 4: 1-way"]
    assert written == ["photo", "2 superpixels", *ways]
    assert len(set(places)) == 6
    ink = (captioned != bare).any(2)
    assert (bare[ink] == 255).all()  # captions lie on paper, not on pictures
    for x, y in places:  # letters around the place of each
        assert ink[round(y) - 8 : round(y) + 8, round(x) - 20 : round(x) + 20].sum() > 40


def test_note_is_written_in_warning_colour_and_only_if_there_is_one():
    photo = np.full((16, 24, 3), 90, np.uint8)
    plain = np.asarray(draw_panel(photo, halves()))
    noted = np.asarray(draw_panel(photo, halves(), note="Random weights (seed 0)"))
    assert noted.shape[0] > plain.shape[0]
    np.testing.assert_array_equal(noted[: plain.shape[0] - 8], plain[:-8])
    red = (noted[plain.shape[0] - 8 :] == (190, 30, 20)).all(2)
    assert red.sum() > 100
    assert not (plain == (190, 30, 20)).all(2).any()


def test_long_notes_stay_inside_the_panel():
    photo = np.full((128, 8, 3), 90, np.uint8)
    panel = np.asarray(draw_panel(photo, halves(128, 8), note="Random weights (seed 0): not trained at all."))
    assert (panel[:, :2] == 255).all()
    assert (panel[:, -2:] == 255).all()
    assert panel.shape[1] > 250  # wide enough for the text, wider than the tiles


def test_deterministic(tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (30, 45, 3), dtype=np.uint8)
    for name in "ab":
        draw_panel(photo, halves(), note="x").save(tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert Image.open(tmp_path / "a.png").width > 600
