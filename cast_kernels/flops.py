"""FLOP formulas of the ops for ``torch.utils.flop_counter``, which counts nothing for ops that it does not know."""

from collections.abc import Sequence

import torch

Shape = Sequence[int]


def register_flop_formulas() -> None:
    """Teach ``torch.utils.flop_counter.FlopCounterMode`` the ops of this package.

    As the counter does, only matrix products count, with 2 per multiply-add: those of ``assign_pool`` and of its
    gradient, and for ``farthest_point_sample`` the Gram matrix, N² C multiply-adds, whichever way a backend computes
    distances. Means and unpooling add and move, they multiply nothing.

    Registration is global to the process, so it is left to the user. Calling it again changes nothing.
    """
    from torch.utils.flop_counter import flop_registry, register_flop_formula

    ops = torch.ops.cast_kernels
    formulas = {
        ops.farthest_point_sample: _farthest_point_sample,
        ops.assign_pool: _assign_pool,
        ops.assign_pool_backward: _assign_pool_backward,
    }
    for op, formula in formulas.items():
        if op not in flop_registry:
            register_flop_formula(op)(formula)


def _farthest_point_sample(x: Shape, *_: object, **__: object) -> int:
    B, N, C = x
    return 2 * B * N * N * C


def _assign_pool(u: Shape, centroids: Shape, z: Shape, *_: object, **__: object) -> int:
    B, N, C = u
    return 2 * B * N * centroids[1] * (C + z[2])


def _assign_pool_backward(u: Shape, centroids: Shape, z: Shape, *_: object, **__: object) -> int:
    """Cosines and the pooled means again, then two products of each width."""
    B, N, C = u
    return 2 * B * N * centroids[1] * (3 * C + 3 * z[2])
