"""Multiply-adds of a forward pass, counted op by op."""

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cast_kernels import register_flop_formulas


def count_flops(model: nn.Module, *inputs: Tensor | int) -> float:
    """Return the FLOPs of one image, 2 per multiply-add, of all matrix products and convolutions.

    The ops of `cast_kernels` count as ``register_flop_formulas`` says, whatever computes them; it is called here. Half
    of the result is what papers mean by FLOPs or MACs.

    Args:
        model: In eval mode.
        *inputs: Of a batch, the images first; the total is divided by their number.
    """
    register_flop_formulas()
    products = sdpa_kernel(SDPBackend.MATH)  # the counter does not know attention's fused CPU kernel in every version
    with torch.no_grad(), products, FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops() / len(inputs[0])
