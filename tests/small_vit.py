"""Vision transformers of timm, small enough for tests, and a forward pass through their pools written a second way."""

import timm
import torch

SMALL = {"embed_dim": 48, "depth": 4, "num_heads": 4, "num_classes": 5}
FAMILIES = {
    "plain": ("vit_tiny_patch16_224", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "registers": ("vit_small_patch14_reg4_dinov2", {"global_pool": "avg"}),
    "clip": ("vit_base_patch32_clip_224", {}),  # a norm before the first block
    "siglip": ("vit_base_patch16_siglip_224", {}),  # no prefix token, pooled by attention
    "parallel": ("vit_small_patch16_18x2_224", {}),
    "eva02": ("eva02_tiny_patch14_224", {}),
    "dinov3": ("vit_small_patch16_dinov3", {}),
    "mixed": ("vit_small_patch16_rope_mixed_224", {}),  # a rotary table for each block and head, with gradients
}


def make_vit(family="plain", *, grid=(4, 4), dtype=torch.float32, **options):
    """A model in eval mode with random weights, large enough that every part shows in the output."""
    name, more = FAMILIES[family]
    side = 14 if "patch14" in name else 32 if "patch32" in name else 16
    size = tuple(side * n for n in grid)
    vit = timm.create_model(name, **{**SMALL, "img_size": size, **more, **options})
    for p in vit.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return vit.to(dtype).eval()


def make_image(vit, batch=2):
    height, width = vit.patch_embed.img_size
    return torch.randn(batch, 3, height, width, dtype=next(vit.parameters()).dtype)


def wake_pools(vit):
    """Give the pools weights as if trained: their residual no longer is zero."""
    for pool in vit.graph_pools.values():
        torch.nn.init.normal_(pool.fc2.weight, std=0.3)
        torch.nn.init.normal_(pool.fc2.bias, std=0.3)
    return vit


def features_by_hand(vit, image):
    """What a patched model's ``forward_features`` should be: one image at a time, blocks and pools called in turn."""
    features = []
    for one in image.split(1):
        tokens, rope = vit._pos_embed(vit.patch_embed(one)), None
        if isinstance(tokens, tuple):
            tokens, rope = tokens
        tokens = getattr(vit, "norm_pre", torch.nn.Identity())(tokens)
        for i, block in enumerate(vit.blocks):
            options = {} if rope is None else {"rope": rope[i] if getattr(vit, "rope_mixed", False) else rope}
            tokens = block(tokens, **options)
            if str(i) in vit.graph_pools:
                cut = vit.num_prefix_tokens
                pooled = vit.graph_pools[str(i)](tokens[:, cut:], tokens[:, :cut])
                tokens = torch.cat([pooled.cls, pooled.tokens], dim=1)
                rope = None if rope is None else rope[..., pooled.indices[0], :]
        features.append(vit.norm(tokens))
    return torch.cat(features)


TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}  # relative, through a few blocks


def close(found, expected, factor=1.0):
    bound = factor * TOLERANCE[found.dtype]
    torch.testing.assert_close(found, expected, rtol=bound, atol=bound * max(1.0, expected.abs().max().item()))
