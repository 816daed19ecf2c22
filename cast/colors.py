"""Colours in which a hierarchy reads as one: the coarsest level sets the hue, finer levels vary lightness and chroma.

Every coarsest segment gets a hue of its own, far from the hues of the segments that it touches. Within a hue there is a
plane of lightness and chroma (the value and saturation of a perceptual colour space); it is cut into one rectangle per
child, each of those into one per grandchild, and so on. A segment's colour is the centre of its rectangle, so children
scatter around their parent, and a segment with a single child keeps its colour.
"""

import numpy as np

from cast.hierarchy import Hierarchy

_DARK, _LIGHT = 0.36, 0.89  # lightness of OKLCh; below it hues look black, above it white
_MIDDLE = 0.64
_LEAST_CHROMA = 0.35  # relative to the largest chroma that sRGB shows at that lightness and hue
_MOST_CHROMA = 0.4  # no sRGB colour has more than 0.33
_FIRST_HUE = 0.07  # in turns: a red


def hierarchy_colors(hierarchy: Hierarchy) -> list[np.ndarray]:
    """Colours of all segments of one image, level by level.

    Args:
        hierarchy: Of a single image (``batch_size == 1``), any number of levels and segments.

    Returns:
        For each level, fine to coarse, uint8 RGB ``[N_level, 3]``. Deterministic. Empty segments are black.

    Raises:
        ValueError: The hierarchy holds more than one image or none.
    """
    if hierarchy.batch_size != 1:
        raise ValueError(f"expected the hierarchy of one image, got a batch of {hierarchy.batch_size}")
    top = hierarchy.num_levels - 1
    parents = [table[0].cpu().numpy() for table in hierarchy.parents]
    present = [hierarchy.areas(level)[0].cpu().numpy() > 0 for level in range(top + 1)]

    # how many segments of level 1 a segment holds decides how large a share of its parent's rectangle it gets
    leaves = [np.ones(hierarchy.num_segments[0]), present[1].astype(float)]
    for level in range(1, top):
        leaves.append(np.bincount(parents[level], leaves[level], hierarchy.num_segments[level + 1]))

    hues = _hues(hierarchy.labels(top)[0].cpu().numpy(), hierarchy.areas(top)[0].cpu().numpy())
    boxes = np.tile([0.0, 1.0, 0.0, 1.0], (hierarchy.num_segments[top], 1))  # lightness from, to; chroma from, to
    colors = [_rgb(hues, boxes, present[top])]
    for level in range(top - 1, -1, -1):
        finer = np.zeros((hierarchy.num_segments[level], 4))
        for parent in range(len(boxes)):
            children = np.flatnonzero((parents[level] == parent) & present[level])
            if len(children):
                finer[children] = _cut(boxes[parent], leaves[level][children])
        boxes, hues = finer, hues[parents[level]]
        colors.append(_rgb(hues, boxes, present[level]))
    return colors[::-1]


def _hues(labels: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Hues in turns ``[K]``: evenly spaced over the segments that exist, neighbours in the image far apart.

    The largest segment takes the first hue; then, by decreasing border with those already coloured, each takes the free
    hue whose distance to its neighbours' hues, weighted by the length of the common border, is largest.
    """
    count = len(areas)
    border = np.zeros((count, count))
    for a, b in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
        met = (a != b) & (a >= 0) & (b >= 0)
        border += np.bincount(a[met].astype(np.int64) * count + b[met], minlength=count * count).reshape(count, count)
    border = np.sqrt(border + border.T)  # a short border still needs a contrast

    free = list(np.arange((areas > 0).sum()) / max(1, (areas > 0).sum()))
    hues, done = np.zeros(count), []
    todo = sorted(np.flatnonzero(areas > 0), key=lambda k: (-areas[k], k))
    while todo:
        nearest = max(todo, key=lambda k: (border[k, done].sum(), areas[k], -k))
        weights, taken = border[nearest, done], hues[done]

        def contrast(hue: float, weights=weights, taken=taken) -> float:
            gap = np.abs(hue - taken)
            return float((weights * np.minimum(gap, 1 - gap)).sum()) if len(taken) else 0.0

        best = max(range(len(free)), key=lambda i: (contrast(free[i]), -i))
        hues[nearest] = free.pop(best)
        todo.remove(nearest)
        done.append(nearest)
    return (hues + _FIRST_HUE) % 1


def _cut(box: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Cut one rectangle, half by half, into ``[n, 4]`` rectangles of areas proportional to the weights."""
    if len(weights) == 1:
        return box[None]
    share = np.cumsum(weights) / weights.sum()
    split = min(max(int(np.abs(share - 0.5).argmin()) + 1, 1), len(weights) - 1)
    first, second = box.copy(), box.copy()
    axis = 0 if box[1] - box[0] >= box[3] - box[2] else 2  # across the longer side, lightness before chroma
    first[axis + 1] = second[axis] = box[axis] + share[split - 1] * (box[axis + 1] - box[axis])
    return np.concatenate([_cut(first, weights[:split]), _cut(second, weights[split:])])


def _rgb(hues: np.ndarray, boxes: np.ndarray, present: np.ndarray) -> np.ndarray:
    """The centres of the rectangles as sRGB bytes ``[n, 3]``; black where no segment is present."""
    height, chroma = boxes[:, :2].mean(1), boxes[:, 2:].mean(1)
    # half-way to the lightness at which the hue is most colourful: a blue may be deeper than a yellow
    middle = (_MIDDLE + _colourful_lightness(hues)) / 2
    below, above = _DARK + (middle - _DARK) * 2 * height, middle + (_LIGHT - middle) * (2 * height - 1)
    lightness = np.where(height < 0.5, below, above)
    # greys are hard to tell apart, so the scale is wider at the dull end and its middle is colourful
    chroma = (1 - (1 - _LEAST_CHROMA) * (1 - chroma) ** 2) * _largest_chroma(lightness, hues)
    linear = np.clip(_oklch_to_linear(lightness, chroma, hues), 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.where(present[:, None], np.rint(255 * srgb), 0).astype(np.uint8)


def _largest_chroma(lightness: np.ndarray, hues: np.ndarray) -> np.ndarray:
    """The largest chroma that sRGB can show, by bisection."""
    low, high = np.zeros(lightness.shape), np.full(lightness.shape, _MOST_CHROMA)
    for _ in range(20):
        middle = (low + high) / 2
        linear = _oklch_to_linear(lightness, middle, hues)
        inside = ((linear >= 0) & (linear <= 1)).all(-1)
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return low


def _colourful_lightness(hues: np.ndarray) -> np.ndarray:
    """The lightness at which each hue has its largest chroma."""
    steps = np.linspace(_DARK, _LIGHT, 57)
    lightness, grid = np.broadcast_arrays(steps, hues[:, None])
    return steps[_largest_chroma(lightness, grid).argmax(1)]


def _oklch_to_linear(lightness: np.ndarray, chroma: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """OKLCh to linear sRGB ``[.., 3]`` (Ottosson, "A perceptual color space for image processing", 2020)."""
    a, b = chroma * np.cos(2 * np.pi * turns), chroma * np.sin(2 * np.pi * turns)
    cones = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ],
        -1,
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    return cones**3 @ to_rgb.T
