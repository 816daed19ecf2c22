import torch
from torch.utils.flop_counter import FlopCounterMode

from cast_kernels import assign_pool, farthest_point_sample, register_flop_formulas


def count(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def test_products_are_counted_forward_and_backward():
    register_flop_formulas()
    register_flop_formulas()
    u, z = torch.randn(2, 9, 4, requires_grad=True), torch.randn(2, 9, 5, requires_grad=True)
    centroids = torch.arange(6).view(2, 3)
    forward = 2 * 2 * 9 * 3 * (4 + 5)
    assert count(lambda: assign_pool(u, centroids, z)) == forward
    assert count(lambda: assign_pool(u, centroids, z)[1].sum().backward()) == 4 * forward
    assert count(lambda: farthest_point_sample(u, 3)) == 2 * 2 * 9 * 9 * 4
