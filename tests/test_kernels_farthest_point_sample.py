import numpy as np
import pytest
import torch
from conftest import KERNEL_DEVICE
from gpu_checks import needs_gpu

from cast_kernels import farthest_point_sample
from cast_kernels.farthest_point_sample import farthest_point_sample_ref as reference
from cast_kernels.testing import farthest_point_oracle

kernels = pytest.importorskip("cast_kernels.kernels.farthest_point_sample", reason="needs triton")
farthest_point_gram = pytest.importorskip("cast_kernels.kernels.farthest_point_gram", reason="needs triton")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of NaN and infinity in the interpreter

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(2, 1, 1, 1), (2, 7, 3, 7), (1, 65, 33, 22), (1, 70, 40, 70), (2, 16, 130, 9), (1, 63, 1, 10), (0, 5, 3, 2)]


def tokens(B, N, C, dtype=torch.float32):
    return torch.randn(B, N, C, generator=torch.Generator().manual_seed(N + C)).to(dtype)


def sample(x, K, start=-1, mask=None, precision="exact", duplicates="distinct"):
    mask = None if mask is None else mask.to(KERNEL_DEVICE)
    return kernels.forward(x.to(KERNEL_DEVICE), K, start, mask, precision, duplicates).cpu()


def assert_equals_reference(x, K, **options):
    given = {"start": -1, "mask": None, "precision": "exact", "duplicates": "distinct"} | options
    assert sample(x, K, **given).tolist() == reference(x, K, **given).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", [-1, 0])
@pytest.mark.parametrize("shape", SHAPES)
def test_exact_equals_float64(shape, start, dtype, poison):
    B, N, C, K = shape
    assert_equals_reference(tokens(B, N, C, dtype), K, start=start)


@pytest.mark.parametrize("start", [-1, 5])
def test_tokens_far_from_the_origin(start):
    assert_equals_reference(tokens(1, 60, 24) + 1e4, 60, start=start)


def test_tight_clusters_and_ties_within_the_error_of_the_gram_matrix():
    centres = tokens(1, 5, 16)
    x = centres[:, torch.arange(60) % 5] + 1e-4 * tokens(1, 60, 16)
    assert_equals_reference(x, 60)
    pairs = tokens(1, 20, 16).repeat_interleave(2, 1)  # two candidates at every step
    pairs[:, 1::4] *= 1 + 3e-5
    assert_equals_reference(pairs, 30)
    assert_equals_reference(pairs, 30, start=7)


def test_a_few_large_tokens_do_not_blur_the_others():
    x = tokens(1, 50, 16)
    x[0, [3, 31]] *= 1e4
    assert_equals_reference(x, 50)


@pytest.mark.parametrize("duplicates", ["distinct", "repeat"])
@pytest.mark.parametrize("start", [-1, 3])
def test_equal_tokens_come_in_order(start, duplicates):
    assert_equals_reference(torch.ones(2, 40, 5), 12, start=start, duplicates=duplicates)
    assert_equals_reference(torch.full((1, 6, 5), 0.1), 6, start=start, duplicates=duplicates)
    x = tokens(1, 9, 70)[:, torch.arange(36) % 9]  # each row four times, in tiles of any size
    assert_equals_reference(x, 30, start=start, duplicates=duplicates)


def test_equal_rows_in_different_tiles():
    x = tokens(1, 66, 8)
    x[:, 65] = x[:, 2]
    picks = sample(x, 66)[0].tolist()
    assert picks.index(2) < picks.index(65)
    assert picks[-1] == 65
    assert sample(x, 66, precision="fast")[0].tolist()[-1] == 65


def test_integers_equal_the_reference_in_every_tie():
    x = torch.randint(-3, 4, (1, 60, 3), generator=torch.Generator().manual_seed(1)).float()
    assert_equals_reference(x, 60)
    assert_equals_reference(x, 60, start=2, duplicates="repeat")


@pytest.mark.parametrize("duplicates", ["distinct", "repeat"])
@pytest.mark.parametrize("start", [-1, 0, 3])
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_masks_and_exhaustion(precision, start, duplicates):
    options = {"precision": precision, "duplicates": duplicates, "start": start}
    x = torch.tensor([[[5.0], [0.0], [5.0], [9.0], [0.0], [7.0]]])
    mask = torch.tensor([[True, True, True, False, True, False]])
    assert_equals_reference(x, 6, mask=mask, **options)
    assert_equals_reference(x, 3, mask=torch.zeros(1, 6, dtype=torch.bool), **options)
    x = torch.where(torch.arange(12)[:, None] < 8, tokens(1, 12, 4), 1e9)
    x[0, 9] = torch.nan
    assert_equals_reference(x, 7, mask=torch.arange(12)[None] < 8, **(options | {"precision": "exact"}))


@pytest.mark.parametrize("duplicates", ["distinct", "repeat"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30])
@pytest.mark.parametrize("start", [-1, 1, 4])
def test_nan_infinite_and_overflowing_tokens(start, value, duplicates):
    x = tokens(1, 12, 4)
    x[0, 1, 2] = value
    assert_equals_reference(x, 12, start=start, duplicates=duplicates)
    x[0, 7] = -value
    assert_equals_reference(x, 12, start=start, duplicates=duplicates)


def test_tokens_whose_squares_underflow():
    assert_equals_reference(tokens(1, 20, 4) * 1e-25, 20)
    assert_equals_reference(tokens(1, 6, 4) * 1e-25, 6)  # few enough to be resolved one by one
    x = tokens(1, 20, 4)
    x[:, 5:] *= 1e-25
    assert_equals_reference(x, 20)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", [-1, 2])
def test_fast_picks_what_is_farthest_to_bfloat16(start, dtype):
    x = tokens(1, 70, 48, dtype)
    picks = sample(x, 30, start=start, precision="fast")
    assert len(set(picks[0].tolist())) == 30
    shortfall = farthest_point_oracle(x, picks, x.double().mean(1) if start < 0 else start)
    assert (shortfall <= 2**-6).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_error_bound_holds(dtype):
    """Every distance from the Gram matrix lies within what the selection takes for its error, and not far within."""
    x = tokens(1, 90, 50, dtype).to(KERNEL_DEVICE) + 4
    x = kernels.aligned(x)
    gram, stats, start = kernels.distances(x, x, False, -1, "exact")
    gram, (norm, bound, ratio), z = gram[0, :, :90].double(), stats[0, :, :90].double(), x[0].double()
    found = norm[:, None] + norm - 2 * gram
    error = (found - ((z[:, None] - z) ** 2).sum(-1)).abs()
    bound = bound + 4.2 * ratio.max().sqrt() * norm
    assert (error <= bound[:, None] + bound).all()
    limit = 2e-5 if dtype == torch.bfloat16 else 2e-4  # the interpreter truncates to bfloat16: four times the bound
    assert (bound <= limit * norm).all()
    mean = ((z - z.mean(0)) ** 2).sum(-1)
    np.testing.assert_allclose(start[0, :90].cpu(), mean.cpu(), rtol=1e-13)


def test_strides_do_not_matter():
    x = tokens(2, 20, 12)
    expected = sample(x, 9)
    wide = torch.full((2, 21, 19), torch.nan)
    wide[:, 1:, 5:17] = x
    for same in (x.mT.contiguous().mT, x.transpose(0, 1).contiguous().transpose(0, 1), wide[:, 1:, 5:17]):
        assert torch.equal(kernels.forward(_place(same), 9, -1, None, "exact", "distinct").cpu(), expected)
    one = tokens(1, 20, 12)
    expanded = _place(one).expand(3, 20, 12)
    assert torch.equal(kernels.forward(expanded, 9, -1, None, "exact", "distinct").cpu(), sample(one, 9).expand(3, 9))


def _place(x):
    """On the device of the kernels with the strides it has."""
    storage = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=KERNEL_DEVICE)
    return storage.copy_(x)


def test_runs_are_bitwise_equal():
    x = tokens(2, 40, 20, torch.bfloat16)
    first = sample(x, 20)
    assert all(torch.equal(sample(x, 20), first) for _ in range(2 if KERNEL_DEVICE == "cpu" else 20))


def test_larger_blocks_of_tokens_and_channels():
    assert_equals_reference(tokens(1, 300, 70), 12)


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("masked", [False, True])
def test_more_tokens_than_one_program_holds(masked, precision, monkeypatch, poison):
    """The mean and the distances to it are made in parts, with a NaN in one of them."""
    monkeypatch.setattr(farthest_point_gram, "WHOLE", 32)
    monkeypatch.setattr(farthest_point_gram, "PART", 32)
    x = tokens(1, 70, 50)
    x[0, 40, 3], x[0, 65] = torch.nan, 50.0
    mask = (torch.arange(70)[None] % 7 != 3) if masked else None
    assert sample(x, 1, mask=mask, precision=precision).tolist() == [[65]]
    if precision == "exact":
        assert_equals_reference(x, 70, mask=mask)  # to the last, the NaN and the masked ones


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_are_not_aligned_are_copied(dtype):
    x = tokens(2, 20, 32, dtype)
    assert kernels.aligned(x).data_ptr() == x.data_ptr()
    wide = torch.zeros(2, 21, 40, dtype=dtype)
    for view in (wide[:, 1:, :32], wide[:, 1:, 3:35], wide[:, 1:, :7]):
        copy = kernels.aligned(view)
        assert torch.equal(copy, view)
        assert copy.stride(1) % 16 == copy.data_ptr() % 16 == 0


def test_rejects_more_tokens_than_32_bits_index():
    with pytest.raises(ValueError, match="at most 32768 tokens"):
        sample(torch.zeros(1, 32769, 1), 2)


class TestOnTheGpu:
    pytestmark = needs_gpu

    def test_public_function_launches_the_kernels(self, monkeypatch):
        calls = []
        forward = kernels.forward
        monkeypatch.setattr(kernels, "forward", lambda *a: calls.append(a) or forward(*a))
        x = tokens(2, 197, 384, torch.bfloat16)
        picks = farthest_point_sample(x.cuda(), 65)
        assert calls
        assert torch.equal(picks.cpu(), farthest_point_sample(x, 65))
        farthest_point_sample(x.cuda().double(), 3)
        assert len(calls) == 1

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(
        "shape", [(64, 197, 384, 65), (8, 1024, 768, 320), (1, 4096, 1536, 200), (4, 500, 129, 500)]
    )
    def test_standard_shapes_equal_float64(self, shape, dtype):
        B, N, C, K = shape
        x = tokens(B, N, C, dtype).cuda() + 3
        picks = kernels.forward(x, K, -1, None, "exact", "distinct")
        assert torch.equal(picks, reference(x, K, -1, None, "exact", "distinct"))

    @pytest.mark.parametrize("precision", ["exact", "fast"])
    def test_no_sync_other_stream_and_graph(self, precision):
        x = tokens(4, 197, 384, torch.bfloat16).cuda()
        expected = [farthest_point_sample(t, 65, precision=precision) for t in (x, x.flip(1))]
        torch.cuda.set_sync_debug_mode("error")
        try:
            plain = farthest_point_sample(x, 65, precision=precision)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(plain, expected[0])
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            beside = farthest_point_sample(x, 65, precision=precision)
        torch.cuda.current_stream().wait_stream(stream)
        assert torch.equal(beside, expected[0])
        graph, fixed = torch.cuda.CUDAGraph(), x.clone()
        with torch.cuda.graph(graph):
            captured = farthest_point_sample(fixed, 65, precision=precision)
        for given, wanted in zip((x, x.flip(1)), expected, strict=True):
            fixed.copy_(given)
            graph.replay()
            assert torch.equal(captured, wanted)

    @pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second CUDA device")
    def test_second_device(self):
        x = tokens(2, 50, 16)
        assert torch.equal(farthest_point_sample(x.to("cuda:1"), 9).cpu(), farthest_point_sample(x, 9))

    @pytest.mark.sanitize
    def test_small_for_the_sanitizer(self):
        for x in (tokens(2, 37, 19), torch.ones(1, 20, 3)):
            assert torch.equal(farthest_point_sample(x.cuda(), 20).cpu(), farthest_point_sample(x, 20))
