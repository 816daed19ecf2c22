"""k-means on tokens: against a second way to compute it in float64, on clusters that are known, and nesting."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cast.evaluate import kmeans_hierarchy


def by_loops(tokens, size, counts, seed, iterations, spherical):
    """The definition for one image, centre by centre and point by point."""
    generator = torch.Generator().manual_seed(seed)
    pixels = F.interpolate(tokens[None].double(), size, mode="bilinear", align_corners=False)[0]
    points = pixels.flatten(1).T.numpy()
    maps = []
    for count in counts:
        centres = points[torch.randperm(len(points), generator=generator)[:count].numpy()].copy()
        if spherical:
            centres /= np.linalg.norm(centres, axis=1, keepdims=True)
        labels, fits = assign(points, centres, spherical)
        for _ in range(iterations):
            worst = iter(np.argsort(fits, kind="stable"))
            for k in range(count):
                mine = points[labels == k]
                centres[k] = mine.mean(0) if len(mine) else points[next(worst)]
                if spherical:
                    centres[k] /= np.linalg.norm(centres[k])
            labels, fits = assign(points, centres, spherical)
        maps.append(labels[maps[-1]] if maps else labels)
        points = centres
    return torch.from_numpy(np.stack(maps)).unflatten(1, size)


def assign(points, centres, spherical):
    if spherical:
        fits = (points / np.linalg.norm(points, axis=1, keepdims=True)) @ centres.T
    else:
        fits = -((points[:, None] - centres[None]) ** 2).sum(-1) / 2
    return fits.argmax(1), fits.max(1)


@pytest.mark.parametrize("spherical", [True, False])
@pytest.mark.parametrize("shape", [(5, 4, 3), (3, 2, 7)])
def test_equals_the_definition(spherical, shape, generator):
    tokens = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    options = {"counts": (12, 5, 2), "seed": 3, "iterations": 7, "spherical": spherical}
    found = kmeans_hierarchy(tokens, (17, 12), **options)
    for image, one in zip(tokens, found, strict=True):
        assert torch.equal(one, by_loops(image, (17, 12), *options.values()))


@pytest.mark.parametrize("spherical", [True, False])
def test_a_centre_without_points_takes_the_worst_one(spherical):
    """Seeds whose centres start at equal points: without a remedy they would stay empty."""
    tokens = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0, 0.2], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]]).view(1, 2, 1, 6)
    for seed in range(6):
        found = kmeans_hierarchy(tokens, (1, 6), (2,), seed=seed, iterations=3, spherical=spherical)[0, 0, 0]
        assert len(found[:5].unique()) == 1
        assert found[5] != found[0]


def test_regions_that_differ_are_found(device):
    """Four quadrants of tokens, far from each other, noise within."""
    generator = torch.Generator().manual_seed(1)
    quadrant = (torch.arange(8) // 4)[:, None] * 2 + torch.arange(8) // 4
    ways = torch.eye(16)[[0, 4, 8, 12]]
    tokens = ways[quadrant].permute(2, 0, 1) + 0.05 * torch.randn(3, 16, 8, 8, generator=generator)
    labels = kmeans_hierarchy(tokens.to(device), (64, 64), (32, 4), seed=2)[:, -1]
    assert labels.device.type == device
    for image in labels.cpu():
        inside = [image[r : r + 20, c : c + 20] for r in (4, 40) for c in (4, 40)]  # away from the blurred borders
        names = [part.mode().values.mode().values for part in inside]
        assert len(set(map(int, names))) == 4
        assert all((part == name).float().mean() > 0.95 for part, name in zip(inside, names, strict=True))


def test_levels_nest_and_labels_lie_in_range(generator):
    maps = kmeans_hierarchy(torch.randn(3, 8, 4, 4, generator=generator), (32, 24), (16, 8, 4, 2), seed=5)
    assert maps.shape == (3, 4, 32, 24)
    assert maps.dtype == torch.int64
    for level, count in enumerate((16, 8, 4, 2)):
        assert 0 <= maps[:, level].min() <= maps[:, level].max() < count
    for image in maps:
        for fine, coarse in itertools.pairwise(image):
            assert all(len(coarse[fine == label].unique()) == 1 for label in fine.unique())


def test_a_seed_decides_and_nothing_else(generator):
    tokens = torch.randn(4, 8, 4, 4, generator=generator)
    torch.manual_seed(1)
    first = kmeans_hierarchy(tokens, (16, 16), (8, 4), seed=7)
    state = torch.get_rng_state()
    again = kmeans_hierarchy(tokens, (16, 16), (8, 4), seed=7)
    assert torch.equal(first, again)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, kmeans_hierarchy(tokens, (16, 16), (8, 4), seed=8))
    alone = torch.cat([kmeans_hierarchy(one[None], (16, 16), (8, 4), seed=7) for one in tokens])
    assert torch.equal(first, alone)
    assert kmeans_hierarchy(tokens[:0], (16, 16), (8, 4)).shape == (0, 2, 16, 16)


def test_equal_tokens_leave_labels_unused_but_break_nothing():
    maps = kmeans_hierarchy(torch.ones(1, 4, 3, 3), (9, 9), (6, 3))
    assert all(len(level.unique()) == 1 for level in maps[0])
    assert kmeans_hierarchy(torch.zeros(1, 4, 3, 3), (9, 9), (6, 3)).shape == (1, 2, 9, 9)
    assert kmeans_hierarchy(torch.ones(1, 4, 3, 3, dtype=torch.bfloat16), (9, 9), (6, 3)).dtype == torch.int64


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"tokens": torch.ones(1, 4, 3, 3, dtype=torch.int64)}, TypeError, "floating point tokens"),
        ({"tokens": [1.0]}, TypeError, "floating point tokens"),
        ({"tokens": torch.ones(4, 3, 3)}, ValueError, "tokens \\[B, C, h, w\\]"),
        ({"size": (0, 9)}, ValueError, "height and a width"),
        ({"counts": ()}, ValueError, "counts"),
        ({"counts": (4, 8)}, ValueError, "counts"),
        ({"counts": (100,)}, ValueError, "at most 81 pixels"),
        ({"counts": (4, 0)}, ValueError, "counts"),
        ({"iterations": 0}, ValueError, "iterations"),
    ],
)
def test_bad_input_is_named(changes, error, words):
    good = {"tokens": torch.ones(1, 4, 3, 3), "size": (9, 9), "counts": (6, 3), "seed": 0, "iterations": 2}
    with pytest.raises(error, match=words):
        kmeans_hierarchy(**good | changes)
