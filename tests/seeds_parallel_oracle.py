"""The parallel order of SEEDS a second time: plain Python and NumPy, slow, from its description alone.

Nothing here is shared with the package: docs/superpixels.md says what is done, this does it on whole label maps, with
connectivity tested by flood fill in the 3 x 3 neighbourhood and cells compared as exact fractions.
"""

import itertools
import math
from fractions import Fraction

import numpy as np

COLOURS = [(0, 0), (1, 1), (1, 0), (0, 1)]
STEPS = [(1, 0), (0, -1), (-1, 0), (0, 1)]  # (dx, dy): east, north, west, south


def edges(size, cells):
    """First pixel of every cell and the end, where pixel i lies in cell min(i * cells // size, cells - 1)."""
    owner = np.minimum(np.arange(size) * cells // size, cells - 1)
    return [int(np.argmax(owner == cell)) for cell in range(cells)] + [size]


def grid(height, width, request):
    """Blocks and superpixels as (columns, rows)."""
    f = np.float32
    request = max(request, 10)
    rows = int(np.sqrt(f(f(request) * f(height)) / f(width)))
    columns = rows * width // height
    block_width, block_height = f(width) / f(columns) / f(2), f(height) / f(rows) / f(2)
    blocks = (width // math.ceil(block_width), height // math.ceil(block_height))
    return blocks, (blocks[0] // 2, blocks[1] // 2)


def at(labels, x, y):
    rows, columns = labels.shape
    return labels[y, x] if 0 <= x < columns and 0 <= y < rows else -1


def may_leave(labels, x, y):
    """Exactly one 4-connected piece of the own label among the eight neighbours touches the site's sides."""
    own = labels[y, x]
    todo = {
        (x + i, y + j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0) and at(labels, x + i, y + j) == own
    }
    sides = {(x + dx, y + dy) for dx, dy in STEPS}
    pieces = 0
    while todo:
        piece, front = set(), {todo.pop()}
        while front:
            i, j = front.pop()
            piece.add((i, j))
            near = {(i + dx, j + dy) for dx, dy in STEPS} & todo
            todo -= near
            front |= near
        pieces += bool(piece & sides)
    return pieces == 1


def beside(labels, x, y):
    """The other labels beside a site, each with the first direction that shows it."""
    found = {}
    for step in STEPS:
        label = at(labels, x + step[0], y + step[1])
        if label not in (-1, labels[y, x]):
            found.setdefault(label, step)
    return found


def counts(labels, x, y, step, wide, own, other):
    """How many pixels around carry each label: of the 3 x 4 window of the pair without it, or of the ring."""
    dx, dy = step
    if wide:
        sites = [(x + a * dx + b * dy, y + a * dy + b * dx) for a in (-1, 0, 1, 2) for b in (-1, 0, 1)]
        sites = [s for s in sites if s not in ((x, y), (x + dx, y + dy))]
    else:
        sites = [(x + i, y + j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
    around = [at(labels, *site) for site in sites]
    return around.count(own), around.count(other)


def parallel_seeds(bins, request, steps):
    """Labels [H, W] of an image given by its joint colour bins [H, W].

    ``steps``: (kind, repeats, least percent, most percent), kinds blocks, halves, quarters, wide, narrow = 0 to 4.
    """
    height, width = bins.shape
    _, bins = np.unique(bins, return_inverse=True)
    bins = bins.reshape(height, width)
    blocks, top = grid(height, width, request)
    x_edges, y_edges = edges(width, blocks[0]), edges(height, blocks[1])
    cells = np.array(
        [[(y - 1) * top[1] // height * top[0] + (x - 1) * top[0] // width for x in x_edges[1:]] for y in y_edges[1:]]
    )
    count = top[0] * top[1]
    mean = height * width // count
    level = 0

    def spread():
        return np.repeat(np.repeat(cells, np.diff(y_edges), 0), np.diff(x_edges), 1)

    def histograms(labels):
        table = np.zeros((count, bins.max() + 1), np.int64)
        np.add.at(table, (labels.ravel(), bins.ravel()), 1)
        return table

    for kind, repeats, least, most in (s for s in steps if s[0] <= 2):
        while level < kind and min(*np.diff(x_edges), *np.diff(y_edges)) >= 2:
            x_edges = sorted({*x_edges, *((a + b) // 2 for a, b in itertools.pairwise(x_edges))})
            y_edges = sorted({*y_edges, *((a + b) // 2 for a, b in itertools.pairwise(y_edges))})
            cells = np.repeat(np.repeat(cells, 2, 0), 2, 1)
            level += 1
        if level < kind:
            break
        for colour in COLOURS * repeats:
            table = histograms(spread())
            cells = cell_phase(cells, x_edges, y_edges, bins, table, colour, mean * least // 100, mean * most // 100)

    labels = spread()
    for kind, repeats, least, most in (s for s in steps if s[0] > 2):
        for colour in COLOURS * repeats:
            limits = mean * least // 100, mean * most // 100
            labels = pixel_phase(labels, bins, histograms(labels), colour, kind == 3, *limits)
    return labels


def cell_phase(cells, x_edges, y_edges, bins, table, colour, least, most):
    after = cells.copy()
    total = table.sum(1)
    for y in range(colour[1], cells.shape[0], 2):
        for x in range(colour[0], cells.shape[1], 2):
            own, others = cells[y, x], beside(cells, x, y)
            if not others:
                continue
            part = np.bincount(
                bins[y_edges[y] : y_edges[y + 1], x_edges[x] : x_edges[x + 1]].ravel(), minlength=table.shape[1]
            )
            size = int(part.sum())
            if not may_leave(cells, x, y) or total[own] - size < least:
                continue

            def share(histogram, part=part, size=size):
                rest = int(histogram.sum())
                return Fraction(int(np.minimum(histogram * size, part * rest).sum()), rest)

            best, to = share(table[own] - part), own
            for other in others:
                if total[other] <= most and share(table[other]) > best:
                    best, to = share(table[other]), other
            after[y, x] = to
    return after


def pixel_phase(labels, bins, table, colour, wide, least, most):
    after = labels.copy()
    total = table.sum(1)
    size = total.astype(np.float32)
    inverse = np.float32(1) / (size * size)
    power = 5 if wide else 8
    for y in range(colour[1], labels.shape[0], 2):
        for x in range(colour[0], labels.shape[1], 2):
            own, c, others = labels[y, x], bins[y, x], beside(labels, x, y)
            if not others or not may_leave(labels, x, y) or total[own] <= least:
                continue
            best, to = np.float32(table[own, c]) * inverse[own], own
            for other, step in others.items():
                if total[other] > most:
                    continue
                a, b = counts(labels, x, y, step, wide, own, other)
                prior = np.float32(math.prod([b / a] * power) if a and b else 1.0)
                value = np.float32(table[other, c]) * inverse[other] * prior
                if value > best:
                    best, to = value, other
            after[y, x] = to
    return after
