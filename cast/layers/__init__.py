"""Building blocks of the models; each stands alone and takes tokens as ``[B, N, C]``."""

from .attention import Attention
from .block import Block
from .block_fusion import BlockFusion
from .conv_stem import ConvStem
from .drop_path import DropPath
from .graph_pool import GraphPool, PoolResult
from .mlp import Mlp
from .pixels import tokens_to_pixels
from .pos_embed import resize_pos_embed, sincos_2d
from .superpixel_tokens import resize_labels, superpixel_tokens

__all__ = [
    "Attention",
    "Block",
    "BlockFusion",
    "ConvStem",
    "DropPath",
    "GraphPool",
    "Mlp",
    "PoolResult",
    "resize_labels",
    "resize_pos_embed",
    "sincos_2d",
    "superpixel_tokens",
    "tokens_to_pixels",
]
