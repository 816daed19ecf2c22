"""Which published name (https://github.com/twke18/CAST) each parameter has, per family.

- Classification, and all models with learned positions, hold each block twice: flat, ``blocks.N``, and per stage,
  ``blocksL.N`` with the flat index kept (``blocks2.3`` is the first block of the second stage).
- Dense models with sin-cos positions hold it once, ``blocksL.M`` with M from 0 in each stage.
- Models with a decoder are two published modules: ``encoder.`` and ``decoder.`` (Segmenter), or ``vit_backbone.`` and
  ``semantic_classifier.`` (SPML, whose files keep them apart as ``embedding_model`` and ``prediction_model``).
- All models with sin-cos positions also hold the frozen table, and CAST with them ``pe_token``, a frozen zero.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import accumulate

from .config import CastConfig, CastSegConfig, CastSegmenterConfig, ImageConfig, ViTConfig

# Parts of a pool: ours -> published, below "poolL.pool_block.".
POOL_NAMES = {
    "bias": "centroid_fc.bias",
    "norm.": "centroid_fc.norm.",
    "attn.": "centroid_fc.attn.",
    "norm1.": "fc1.0.",
    "fc1.": "fc1.1.",
    "norm2.": "fc2.0.",
    "fc2.": "fc2.1.",
}

Names = dict[str, tuple[str, ...]]


def official_prefixes(config: ImageConfig) -> Names:
    """Return the published names of every module or parameter of a model.

    Keys that end in a dot are prefixes, the others whole names. The first published name is the canonical one, further
    ones are aliases of the same tensors.
    """
    names = _encoder_names(config)
    if not isinstance(config, CastSegmenterConfig):
        return names
    prefix, decoder = encoder_prefix(config), "decoder."
    if config.decoder == "conv":
        decoder = "semantic_classifier."
    names = {ours: tuple(prefix + name for name in published) for ours, published in names.items()}
    return names | {"decoder.": (decoder,)}


def encoder_prefix(config: ImageConfig) -> str:
    """Return what precedes the published names of a model's encoder."""
    if not isinstance(config, CastSegmenterConfig):
        return ""
    return "vit_backbone." if config.decoder == "conv" else "encoder."


def official_names(name: str, config: ImageConfig) -> tuple[str, ...]:
    """Return the published names of one of our parameters or buffers, the canonical one first.

    Raises:
        KeyError: A model of this ``config`` has no such name.
    """
    prefixes = official_prefixes(config)
    found = next((p for p in prefixes_of(name) if p in prefixes), None)
    if found is None:
        raise KeyError(name)
    return tuple(published + name[len(found) :] for published in prefixes[found])


def prefixes_of(name: str) -> Iterator[str]:
    """Yield a name, and what of it ends in a dot, longest first."""
    yield name
    for i in range(len(name) - 1, -1, -1):
        if name[i] == ".":
            yield name[: i + 1]


def read_depths(names: Iterable[str]) -> tuple[int, ...]:
    """Read the blocks per stage from published names ``blocksL.N``.

    Raises:
        ValueError: There are none, or a stage is missing.
    """
    blocks = {tuple(map(int, found.groups())) for name in names if (found := re.search(r"blocks(\d+)\.(\d+)\.", name))}
    levels = sorted({level for level, _ in blocks})
    depths = tuple(sum(1 for block in blocks if block[0] == level) for level in levels)
    if not depths or levels != list(range(1, len(levels) + 1)):
        raise ValueError("expected names blocks1.N, blocks2.N, ... to read the depths from")
    return depths


def _encoder_names(config: ImageConfig) -> Names:
    names: Names = {name: (name,) for name in ("cls_token", "pos_embed", "norm.", "head.")}
    for i in range(4):  # convolution, norm and activation are three entries of one sequence
        names[f"stem.layers.{i}.conv."] = (f"patch_embed.proj.{3 * i}.",)
        names[f"stem.layers.{i}.norm."] = (f"patch_embed.proj.{3 * i + 1}.",)
    names["stem.proj."] = ("patch_embed.proj.12.",)
    if isinstance(config, ViTConfig):
        return names | {f"blocks.{i}.": (f"blocks.{i}.",) for i in range(config.depth)}
    assert isinstance(config, CastConfig)
    for level in range(len(config.depths)):
        for ours, published in POOL_NAMES.items():
            names[f"stages.{level}.pool.{ours}"] = (f"pool{level + 1}.pool_block.{published}",)
    if isinstance(config, CastSegConfig):
        names["fusion.norm."] = ("block_fusion.proj_blocks.0.norm.",)
        names["fusion.proj."] = ("block_fusion.proj_blocks.2.",)
    return names | _block_names(config)


def _block_names(config: CastConfig) -> Names:
    once = isinstance(config, CastSegConfig) and config.pos_embed == "sincos"
    names: Names = {}
    for level, start in enumerate(accumulate(config.depths[:-1], initial=0)):
        for i in range(config.depths[level]):
            if once:
                published: tuple[str, ...] = (f"blocks{level + 1}.{i}.",)
            else:
                published = (f"blocks.{start + i}.", f"blocks{level + 1}.{start + i}.")
            names[f"stages.{level}.blocks.{i}."] = published
    return names
