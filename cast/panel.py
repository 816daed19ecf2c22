"""Pictures of a hierarchy: outlines over the photo, colour maps, and the panel that shows all levels side by side."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cast.colors import hierarchy_colors
from cast.hierarchy import Hierarchy

_TILE = 560  # the long side of a tile in the panel, about: label maps are enlarged by whole factors
_ASPECT = 2.0  # width / height that the panel's grid comes as close to as it can
_SMALLEST = 12  # pixels of the font
_PAPER, _INK, _WARNING = (255, 255, 255), (32, 32, 36), (190, 30, 20)
OUTLINE = (  # colour, opacity, and extent in thicknesses of a line
    ((0, 0, 0), 0.45, 2),  # a dark band that sets
    ((255, 238, 80), 0.9, 1),  # the outline off from a photo of any colour
)
_SHADE = 0.22  # share of the photo's brightness in a tile's colours, so that the eye finds the photo again


def outlines(labels: np.ndarray, thickness: int = 1) -> np.ndarray:
    """Pixels along the borders between labels.

    Args:
        labels: Integer label map ``[H, W]``.
        thickness: Of the lines, in pixels, laid evenly over both sides of the border (odd ones on the upper left).

    Returns:
        bool ``[H, W]``.
    """
    edge = np.zeros(labels.shape, dtype=bool)
    for axis in (0, 1):
        along, target = np.moveaxis(labels, axis, 0), np.moveaxis(edge, axis, 0)
        differs = along[1:] != along[:-1]
        for shift in range(-((thickness - 1) // 2), thickness // 2 + 1):
            first, last = max(0, shift), min(len(along), len(differs) + shift)
            if first < last:
                target[first:last] |= differs[first - shift : last - shift]
    return edge


def draw_outlines(photo: np.ndarray, labels: np.ndarray, thickness: int | None = None) -> np.ndarray:
    """The photo with the outlines of its segments.

    Args:
        photo: uint8 ``[H, W, 3]``.
        labels: Integer label map ``[H, W]``.
        thickness: Of the lines, in pixels; by default one for each 400 of the short side.

    Returns:
        uint8 ``[H, W, 3]``.
    """
    if photo.shape[:2] != labels.shape:
        raise ValueError(f"expected labels of the photo's size {photo.shape[:2]}, got {labels.shape}")
    if thickness is None:
        thickness = max(1, round(min(labels.shape) / 400))
    picture = photo.copy()
    for color, opacity, extent in OUTLINE:
        edge = outlines(labels, extent * thickness)
        picture[edge] = np.rint((1 - opacity) * picture[edge] + opacity * np.array(color)).astype(np.uint8)
    return picture


def color_map(labels: np.ndarray, colors: np.ndarray) -> Image.Image:
    """One level in its colours, ready to be saved as PNG.

    Args:
        labels: Integer label map ``[H, W]``; -1 (no segment) becomes white.
        colors: uint8 ``[N, 3]``.

    Returns:
        Up to 256 colours make a palette image, whose pixel values are the labels; more make an RGB image.
    """
    stray = labels < 0
    if len(colors) + bool(stray.any()) <= 256:
        image = Image.fromarray(np.where(stray, 255, labels).astype(np.uint8), "P")
        table = np.full((256, 3), 255, dtype=np.uint8)
        table[: len(colors)] = colors
        image.putpalette(table.tobytes())
        return image
    return Image.fromarray(np.where(stray[..., None], np.uint8(255), colors[np.where(stray, 0, labels)]))


def draw_panel(photo: np.ndarray, hierarchy: Hierarchy, *, colors: list | None = None, note: str = "") -> Image.Image:
    """The panel: the photo, its superpixels, and every coarser level in colours that tell who belongs to whom.

    Args:
        photo: uint8 ``[H, W, 3]`` at any resolution, of the same field of view as the hierarchy.
        hierarchy: Of a single image, on the network's pixels.
        colors: What ``hierarchy_colors(hierarchy)`` returns, if it is at hand.
        note: A line in warning colour under the panel, for instance that the weights are random.

    Returns:
        An RGB image, about 1300 pixels wide for four groupings of a landscape photo.
    """
    colors = hierarchy_colors(hierarchy) if colors is None else colors
    height, width = hierarchy.size
    factor = max(1, round(_TILE / max(height, width)))
    view = np.asarray(Image.fromarray(photo).resize((width * factor, height * factor), Image.Resampling.LANCZOS))
    maps = [np.kron(m, np.ones((factor, factor), m.dtype)) for m in hierarchy.label_maps()[0].cpu().numpy()]

    tiles = [view, draw_outlines(view, maps[0], factor)]
    captions = ["photo", f"{hierarchy.num_segments[0]} superpixels"]
    for level in range(1, hierarchy.num_levels):
        tiles.append(_shaded(view, color_map(maps[level], colors[level]), outlines(maps[level], factor)))
        captions.append(f"level {level}: {hierarchy.num_segments[level]}-way")
    return compose(tiles, captions, note)


def _shaded(view: np.ndarray, flat: Image.Image, edge: np.ndarray) -> np.ndarray:
    """A level's colours, lighter and darker with the photo, its borders drawn thin and dark."""
    grey = np.asarray(Image.fromarray(view).convert("L"), dtype=np.float32)[..., None]
    picture = np.asarray(flat.convert("RGB"), dtype=np.float32) * (1 + _SHADE * (grey / 127.5 - 1))
    picture[edge] *= 0.45
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def compose(tiles: list[np.ndarray], captions: list[str], note: str = "") -> Image.Image:
    """Tiles of one size, uint8 ``[H, W, 3]``, in rows, a caption under each, the note under all."""
    height, width = tiles[0].shape[:2]
    gap = max(4, width // 32)
    columns = _columns(len(tiles), width + gap, height + gap)
    font = _fit(captions, width, columns * (width + gap) // 46)
    cell = max(width, *(math.ceil(font.getlength(caption)) for caption in captions)) + gap  # text under a narrow photo
    band = round(1.75 * font.size)
    grid = (columns * cell + gap, math.ceil(len(tiles) / columns) * (height + band) + gap)
    note_font = _fit([note], grid[0] - 2 * gap, round(0.8 * font.size))
    foot = round(1.9 * note_font.size) if note else 0

    panel = Image.new("RGB", (max(grid[0], math.ceil(note_font.getlength(note)) + 2 * gap), grid[1] + foot), _PAPER)
    draw = ImageDraw.Draw(panel)
    margin = (panel.width - grid[0]) // 2
    for index, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        row, column = divmod(index, columns)
        x, y = margin + gap + column * cell + (cell - gap - width) // 2, gap + row * (height + band)
        panel.paste(Image.fromarray(tile), (x, y))
        draw.text((x + width / 2, y + height + band * 0.44), caption, _INK, font, anchor="mm")
    draw.text((panel.width / 2, panel.height - foot * 0.55), note, _WARNING, note_font, anchor="mm")
    return panel


def _columns(count: int, width: int, height: int) -> int:
    """The number of columns whose grid is full, or nearly so, and near to the wanted aspect."""

    def miss(columns: int) -> float:
        rows = math.ceil(count / columns)
        empty = (rows * columns - count) / count
        return abs(math.log(columns * width / (rows * height) / _ASPECT)) + 2 * empty

    return min(range(1, count + 1), key=miss)


def _fit(texts: list[str], width: int, size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, as large as ``size``, or smaller to keep the longest text within ``width``, but legible."""
    size = max(size, _SMALLEST)
    longest = max(ImageFont.load_default(size).getlength(text) for text in texts)
    return ImageFont.load_default(max(_SMALLEST, min(size, int(size * width / max(longest, 1)))))
