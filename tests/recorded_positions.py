"""The position table of the machine that recorded the published figures, to the last bit.

In float32, PyTorch's powers differ in the last bit between vector instructions and the C library. That machine computed
32 at a time with vectors (AVX-512) and what was left over without; others divide the work differently. What our table
is off by there, some 1e-7, is more than figures in float64 are compared to.
"""

import math

import torch

VECTORS = 32


def use_recorded_positions(model):
    """Replace a model's table by the one the figures were recorded with, which it has to be but for last bits."""
    if "pos_embed" not in model._buffers or getattr(model.config, "pos_embed_size", 0):
        return
    own = model.pos_embed
    side, quarter = math.isqrt(own.shape[1]), own.shape[2] // 4
    exponent = torch.arange(quarter, dtype=torch.float32) / quarter
    powers = (10000.0 ** exponent.double()).float()  # as the C library rounds them
    whole = quarter // VECTORS * VECTORS
    powers[:whole] = 10000.0 ** exponent[:whole]
    angle = torch.arange(side, dtype=torch.float32)[:, None] * (1.0 / powers)
    waves = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    table = torch.cat([rows, columns], dim=2).reshape(own.shape)
    assert (own - table).abs().max() < 2e-6
    own.copy_(table)
