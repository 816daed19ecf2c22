"""One entry per op and mode: inputs, peers, bytes, operations. ``python -m bench.ops [--only NAME]`` measures them."""

import argparse
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import peers
from bench.harness import measure
from bench.record import RESULTS, Table, machine
from cast_kernels import assign_pool, farthest_point_sample, segment_mean, unpool, unpool_concat, unpool_linear
from cast_kernels.testing import synthetic_image

COPY_BANDWIDTH = 4.3e12  # bytes/s assumed for the floor of an H200; measured beside the rows as op "copy"
DENSE_RATE = 790e12  # operations/s assumed for dense 16-bit products


@dataclass(frozen=True)
class Entry:
    """One measurement: our call first, peers after it, and what the hardware must at least do for it.

    Attributes:
        op: Name of the op.
        mode: "forward" or "backward".
        shape: The sizes that matter, for the table.
        ours: The call that is ours.
        others: Peers by name; None = not installed here.
        bytes: Bytes that must be read and written.
        operations: Floating point operations of the products.
        goal: Microseconds aimed at on an H200, if stated.
    """

    op: str
    mode: str
    shape: str
    ours: Callable[[], object]
    others: dict[str, Callable[[], object] | None] = field(default_factory=dict)
    bytes: int = 0
    operations: int = 0
    goal: float | None = None


def superpixel_labels(batch: int, side: int, num_segments: int) -> Tensor:
    """Compact, uneven labels [B, side, side] as SEEDS gives them, another shift of one label map per image."""
    from cast_kernels import seeds

    fine = seeds(synthetic_image(224, 224), num_segments)[0]
    index = torch.arange(side) * 224 // side
    labels = fine[index][:, index].to("cuda")
    return torch.stack([labels.roll(shift, 1) for shift in range(batch)]).contiguous()


def _randn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator("cuda").manual_seed(0), device="cuda").to(dtype)


def _backward(make: Callable[[], Tensor], inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    out = make()
    grad = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, inputs, grad, retain_graph=True)


def copy_entries() -> Iterator[Entry]:
    """The bandwidth that everything is judged by."""
    x = _randn(256, 784, 384)
    y = torch.empty_like(x)
    yield Entry("copy", "forward", "B256 784x384", lambda: y.copy_(x), bytes=2 * x.nbytes)


def segment_mean_entries(B: int = 256, side: int = 28, C: int = 384, S: int = 196) -> Iterator[Entry]:
    """Plain means, forward and backward."""
    x, labels = _randn(B, side, side, C), superpixel_labels(B, side, S)
    moved = x.nbytes + labels.nbytes + B * S * (2 * C + 4)
    shape = f"B{B} {side}x{side}x{C} S{S}"
    ways = (peers.one_hot_bmm, peers.index_add, peers.scatter_reduce, peers.segment_csr)
    others = {way.__name__: (lambda way=way: way(x, labels, S)) for way in ways}
    goal = 56.0 if (B, side, C) == (256, 28, 384) else None
    yield Entry("segment_mean", "forward", shape, lambda: segment_mean(x, labels, S), others, moved, goal=goal)
    leaf = x.clone().requires_grad_()
    mean = _backward(lambda: segment_mean(leaf, labels, S)[0], (leaf,))
    others = {way.__name__: _backward(lambda way=way: way(leaf, labels, S), (leaf,)) for way in ways}
    yield Entry("segment_mean", "backward", shape, mean, others, moved, goal=goal)


def tokens_entries(B: int = 256, C: int = 384, S: int = 196) -> Iterator[Entry]:
    """Means of features and positions, counts and the mask, as the model uses them."""
    x, labels, positions = _randn(B, 28, 28, C), superpixel_labels(B, 28, S), _randn(1, 28, 28, C)

    def ours():
        mean, count = segment_mean(x, labels, S, add=positions)
        return mean, count > 0

    moved = x.nbytes + labels.nbytes + positions.nbytes + B * S * (2 * C + 5)
    others = {"published": lambda: peers.published_tokens(x, labels, S, positions)}
    yield Entry("segment_mean+add", "forward", f"B{B} 28x28x{C} S{S}", ours, others, moved, goal=65.0)


def upsample_entries(B: int = 256, C: int = 384, S: int = 196, interpolation: str = "bilinear") -> Iterator[Entry]:
    """Means over a map that is never made."""
    x, labels = _randn(B, 28, 28, C), superpixel_labels(B, 224, S)
    moved = x.nbytes + labels.nbytes + B * S * (2 * C + 4)
    others = {"materialised": lambda: peers.materialised_upsample(x, labels, S, interpolation)} if B <= 64 else {}
    goal = {384: 90.0, 768: 160.0}[C] if B == 256 else None
    yield Entry(
        f"segment_mean+{interpolation}",
        "forward",
        f"B{B} 28->224 C{C} S{S}",
        lambda: segment_mean(x, labels, S, interpolation=interpolation),
        others,
        moved,
        goal=goal,
    )


def sampling_entries(B: int = 256, N: int = 196, C: int = 384, K: int = 64) -> Iterator[Entry]:
    """Both precisions against the plain loop and the libraries that are installed."""
    x = _randn(B, N, C)
    others = {"gram_loop": lambda: peers.gram_loop(x, K), **peers.library_samplers(x, K)}
    products = B * N * N * C
    standard = (B, N, C, K) == (256, 196, 384, 64)
    for precision, goal in (("exact", 90.0), ("fast", 45.0)):
        yield Entry(
            f"farthest_point_sample/{precision}",
            "forward",
            f"B{B} {N}x{C} K{K}",
            lambda precision=precision: farthest_point_sample(x, K, precision=precision),
            others,
            x.nbytes + B * K * 8,
            products,
            goal if standard else None,
        )


def assign_pool_entries(B: int = 256, N: int = 196, K: int = 64, C: int = 384, wide: int = 4) -> Iterator[Entry]:
    """Forward and backward with z as wide as the pools make it."""
    u, z = _randn(B, N, C), _randn(B, N, wide * C)
    centroids = torch.stack([torch.randperm(N, device="cuda")[:K] for _ in range(B)])
    shape = f"B{B} {N}->{K} C{C} D{wide * C}"
    forward_bytes = u.nbytes + z.nbytes + B * N * K * 2 + B * K * wide * C * 2 + B * (N + K) * 8
    products = 2 * B * N * K * (C + wide * C)
    compiled = torch.compile(peers.assign_pool_plain)
    goals = {(196, 64): 78.0, (64, 32): 30.0, (32, 16): 17.0} if (B, C, wide) == (256, 384, 4) else {}
    others = {
        "torch.compile": lambda: compiled(u, centroids, z),
        "eager": lambda: peers.assign_pool_plain(u, centroids, z),
    }
    yield Entry(
        "assign_pool",
        "forward",
        shape,
        lambda: assign_pool(u, centroids, z),
        others,
        forward_bytes,
        products,
        goals.get((N, K)),
    )
    leaves = (u.clone().requires_grad_(), z.clone().requires_grad_())
    ours = _backward(lambda: assign_pool(leaves[0], centroids, leaves[1])[1], leaves)
    others = {"torch.compile": _backward(lambda: compiled(leaves[0], centroids, leaves[1])[1], leaves)}
    yield Entry(
        "assign_pool",
        "backward",
        shape,
        ours,
        others,
        2 * (u.nbytes + z.nbytes) + B * K * wide * C * 4,
        3 * products,
        160.0 if (B, N, K, C) == (256, 196, 64, 384) else None,
    )


def unpool_entries(B: int = 256, N: int = 196, K: int = 64, C: int = 384) -> Iterator[Entry]:
    """Forward against gather, backward against scatter_add."""
    coarse, parents = _randn(B, K, C), torch.randint(0, K, (B, N), device="cuda")
    grad = _randn(B, N, C)
    moved = coarse.nbytes + grad.nbytes + parents.nbytes
    shape = f"B{B} {K}->{N}x{C}"
    standard = (B, N, K, C) == (256, 196, 64, 384)
    yield Entry(
        "unpool",
        "forward",
        shape,
        lambda: unpool(coarse, parents),
        {"gather": lambda: peers.gather(coarse, parents)},
        moved,
        goal=16.0 if standard else None,
    )
    leaf = coarse.clone().requires_grad_()
    out = unpool(leaf, parents)
    yield Entry(
        "unpool",
        "backward",
        shape,
        lambda: torch.autograd.grad(out, leaf, grad, retain_graph=True),
        {"scatter_add": lambda: peers.scatter_add(grad, parents, K)},
        moved,
        goal=20.0 if standard else None,
    )


def unpool_linear_entries(B: int = 64, C: int = 384, wide: int = 512) -> Iterator[Entry]:
    """A layer over all levels of a model, before the gather and after the concatenation."""
    sizes = (196, 64, 32, 16)
    levels = [_randn(B, n, C) for n in sizes]
    parents = [torch.randint(0, k, (B, n), device="cuda") for n, k in itertools.pairwise(sizes)]
    weight, bias = _randn(wide, len(sizes) * C), _randn(wide)
    shape = f"B{B} {'-'.join(map(str, sizes))} {len(sizes)}x{C}->{wide}"
    moved = sum(x.nbytes for x in (*levels, *parents, weight, bias)) + B * sizes[0] * wide * 2
    products = 2 * B * sum(sizes) * C * wide
    leaves = tuple(x.clone().requires_grad_() for x in levels)
    ways = {
        "ours": lambda x: unpool_linear(x, parents, weight, bias),
        "after_concat": lambda x: F.linear(unpool_concat(x, parents), weight, bias),
    }
    forward = {name: (lambda way=way: way(levels)) for name, way in ways.items()}
    yield Entry("unpool_linear", "forward", shape, forward.pop("ours"), forward, moved, products)
    backward = {name: _backward(lambda way=way: way(leaves), leaves) for name, way in ways.items()}
    yield Entry("unpool_linear", "backward", shape, backward.pop("ours"), backward, moved, products)


# Most important first: a run that is cut short has what matters.
HEADLINES: tuple[tuple[Callable[..., Iterator[Entry]], dict[str, int]], ...] = (
    (copy_entries, {}),
    (segment_mean_entries, {}),
    (tokens_entries, {}),
    (sampling_entries, {}),
    (assign_pool_entries, {}),
    (assign_pool_entries, {"N": 64, "K": 32}),
    (assign_pool_entries, {"N": 32, "K": 16}),
    (unpool_entries, {}),
    (unpool_linear_entries, {}),
    (upsample_entries, {"B": 64}),
    (upsample_entries, {}),
    (upsample_entries, {"C": 768}),
)

# How cost grows: one size doubles at a time.
SWEEP: tuple[tuple[Callable[..., Iterator[Entry]], dict[str, int]], ...] = (
    *((segment_mean_entries, {"B": B}) for B in (1, 64, 512)),
    (segment_mean_entries, {"B": 64, "side": 56}),
    (segment_mean_entries, {"C": 768}),
    *((sampling_entries, {"B": B}) for B in (1, 64, 512)),
    (sampling_entries, {"C": 768}),
    (sampling_entries, {"B": 64, "N": 1024, "K": 320}),
    *((assign_pool_entries, {"B": B}) for B in (1, 64, 512)),
    (assign_pool_entries, {"C": 768}),
    (assign_pool_entries, {"B": 64, "N": 1024, "K": 320}),
    (unpool_linear_entries, {"B": 1}),
    *((unpool_entries, {"B": B}) for B in (1, 64, 512)),
)


def run(groups, table: Table, only: str | None = None) -> None:
    """Measure groups of entries; a row per provider, saved as soon as it is known."""
    about = machine()
    for make, sizes in groups:
        if only and only not in make.__name__:
            continue
        for entry in make(**sizes):
            floor = 1e6 * max(entry.bytes / COPY_BANDWIDTH, entry.operations / DENSE_RATE)
            ours = None
            for provider, call in {"cast_kernels": entry.ours, **entry.others}.items():
                row = {"op": entry.op, "mode": entry.mode, "shape": entry.shape, "provider": provider}
                if call is None:
                    table.add(row | {"note": "not installed"} | about)
                    continue
                try:
                    call()
                    time = measure(call)
                except Exception as error:  # a peer that fails is a row too
                    table.add(row | {"note": f"{type(error).__name__}: {error}"[:200]} | about)
                    print(f"{entry.op} {entry.mode} {entry.shape} {provider}: {error}", flush=True)
                    continue
                ours = time.p50 if provider == "cast_kernels" else ours
                row |= {
                    "p20_us": round(time.p20, 2),
                    "p50_us": round(time.p50, 2),
                    "p80_us": round(time.p80, 2),
                    "launch": time.launch,
                    "GB_per_s": round(entry.bytes / time.p50 / 1e3, 1),
                    "floor_us": round(floor, 2),
                    "of_floor": round(floor / time.p50, 3),
                    "goal_us": entry.goal or "",
                    "times_ours": round(time.p50 / ours, 3) if ours else "",
                }
                table.add(row | about)
                print(
                    f"{entry.op:<28} {entry.mode:<8} {entry.shape:<26} {provider:<16} {time.p50:9.1f} us  "
                    f"{100 * floor / time.p50:5.1f} % of floor" + (f"  {time.p50 / ours:6.2f} x ours" if ours else ""),
                    flush=True,
                )


def main() -> None:
    """Measure the headline entries, and with --sweep how cost grows."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--only", help="entries whose function name holds this")
    parser.add_argument("--sweep", action="store_true")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench.ops measures on a GPU, and there is none; on the CPU: pytest bench --benchmark-only")
    table = Table(RESULTS / f"ops_sm{machine()['sm']}.csv")
    run(HEADLINES + (SWEEP if arguments.sweep else ()), table, arguments.only)


if __name__ == "__main__":
    main()
