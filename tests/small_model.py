"""A model small enough for tests, and images and superpixels for it."""

import dataclasses

import torch
from torch import nn

from cast import Cast, CastConfig, SuperpixelConfig

SMALL = CastConfig(
    img_size=64,
    embed_dim=48,
    depths=(1, 2, 1),
    num_heads=4,
    num_clusters=(16, 8, 4),
    num_classes=5,
    superpixels=SuperpixelConfig(num_superpixels=25, iterations=4, bins=5),
)


def make_model(**overrides):
    model = Cast(dataclasses.replace(SMALL, **overrides)).eval()
    for p in model.parameters():  # large enough that every part shows in the output
        if p.ndim < 2 or p is model.cls_token:
            p.data += 0.2 * torch.randn_like(p)
    return model


def grid_labels(batch, height, width, cell=16):
    rows, columns = torch.arange(height) // cell, torch.arange(width) // cell
    return (rows[:, None] * -(-width // cell) + columns).expand(batch, -1, -1).contiguous()


def photo(batch, height, width):
    """Smooth uint8 images, [B, 3, H, W]."""
    coarse = torch.rand(batch, 3, height // 16 + 1, width // 16 + 1)
    fine = nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return (fine.clamp(0, 1) * 255).to(torch.uint8)
