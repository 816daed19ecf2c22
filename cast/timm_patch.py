"""`GraphPool` inside the vision transformers of timm: `patch_timm` and `unpatch_timm`."""

import itertools
from collections.abc import Mapping

from torch import nn

from cast._pooled_vit import PooledVit, pooled_class
from cast._timm import import_timm
from cast.layers import GraphPool
from cast.models import SuperpixelConfig

# Why models that users may try cannot be patched; by the name of timm's class.
_NEEDS_A_GRID = "its attention adds a bias per pair of grid positions, and pooled tokens have left the grid"
_NEEDS_A_MAP = "its blocks see windows or strides of a feature map, and pooled tokens are no map"
_REFUSED = {
    "Beit": _NEEDS_A_GRID,
    "VisionTransformerRelPos": _NEEDS_A_GRID,
    "ConVit": _NEEDS_A_GRID,
    "VisionTransformerSAM": _NEEDS_A_MAP,
    "SwinTransformer": _NEEDS_A_MAP,
    "SwinTransformerV2": _NEEDS_A_MAP,
    "Hiera": _NEEDS_A_MAP,
    "MultiScaleVit": _NEEDS_A_MAP,
    "Xcit": _NEEDS_A_MAP,
    "NaFlexVit": "its batches hold sequences of unequal length, and a pool needs as many tokens in every image",
    "FeatureGetterNet": "it wraps a model: patch that first, and wrap it afterwards",
    "DistributedDataParallel": "it wraps a model: patch that first, and wrap it afterwards",
    "OptimizedModule": "it is compiled already: patch the model first, and compile it afterwards",
}
_OVERRIDABLE = ("forward", "forward_features", "forward_intermediates")


def patch_timm(
    vit: nn.Module,
    clusters: Mapping[int, int],
    *,
    superpixels: int | SuperpixelConfig | None = None,
    num_heads: int | None = None,
    mlp_ratio: float = 4.0,
    dropout: float = 0.1,
    kappa: float = 5.0,
    normalize: bool = False,
) -> PooledVit:
    """Put a `GraphPool` after some blocks of a vision transformer of timm, in place.

    The model stays what it was: an instance of its class, with its methods and the names of its parameters, to which
    ``graph_pools.<block>.*`` are added. Class, distillation and register tokens pass through every pool as its ``cls``.
    The last linear layer of every pool starts at zero. So at first a pool keeps the farthest tokens as they are and
    drops the others, and with as many clusters as tokens it only permutes them: the output is the unpatched model's, to
    rounding. Training grows the pooling from there.

    What is new on the model: ``forward_hierarchy`` and ``hierarchy``; and ``forward`` and ``forward_features`` take
    ``superpixels=`` (labels) with ``num_segments=``, which make one token of each superpixel before the first block,
    the mean of the patch tokens under its pixels. ``forward_intermediates`` returns maps on the patch grid, where each
    patch has the token of its segment. Attention masks are refused.

    Supported are timm's ``VisionTransformer`` (ViT, DeiT with or without distillation token, DINOv2 with or without
    registers, CLIP, SigLIP and others that are made of that class, on patch grids of any size) and ``Eva`` (EVA, EVA02,
    DINOv3, and ViTs with rotary positions). A rotary position goes with the token: a pooled token has that of its
    centroid, a superpixel's token that of the patch nearest to the mean position of its pixels.

    Args:
        vit: The model; wrap, compile or capture it afterwards.
        clusters: The number of clusters after a block, by the block's index from 0, such as ``{3: 64, 6: 32, 9: 16}``.
            No later number may be larger.
        superpixels: Number of SEEDS superpixels, or their settings, that a model without labels makes of its image,
            which has to be normalised with the mean and deviation of ``vit.pretrained_cfg``. The number is for the
            model's image size, and scaled by area for others. None = tokens are patches as long as no labels are given.
        num_heads: Heads of the attention in the pools; None = as many as the blocks have.
        mlp_ratio: As for `GraphPool`, where the pooled average is taken in ``mlp_ratio`` times the width.
        dropout: As for `GraphPool`.
        kappa: As for `GraphPool`.
        normalize: As for `GraphPool`.

    Returns:
        ``vit`` itself. Its pools are made with the global random state, on the device and in the dtype of its blocks,
        in train mode if it is.

    Raises:
        ImportError: timm cannot be imported.
        TypeError: ``vit`` is not a module, ``clusters`` not a mapping of integers, or ``superpixels`` no number.
        ValueError: The model is not supported, with the reason; or a block, a number of clusters or an option is out
            of range. The model is as before then.
    """
    base = _supported_class(vit)
    counts = _check_clusters(clusters, len(vit.blocks))
    settings = None if superpixels is None else _superpixel_settings(vit, superpixels)
    if num_heads is None:
        num_heads = next((m.num_heads for m in vit.blocks.modules() if hasattr(m, "num_heads")), 0)
    like = next(vit.blocks.parameters())
    pools = nn.ModuleDict()
    for block, count in counts.items():
        pool = GraphPool(
            vit.embed_dim,
            count,
            num_heads,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            kappa=kappa,
            normalize=normalize,
        )
        nn.init.zeros_(pool.fc2.weight)
        nn.init.zeros_(pool.fc2.bias)
        pools[str(block)] = pool
    vit.graph_pools = pools.to(like.device, like.dtype).train(vit.training)
    vit.superpixel_config = settings
    vit.__class__ = pooled_class(base)
    return vit


def unpatch_timm(vit: nn.Module) -> nn.Module:
    """Take the pools out again, in place: the model is timm's, with whatever its own weights have become.

    Raises:
        ValueError: The model was not made by `patch_timm`.
    """
    if not isinstance(vit, PooledVit):
        raise ValueError(f"expected a model patched by patch_timm, got {_name(vit)}")
    vit.__class__ = vit.timm_class
    del vit.graph_pools, vit.superpixel_config
    return vit


def _supported_class(vit: nn.Module) -> type[nn.Module]:
    import_timm()
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(vit, nn.Module):
        raise TypeError(f"expected a model of timm, got {type(vit).__name__}")
    if isinstance(vit, PooledVit):
        raise ValueError("the model is patched already; call unpatch_timm first to pool elsewhere")
    base = type(vit)
    family = next((family for family in (VisionTransformer, Eva) if isinstance(vit, family)), None)
    if family is None:
        reason = next((_REFUSED[c.__name__] for c in base.__mro__ if c.__name__ in _REFUSED), None)
        reason = reason or "its forward pass is not one that is known here"
        raise ValueError(f"expected a VisionTransformer or Eva of timm, got {_name(vit)}: {reason}")
    for method in _OVERRIDABLE:
        if method in vars(vit) or getattr(base, method) is not getattr(family, method):
            raise ValueError(
                f"{_name(vit)} replaces {method} of timm's {family.__name__}, which the pools have to replace too"
            )
    return base


def _check_clusters(clusters: Mapping[int, int], depth: int) -> dict[int, int]:
    if not isinstance(clusters, Mapping):
        raise TypeError(f"expected clusters as a mapping from block to number, got {type(clusters).__name__}")
    if any(isinstance(n, bool) or not isinstance(n, int) for pair in clusters.items() for n in pair):
        raise TypeError(f"expected integer blocks and numbers of clusters, got {dict(clusters)}")
    if not clusters:
        raise ValueError("expected clusters after at least one block, got none")
    counts = dict(sorted(clusters.items()))
    if not 0 <= min(counts) <= max(counts) < depth:
        raise ValueError(f"expected blocks in [0, {depth}), got {list(counts)}")
    if any(later > earlier for earlier, later in itertools.pairwise(counts.values())):
        raise ValueError(f"expected no more clusters after a later block, got {counts}")
    return counts


def _superpixel_settings(vit: nn.Module, superpixels: int | SuperpixelConfig) -> SuperpixelConfig:
    if isinstance(superpixels, bool) or not isinstance(superpixels, int | SuperpixelConfig):
        raise TypeError(f"expected superpixels as an int or a SuperpixelConfig, got {type(superpixels).__name__}")
    config = getattr(vit, "pretrained_cfg", None) or {}
    if any(len(config.get(name) or ()) != 3 for name in ("mean", "std")):
        raise ValueError(
            "superpixels are made of RGB images, for which vit.pretrained_cfg has to hold 'mean' and 'std' of 3 "
            "channels, as models from timm.create_model do; give labels in each call instead"
        )
    return superpixels if isinstance(superpixels, SuperpixelConfig) else SuperpixelConfig(num_superpixels=superpixels)


def _name(vit: nn.Module) -> str:
    return type(vit).__name__
