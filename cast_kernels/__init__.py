"""Ops for models on superpixel tokens: superpixels, their means, sampling, soft assignment, unpooling.

Importing initialises nothing: no CUDA context, no compilation, no Triton, no extension until an op is called.
"""

from cast_kernels._version import __version__
from cast_kernels.assign_pool import assign_pool
from cast_kernels.farthest_point_sample import farthest_point_sample
from cast_kernels.flops import register_flop_formulas
from cast_kernels.rgb_to_lab import rgb_to_lab
from cast_kernels.seeds import seeds, seeds_count
from cast_kernels.segment_mean import segment_mean
from cast_kernels.superpixel_metrics import superpixel_metrics
from cast_kernels.unpool import unpool, unpool_concat
from cast_kernels.unpool_linear import unpool_linear

__all__ = [
    "__version__",
    "assign_pool",
    "farthest_point_sample",
    "register_flop_formulas",
    "rgb_to_lab",
    "seeds",
    "seeds_count",
    "segment_mean",
    "superpixel_metrics",
    "unpool",
    "unpool_concat",
    "unpool_linear",
]
