"""The settings of the paper's experiments, by name (Ke, Mo, Yu, ICLR 2024, Tables 11 and 12, Appendix F.5).

What a table does not say is that of the published code: autocast in float16 for MoCo v3 and DeiT, none for probing.
Learning rates stand as the published commands give them; the one used is ``lr * batch / lr_batch``, so that probing
ImageNet-1k with ``--lr 30`` runs at 120, and DeiT's 5e-4 at 1e-3.
"""

from typing import Any

_TABLE_11 = {
    "batch": 256,
    "img_size": 224,
    "lr": 1.5e-4,
    "lr_batch": 256,
    "weight_decay": 0.1,
    "temperature": 0.2,
    "dim": 256,
    "momentum": 0.99,
    "hidden_dim": 4096,
    "precision": "float16",
}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "moco": {
        "imagenet1k": _TABLE_11 | {"model": "cast_small", "epochs": 100, "warmup_epochs": 10},
        "imagenet100": _TABLE_11 | {"model": "cast_small", "epochs": 200, "warmup_epochs": 20},
        "coco": _TABLE_11 | {"model": "cast_seg_small_pretrain", "epochs": 400, "warmup_epochs": 40},
    },
    "supervised": {
        "imagenet1k": {
            "model": "cast_deit_small",
            "batch": 1024,
            "img_size": 224,
            "lr": 5e-4,
            "lr_batch": 512,
            "weight_decay": 0.05,
            "epochs": 300,
            "warmup_epochs": 5,
            "warmup_lr": 1e-6,
            "min_lr": 1e-5,
            "rand_augment": 9.0,
            "rand_augment_std": 0.5,
            "smoothing": 0.1,
            "mixup": 0.8,
            "cutmix": 1.0,
            "precision": "float16",
        },
    },
    "probe": {
        "imagenet1k": {"batch": 1024, "lr": 30.0, "lr_batch": 256, "epochs": 90, "weight_decay": 0.0},
        "imagenet100": {"batch": 256, "lr": 0.8, "lr_batch": 256, "epochs": 90, "weight_decay": 0.0},
    },
}
