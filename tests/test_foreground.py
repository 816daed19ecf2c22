"""Scores of segments against a mask: by hand, and against a second way to compute them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cast.evaluate import ForegroundScores, foreground_iou, mean_foreground_iou

MASK = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]], bool)


def iou(a, b):
    return len(a & b) / len(a | b) if a | b else 0.0


def by_sets(segments, mask):
    """The definition in sets of pixels."""
    pixels = [(i, j) for i in range(mask.shape[0]) for j in range(mask.shape[1])]
    true = {p for p in pixels if mask[p]}
    groups = [{p for p in pixels if segments[p] == s} for s in {segments[p] for p in pixels} if s >= 0]
    chosen = [g for g in groups if len(g & true) > len(g - true)]
    return iou(set().union(*chosen), true), max((iou(g, true) for g in groups), default=0.0)


@pytest.mark.parametrize(
    ("segments", "majority", "best"),
    [
        ([[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1]], 1.0, 1.0),  # the mask itself
        ([[0, 1, 2, 2], [0, 1, 2, 2], [2, 2, 2, 2]], 1.0, 0.5),  # cut in two
        ([[0, 0, 0, 1], [0, 0, 0, 1], [1, 1, 1, 1]], 4 / 6, 4 / 6),  # too large
        ([[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], 0.0, 0.5),  # a tie is background
        ([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], 0.0, 4 / 12),  # all one: the share of the mask
        ([[-1, 5, 9, 9], [5, 5, 9, 9], [9, 9, 9, 9]], 3 / 4, 3 / 4),  # a pixel in no segment; gaps in the labels
        ([[-1, -1, -1, -1]] * 3, 0.0, 0.0),
        (np.arange(12).reshape(3, 4), 1.0, 1 / 4),  # every pixel its own
    ],
)
def test_by_hand(segments, majority, best):
    for labels in (np.array(segments), torch.tensor(np.array(segments), dtype=torch.int32)):
        found = foreground_iou(labels, MASK)
        assert isinstance(found, ForegroundScores)
        assert found == pytest.approx((majority, best), abs=1e-15)


def test_a_blind_guess_of_foreground_scores_the_share_of_the_mask():
    mask = np.zeros((10, 10), np.uint8)
    mask.flat[:60] = 1
    assert foreground_iou(np.zeros((10, 10), int), mask) == (0.6, 0.6)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_equals_the_definition_in_sets(data):
    shape = data.draw(arrays.array_shapes(min_dims=2, max_dims=2, max_side=7))
    segments = data.draw(arrays.arrays(np.int64, shape, elements=st.integers(-1, 4)))
    mask = data.draw(arrays.arrays(bool, shape))
    if not mask.any():
        mask.flat[0] = True
    found = foreground_iou(segments, mask)
    assert found == pytest.approx(by_sets(segments, mask), abs=1e-12)
    renamed = np.where(segments < 0, segments, 10**12 - 7 * segments)
    assert foreground_iou(renamed, mask) == found


def test_means_count_every_image_alike():
    whole, cut = np.zeros((2, 2), int), np.array([[0, 0], [1, 1]])
    mask, row = np.ones((2, 2), bool), np.array([[1, 1], [0, 0]], bool)
    assert mean_foreground_iou([(whole, mask), (cut, mask), (cut, row)]) == pytest.approx((1.0, (1 + 0.5 + 1) / 3))
    large = np.zeros((20, 20), int)
    assert mean_foreground_iou(iter([(large, large + 1), (whole, row)])) == pytest.approx((0.5, 0.75))


@pytest.mark.parametrize(
    ("segments", "mask", "error", "words"),
    [
        (np.zeros((2, 2)), MASK[:2, :2], TypeError, "integer segments"),
        (np.zeros((2, 2), int), np.zeros((2, 2)), TypeError, "bool or integer mask"),
        (np.zeros((2, 3), int), MASK[:2, :2], ValueError, "segments and mask"),
        (np.zeros(4, int), np.ones(4, bool), ValueError, "segments and mask"),
        (np.zeros((2, 2), int), np.zeros((2, 2), bool), ValueError, "nothing to score"),
    ],
)
def test_what_cannot_be_scored_is_refused(segments, mask, error, words):
    with pytest.raises(error, match=words):
        foreground_iou(segments, mask)


def test_no_image_has_no_mean():
    with pytest.raises(ValueError, match="at least one image"):
        mean_foreground_iou([])
