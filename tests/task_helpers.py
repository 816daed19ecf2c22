"""Settings of training that build networks small enough for tests, and batches for them."""

import torch
from small_model import photo
from torch import nn

from cast.layers import DropPath
from cast.train.batch import Batch
from cast.train.config import CONFIGS

POOLED = {
    "embed_dim": 48,
    "depths": [1, 2, 1],
    "num_heads": 4,
    "num_clusters": [16, 8, 4],
    "superpixels": {"num_superpixels": 40, "bins": 5, "quality": "fast"},
}
PUBLISHED = POOLED | {"superpixels": {"num_superpixels": 40}}  # in OpenCV's order
MODELS = {
    "cast_small": POOLED,
    "cast_seg_small_pretrain": POOLED,
    "vit_conv_small": {"embed_dim": 48, "depth": 2, "num_heads": 4},
}
SMALL = {"img_size": 64, "epochs": 10, "warmup_epochs": 2, "batch": 8, "device": "cpu"}
TASKS = {
    "moco": SMALL | {"model": "cast_small", "dim": 12, "hidden_dim": 20},
    "supervised": SMALL | {"model": "cast_small", "drop_path": 0.0},
    "probe": SMALL | {"model": "cast_small", "warmup_epochs": 0},
}


def make_config(task, **changes):
    values = TASKS[task] | changes
    return CONFIGS[task](**{"model_overrides": MODELS.get(values["model"], POOLED)} | values)


def make_batch(count=4, views=1, num_classes=3, size=64):
    images = photo(count * views, size, size).unflatten(0, (count, views))
    return Batch(images, torch.arange(count) % num_classes)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def without_dropout(module):
    for m in module.modules():
        if isinstance(m, nn.Dropout):
            m.p = 0.0
        elif isinstance(m, DropPath):
            m.drop_prob = 0.0
    return module


def values_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before, module):
    return {name for name, value in module.state_dict().items() if not torch.equal(before[name], value)}
