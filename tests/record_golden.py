"""Record figures of our own models, to be compared by test_golden.py: ``python tests/record_golden.py``.

They hold what the models compute, in float64, when the figures of the published model agree (test_reference_figures);
where those are not at hand, these still tell whether a change moved a number. Weights, image and superpixels follow
from stated rules:

- ``noise(name, shape)``: splitmix64 of ``crc32(name) * 2^32 + i`` at position i, its upper 53 bits scaled to [-1, 1).
- A parameter or buffer is ``noise(name, shape) * sqrt(3 / fan_in)`` for matrices and convolutions, ``1 + noise / 8``
  for the weight of a norm, ``1.1 + noise`` for a running variance, and ``noise / 4`` otherwise.
- The image is made of ramps, discs and a little noise, in uint8.
"""

import dataclasses
import math
import zlib
from pathlib import Path

import numpy as np
import torch

from cast import Cast, CastConfig, SuperpixelConfig

FOLDER = Path(__file__).parent / "golden"

MOCO = CastConfig(
    img_size=64,
    embed_dim=48,
    depths=(2, 1, 1),
    num_heads=6,
    num_clusters=(12, 6, 3),
    num_classes=7,
    superpixels=SuperpixelConfig(num_superpixels=36, order="sequential"),
)
CONFIGS = {
    "moco": MOCO,
    "deit": dataclasses.replace(
        MOCO,
        pos_embed="learned",
        init="deit",
        superpixels=SuperpixelConfig(num_superpixels=36, bins=5, iterations=15, order="sequential"),
    ),
}


def noise(name, shape):
    """Uniform float64 noise in [-1, 1) that depends on nothing but ``name`` and ``shape``."""
    with np.errstate(over="ignore"):
        x = (np.uint64(zlib.crc32(name.encode())) << np.uint64(32)) + np.arange(math.prod(shape), dtype=np.uint64)
        x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return ((x >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0).reshape(shape)


def weight(name, like):
    """The value of one entry of a state dict."""
    z = torch.from_numpy(noise(name, tuple(like.shape)))
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return torch.zeros_like(like)
    if leaf == "running_var":
        return 1.1 + z
    if leaf == "weight" and like.ndim == 1:
        return 1.0 + z / 8
    if leaf == "weight":
        return z * math.sqrt(3.0 / math.prod(like.shape[1:]))
    return z / 4


def make_model(name):
    model = Cast(CONFIGS[name]).double().eval()
    model.load_state_dict({n: weight(n, v) for n, v in model.state_dict().items()})
    return model


def make_image(height, width):
    """A uint8 picture [1, 3, H, W]: ramps, three discs and noise of a few levels."""
    y, x = np.mgrid[:height, :width]
    planes = np.stack([64 + x * 96 // width, 64 + y * 96 // height, 200 - (x + y) * 96 // (height + width)])
    for k, (row, column, radius) in enumerate(((0.3, 0.35, 0.2), (0.65, 0.6, 0.25), (0.2, 0.8, 0.12))):
        inside = (y - row * height) ** 2 + (x - column * width) ** 2 < (radius * height) ** 2
        planes[:, inside] = np.array([[30, 200, 120], [220, 60, 90], [240, 230, 40]][k])[:, None]
    planes = planes + np.round(6 * noise("image", planes.shape)).astype(np.int64)
    return torch.from_numpy(np.clip(planes, 0, 255).astype(np.uint8))[None]


def figures(name):
    """Everything that is compared, {key: array}, of a batch of two non-square images."""
    model = make_model(name)
    image = make_image(96, 64)
    image = torch.cat([image, image.flip(3)])
    out = model.forward_hierarchy(image)
    found = {
        "logits": out.logits,
        "embedding": out.embedding,
        "label_maps": out.hierarchy.label_maps().to(torch.uint8),
    }
    for i, level in enumerate(out.levels):
        found |= {f"{key}{i}": getattr(level, key) for key in ("tokens", "logits", "indices", "mask", "pooled_tokens")}
    (out.logits * torch.from_numpy(noise("loss", tuple(out.logits.shape)))).sum().backward()
    for n, p in model.named_parameters():
        if p.requires_grad:  # along a fixed direction, one number a parameter
            found[f"grad {n}"] = (p.grad * torch.from_numpy(noise(f"grad {n}", tuple(p.shape)))).sum()
    return {key: value.detach().numpy() for key, value in found.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for case in CONFIGS:
        np.savez_compressed(FOLDER / f"{case}.npz", **figures(case))
