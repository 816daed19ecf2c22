"""A model small enough for tests, and images and superpixels for it."""

import dataclasses

import torch
from torch import nn

from cast import Cast, CastConfig, SuperpixelConfig
from cast.models import CastSegConfig, CastSegmenterConfig, ViTConfig, build_model

SMALL = CastConfig(
    img_size=64,
    embed_dim=48,
    depths=(1, 2, 1),
    num_heads=4,
    num_clusters=(16, 8, 4),
    num_classes=5,
    superpixels=SuperpixelConfig(num_superpixels=25, iterations=4, bins=5),
)


_SHARED = {name: getattr(SMALL, name) for name in ("img_size", "embed_dim", "num_heads", "num_classes")}
_POOLED = _SHARED | {"depths": (1, 2, 1), "num_clusters": (16, 8, 4), "superpixels": SMALL.superpixels}
_LEARNED = {"pos_embed": "learned", "init": "deit"}
VARIANTS = {
    "pretrain": CastSegConfig(**_POOLED, stage="pretrain"),
    "segmentation": CastSegConfig(**_POOLED, pos_embed_size=32),
    "retrieval": CastSegConfig(**_POOLED | {"num_classes": 0}, head="projector", projector_dims=(20, 12, 8)),
    "encoder": CastSegConfig(**_POOLED, **_LEARNED, stage="encoder"),
    "voc": CastSegmenterConfig(**_POOLED, stage="segmentation", decoder="conv"),
    "segmenter": CastSegmenterConfig(**_POOLED, **_LEARNED, encoder_classes=3, decoder_heads=4),
    "segmenter_linear": CastSegmenterConfig(**_POOLED, **_LEARNED, decoder="linear"),
    "vit": ViTConfig(**_SHARED, depth=3),
}


def make_model(**overrides):
    return _liven(Cast(dataclasses.replace(SMALL, **overrides)))


def make_variant(name, **overrides):
    return _liven(build_model(dataclasses.replace(VARIANTS[name], **overrides)))


def _liven(model):
    for name, p in model.named_parameters():  # large enough that every part shows in the output
        if p.ndim < 2 or name.endswith(("cls_token", "cls_emb")):
            p.data += 0.2 * torch.randn_like(p)
    return model.eval()


def grid_labels(batch, height, width, cell=16):
    rows, columns = torch.arange(height) // cell, torch.arange(width) // cell
    return (rows[:, None] * -(-width // cell) + columns).expand(batch, -1, -1).contiguous()


def photo(batch, height, width):
    """Smooth uint8 images, [B, 3, H, W]."""
    coarse = torch.rand(batch, 3, height // 16 + 1, width // 16 + 1)
    fine = nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return (fine.clamp(0, 1) * 255).to(torch.uint8)
