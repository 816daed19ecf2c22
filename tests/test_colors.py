import colorsys
import itertools

import numpy as np
import pytest
import torch

from cast.colors import hierarchy_colors
from cast.hierarchy import Hierarchy


def grid_hierarchy(counts, side=64, seed=0):
    """Superpixels on a grid of cells; parents drawn at random, every segment in use."""
    cells = int(np.ceil(np.sqrt(counts[0])))
    rows = torch.arange(side) * cells // side
    superpixels = (rows[:, None] * cells + rows).clamp(max=counts[0] - 1)[None]
    g = torch.Generator().manual_seed(seed)
    parents = []
    for fine, coarse in itertools.pairwise(counts):
        table = torch.cat([torch.arange(coarse), torch.randint(0, coarse, (fine - coarse,), generator=g)])
        parents.append(table[torch.randperm(fine, generator=g)][None])
    return Hierarchy(superpixels, parents, num_coarsest=counts[-1])


def hue(color):
    """Hue in turns of OKLab, in which a hue looks the same at every lightness."""
    linear = np.where(color / 255 <= 0.04045, color / 255 / 12.92, ((color / 255 + 0.055) / 1.055) ** 2.4)
    to_cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    cones = np.cbrt(to_cones @ linear)
    a = np.array([1.9779984951, -2.4285922050, 0.4505937099]) @ cones
    b = np.array([0.0259040371, 0.7827717662, -0.8086757660]) @ cones
    return np.arctan2(b, a) / (2 * np.pi) % 1


def turn(first, second):
    gap = abs(first - second) % 1
    return min(gap, 1 - gap)


@pytest.mark.parametrize(
    "counts", [(196, 64, 32, 16, 8), (36, 12, 3), (9, 1), (5, 5), (300, 40), (64, 32, 16, 8, 4, 2)]
)
def test_hue_comes_from_the_coarsest_level(counts):
    hierarchy = grid_hierarchy(counts)
    colors = hierarchy_colors(hierarchy)
    assert [c.shape for c in colors] == [(n, 3) for n in counts]
    assert all(c.dtype == np.uint8 for c in colors)
    top = len(counts) - 1
    present = [hierarchy.areas(level)[0] > 0 for level in range(len(counts))]
    for level in range(top):
        ancestors = torch.arange(counts[level])
        for parents in hierarchy.parents[level:]:
            ancestors = parents[0][ancestors]
        for segment in torch.nonzero(present[level]).flatten().tolist():
            gap = turn(hue(colors[level][segment]), hue(colors[top][ancestors[segment]]))
            assert gap < 0.02, "a finer segment left the hue of its ancestor"


def test_segments_that_share_a_parent_differ():
    hierarchy = grid_hierarchy((196, 64, 32, 16, 8))
    colors = hierarchy_colors(hierarchy)
    for level in (1, 2, 3):
        rows = {tuple(color) for color in colors[level].tolist()}
        assert len(rows) == len(colors[level]), "two segments of one level have the same colour"


def test_an_only_child_keeps_the_colour_of_its_parent():
    superpixels = torch.arange(4).view(1, 2, 2)
    hierarchy = Hierarchy(superpixels, [torch.tensor([[0, 1, 2, 2]]), torch.tensor([[0, 1, 1]])])
    fine, middle, coarse = hierarchy_colors(hierarchy)
    assert (middle[0] == coarse[0]).all()
    assert (fine[0] == middle[0]).all()
    assert (fine[1] == middle[1]).all()
    assert (middle[1] != middle[2]).any()
    assert (fine[2] != fine[3]).any()


@pytest.mark.parametrize("count", [2, 3, 8, 16])
def test_neighbours_of_the_coarsest_level_have_distant_hues(count):
    # stripes: each segment touches two others
    superpixels = (torch.arange(64) * count // 64).repeat(8, 1)[None]
    hierarchy = Hierarchy(superpixels, [torch.arange(count)[None]])
    hues = [hue(color) for color in hierarchy_colors(hierarchy)[-1]]
    gaps = [turn(a, b) for a, b in itertools.pairwise(hues)]
    assert min(gaps) > 0.12
    assert np.mean(gaps) > 0.24


def test_hues_are_spread_over_the_segments_that_exist():
    superpixels = torch.tensor([[[0, 1, 2]]])
    many = Hierarchy(superpixels, [torch.tensor([[5, 77, 31]])], num_coarsest=100)
    colors = hierarchy_colors(many)[-1]
    hues = sorted(hue(colors[k]) for k in (5, 31, 77))
    assert min(turn(a, b) for a, b in zip(hues, [*hues[1:], hues[0]], strict=True)) > 0.3
    assert (np.delete(colors, [5, 31, 77], axis=0) == 0).all()


def test_deterministic_and_independent_of_resolution_of_one_image():
    hierarchy = grid_hierarchy((49, 16, 8), side=56)
    first, again = hierarchy_colors(hierarchy), hierarchy_colors(hierarchy)
    doubled = hierarchy_colors(hierarchy.resize(112, 112))
    for a, b, c in zip(first, again, doubled, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


def test_colours_are_colourful_and_neither_black_nor_white():
    for colors in hierarchy_colors(grid_hierarchy((196, 64, 32, 16, 8)))[1:]:
        for color in colors / 255:
            _, saturation, value = colorsys.rgb_to_hsv(*color)
            assert value > 0.2
            assert saturation > 0.05


def test_stray_pixels_do_not_matter():
    hierarchy = grid_hierarchy((16, 8, 4))
    superpixels = hierarchy.superpixels.clone()
    superpixels[0, 0, 0] = -1
    stray = Hierarchy(superpixels, hierarchy.parents, num_coarsest=4)
    for a, b in zip(hierarchy_colors(hierarchy), hierarchy_colors(stray), strict=True):
        np.testing.assert_array_equal(a, b)


def test_rejects_a_batch():
    superpixels = torch.zeros(2, 3, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="batch of 2"):
        hierarchy_colors(Hierarchy(superpixels, [torch.zeros(2, 1, dtype=torch.int64)]))
