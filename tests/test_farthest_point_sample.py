import pytest
import torch

from cast_kernels import farthest_point_sample
from cast_kernels.testing import farthest_point_oracle

op = torch.ops.cast_kernels.farthest_point_sample.default
SHAPES = [(1, 1, 1, 1), (2, 7, 3, 7), (3, 65, 16, 22), (2, 196, 48, 64), (1, 63, 1, 10), (0, 5, 3, 2)]  # B, N, C, K


def tokens(B, N, C, dtype=torch.float64, device="cpu"):
    return torch.randn(B, N, C, generator=torch.Generator().manual_seed(N), dtype=torch.float64).to(device, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("start", ["mean", 0])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_pick_is_the_farthest_left(shape, start, dtype, device):
    B, N, C, K = shape
    x = tokens(B, N, C, dtype, device)
    picks = farthest_point_sample(x, K, start=start)
    assert picks.shape == (B, K)
    assert picks.dtype == torch.int64
    shortfall = farthest_point_oracle(x, picks, x.double().mean(1) if start == "mean" else start)
    assert (shortfall <= 1e-5).all()
    assert all(len(set(row)) == K for row in picks.tolist())


def test_large_coordinates_are_not_clipped():
    x = tokens(2, 100, 3) * 2000.0
    assert (farthest_point_oracle(x, farthest_point_sample(x, 40), x.mean(1)) <= 1e-9).all()


def test_ties_go_to_the_lowest_index(device):
    x = torch.tensor([[[0.0], [2.0], [-2.0], [2.0], [1.0]]], device=device)
    # from 0: 1, 2, 3 tie at 4 -> 1; then only -2 is far -> 2; then 4 (distance 1); then 3, equal to 1
    assert farthest_point_sample(x, 5, start=0).tolist() == [[0, 1, 2, 4, 3]]


def test_start_at_the_mean_token_equals_prepending_it():
    x = tokens(3, 50, 8)
    prepended = torch.cat([x.mean(1, keepdim=True), x], 1)
    expected = farthest_point_sample(prepended, 21, start=0)[:, 1:] - 1
    assert torch.equal(farthest_point_sample(x, 20), expected)


@pytest.mark.parametrize("start", ["mean", 3])
def test_equal_tokens(start, device):
    x = torch.ones(2, 6, 4, device=device)
    distinct = [0, 1, 2, 3] if start == "mean" else [3, 0, 1, 2]
    repeat = [0, 0, 0, 0] if start == "mean" else [3, 0, 0, 0]
    assert farthest_point_sample(x, 4, start=start).tolist() == [distinct] * 2
    assert farthest_point_sample(x, 4, start=start, duplicates="repeat").tolist() == [repeat] * 2


def test_exhausted_tokens_are_followed_by_valid_then_masked_ones(device):
    x = torch.tensor([[[5.0], [0.0], [5.0], [9.0], [0.0], [7.0]]], device=device)
    mask = torch.tensor([[True, True, True, False, True, False]], device=device)
    # valid mean 2.5: 0, 1, 2, 4 tie -> 0; then 1; nothing positive is left: 2, 4 (valid), 3, 5 (masked)
    assert farthest_point_sample(x, 6, mask=mask).tolist() == [[0, 1, 2, 4, 3, 5]]
    assert farthest_point_sample(x, 4, mask=mask, duplicates="repeat").tolist() == [[0, 1, 0, 0]]


def test_masked_tokens_do_not_move_the_mean():
    x = tokens(2, 30, 5)
    mask = torch.arange(30).expand(2, 30) < 20
    far = torch.where(mask[..., None], x, 1e6)
    assert torch.equal(farthest_point_sample(far, 10, mask=mask), farthest_point_sample(x[:, :20], 10))


def test_nothing_is_valid():
    x = tokens(2, 5, 3)
    none = torch.zeros(2, 5, dtype=torch.bool)
    assert farthest_point_sample(x, 3, mask=none).tolist() == [[0, 1, 2]] * 2
    assert farthest_point_sample(x, 3, mask=none, duplicates="repeat").tolist() == [[0, 0, 0]] * 2


def test_nan_tokens_count_as_distance_zero(device):
    x = tokens(1, 12, 4, torch.float32, device)
    clean = farthest_point_sample(x[:, 2:], 10)
    x[0, :2] = torch.nan
    assert farthest_point_sample(x, 12).tolist()[0] == [*(clean[0] + 2).tolist(), 0, 1]
    assert farthest_point_sample(x, 3, start=1).tolist() == [[1, 0, 2]]


def test_infinite_tokens_give_distinct_valid_indices():
    x = tokens(1, 9, 4, torch.float32)
    x[0, 3] = torch.inf
    assert sorted(farthest_point_sample(x, 9)[0].tolist()) == list(range(9))


def test_integer_grids_match_a_loop_in_integers():
    g = torch.Generator().manual_seed(1)
    for N, C in ((25, 2), (50, 3), (97, 1)):
        x = torch.randint(-3, 4, (N, C), generator=g)
        seen, picks = None, [2]
        for _ in range(9):
            d = ((x - x[picks[-1]]) ** 2).sum(-1)
            seen = d if seen is None else torch.minimum(seen, d)
            far = seen.max()
            if far == 0:
                break
            picks.append(int((seen == far).nonzero()[0]))
        assert farthest_point_sample(x[None].float(), len(picks), start=2)[0].tolist() == picks


def test_distances_are_those_of_float64():
    """1 + 1e-9 and 1 are one number in float32."""
    x = torch.tensor([0.0, 1.0, 1.0 + 1e-9, 0.5], dtype=torch.float64).view(1, 4, 1)
    assert farthest_point_sample(x, 2, start=0).tolist() == [[0, 2]]


def test_strides_do_not_matter():
    x = tokens(2, 20, 6)
    assert torch.equal(farthest_point_sample(x.mT.contiguous().mT, 9), farthest_point_sample(x, 9))


def test_autocast_does_not_change_the_picks_and_runs_are_equal(device):
    x = (torch.randn(2, 60, 24, generator=torch.Generator().manual_seed(0)) + 5).to(device)
    picks = farthest_point_sample(x, 20)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert torch.equal(farthest_point_sample(x, 20), picks)
    assert all(torch.equal(farthest_point_sample(x, 20), picks) for _ in range(20))


def test_runs_through_a_graph_that_needs_gradients():
    x = tokens(2, 20, 6).requires_grad_()
    assert not farthest_point_sample(x * 2, 4).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "mask"])
def test_opcheck(layout, dtype, device):
    x = tokens(2, 9, 4, dtype, device)
    x = x.mT.contiguous().mT if layout == "transposed" else x
    mask = torch.arange(9, device=device).expand(2, 9) < 5 if layout == "mask" else None
    torch.library.opcheck(op, (x, 4, -1, mask, "exact", "distinct"))


@pytest.mark.parametrize("K", [1, 5])
def test_compile_fullgraph(K, device):
    x = tokens(2, 20, 6, device=device)
    compiled = torch.compile(lambda t: farthest_point_sample(t, K) + 0, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), farthest_point_sample(x, K))


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (torch.zeros(2, 3), {}, ValueError, r"\[B, N, C\]"),
        (torch.zeros(2, 3, 4, dtype=torch.int32), {}, TypeError, "float32"),
        (torch.zeros(2, 3, 4), {"num_samples": 4}, ValueError, "num_samples <= 3"),
        (torch.zeros(2, 3, 4), {"num_samples": 0}, ValueError, "num_samples >= 1"),
        (torch.zeros(2, 3, 4), {"start": 3}, ValueError, r"start in \[0, 3\)"),
        (torch.zeros(2, 3, 4), {"start": "median"}, ValueError, "mean"),
        (torch.zeros(2, 3, 4), {"mask": torch.ones(2, 3)}, ValueError, "bool mask"),
        (torch.zeros(2, 3, 4), {"mask": [[True] * 3] * 2}, TypeError, "mask to be a torch.Tensor"),
        (torch.zeros(2, 3, 4), {"mask": torch.ones(2, 4, dtype=torch.bool)}, ValueError, "bool mask"),
        (torch.zeros(2, 3, 4), {"precision": "half"}, ValueError, "exact"),
        (torch.zeros(2, 3, 4), {"duplicates": "all"}, ValueError, "distinct"),
    ],
)
def test_rejects_bad_input(x, options, error, message):
    with pytest.raises(error, match=message):
        farthest_point_sample(x, **{"num_samples": 2, **options})
