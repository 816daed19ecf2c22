import networkx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cast_kernels import labels_to_edges, seeds, seeds_count
from cast_kernels.testing import edges_oracle, synthetic_image

op = torch.ops.cast_kernels.labels_to_edges.default
SHAPES = [(1, (1, 1), 1), (2, (5, 13), 7), (3, (17, 1), 4), (1, (1, 19), 5), (2, (11, 12), 65), (2, (0, 3), 4)]


def noise(B, grid, S, seed=0, device="cpu"):
    """Labels with one too low and one too high; nearly every pair touches, and most segments are in pieces."""
    return torch.randint(-1, S + 1, (B, *grid), generator=torch.Generator().manual_seed(seed)).to(device)


def assert_matches(edges, count, expected):
    assert edges.dtype == count.dtype == torch.int64
    assert count.tolist() == [len(one) for one in expected]
    for found, one in zip(edges.tolist(), expected, strict=True):
        assert found == (one + [[-1, -1]] * len(found))[: len(found)]


@pytest.mark.parametrize(("B", "grid", "S"), SHAPES)
def test_matches_oracle(B, grid, S, device, poison):
    labels = noise(B, grid, S, device=device)
    assert_matches(*labels_to_edges(labels, S, max_edges=S * (S - 1) // 2 + 2), edges_oracle(labels, S))


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_label_dtypes_and_strides(dtype, device):
    labels = noise(2, (9, 8), 6, device=device).clamp(min=0)
    strided = labels.to(dtype).mT.contiguous().mT
    assert_matches(*labels_to_edges(strided, 6), edges_oracle(labels, 6))


def test_agrees_with_the_graph_of_scikit_image(device):
    from skimage.graph import RAG

    image = synthetic_image(90, 120)
    labels = seeds(image, 60)
    expected = sorted(sorted(edge) for edge in RAG(labels[0].numpy(), connectivity=1).edges)
    edges, count = labels_to_edges(labels.to(device), seeds_count(90, 120, 60))
    assert_matches(edges, count, [expected])


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 10**6))
def test_connected_segments_have_a_planar_graph_that_fits(rows, columns, seed):
    """Random cuts of a grid: segments are rectangles, hence connected."""
    rng = np.random.default_rng(seed)
    y, x = np.sort(rng.integers(0, rows, 20)), np.sort(rng.integers(0, columns, 24))
    labels = torch.from_numpy(y[:, None] * columns + x[None])[None]
    S = rows * columns
    edges, count = labels_to_edges(labels, S)
    graph = networkx.Graph(edges[0][: count[0]].tolist())
    assert networkx.check_planarity(graph)[0]
    assert count[0] <= max(1, 3 * S - 6)
    assert edges.shape[1] <= 6 * S - 6


@pytest.mark.parametrize("S", [1, 2, 3, 40])
def test_default_room(S):
    edges, _ = labels_to_edges(torch.zeros(1, 100, 100).int(), S)
    assert edges.shape == (1, min(S * (S - 1) // 2, 6 * S - 6), 2)


def test_default_room_is_bounded_by_the_pixels():
    labels = torch.arange(12).view(1, 3, 4)
    edges, count = labels_to_edges(labels, 1000)
    assert edges.shape == (1, 17, 2)
    assert count.tolist() == [17]


def test_too_little_room_is_said(device):
    labels = noise(2, (9, 8), 6, device=device)
    if device == "cpu":
        with pytest.raises(ValueError, match="pass max_edges=15"):
            labels_to_edges(labels, 6, max_edges=4)
    else:
        assert_matches(*labels_to_edges(labels, 6, max_edges=4), edges_oracle(labels, 6))


def test_many_segments_need_wide_keys():
    S = 50_000  # S * S does not fit 32 bits
    labels = torch.tensor([[[S - 1, S - 2, 3], [S, 3, 3]]])
    assert_matches(*labels_to_edges(labels, S), edges_oracle(labels, S))


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_opcheck(layout, device):
    labels = noise(2, (5, 7), 4, device=device)
    labels = labels.mT.contiguous().mT if layout == "transposed" else labels
    for kind in (torch.int64, torch.int32):
        torch.library.opcheck(op, (labels.to(kind), 4, 9))


def test_compiles_whole(device):
    def join(labels):
        edges, count = labels_to_edges(labels, 5)
        return edges + 1, count

    compiled = torch.compile(join, fullgraph=True, backend="aot_eager")
    for grid in ((6, 9), (8, 5)):
        labels = noise(2, grid, 5, device=device)
        assert all(torch.equal(a, b) for a, b in zip(compiled(labels), join(labels), strict=True))


@pytest.mark.parametrize(
    ("labels", "options", "error", "message"),
    [
        (torch.zeros(2, 4, 5), {}, TypeError, "int32, int64 or uint8"),
        (torch.zeros(4, 5).int(), {}, ValueError, r"labels \[B, H, W\]"),
        (torch.zeros(2, 4, 5).int(), {"num_segments": 0}, ValueError, "num_segments >= 1"),
        (torch.zeros(2, 4, 5).int(), {"max_edges": -1}, ValueError, "max_edges >= 0"),
        (torch.zeros(2, 4, 5).int(), {"max_edges": 3.0}, TypeError, "max_edges to be an int"),
    ],
)
def test_rejects_bad_input(labels, options, error, message):
    with pytest.raises(error, match=message):
        labels_to_edges(labels, **({"num_segments": 3} | options))
