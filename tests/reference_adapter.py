"""Our models as the checker of the published figures wants to see them; see test_reference_figures.py."""

import numpy as np
import torch
from moco_adapter import moco_build, moco_grads, moco_load, moco_loss, moco_state
from oracle_common import VARIANTS
from recorded_positions import use_recorded_positions
from torch import nn

import cast_kernels
from cast import GraphPool, Hierarchy
from cast.layers import DropPath, resize_labels
from cast.models import CastConfig, CastSegConfig, CastSegmenterConfig, ViTConfig, build_model
from cast.models.compat import published_bytes
from cast.models.official import load_official, to_official
from cast.models.official_names import POOL_NAMES, official_names
from cast.train.moco import MocoTask

__all__ = ["moco_build", "moco_load", "moco_loss"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


LEARNED = {"pos_embed": "learned", "init": "deit"}
FAMILIES = {
    "cast": (CastConfig, {}),
    "cast_deit": (CastConfig, LEARNED),
    "cast_seg": (CastSegConfig, {}),
    "cast_seg_deit": (CastSegConfig, {**LEARNED, "stage": "encoder"}),
    "spml_retrieval": (CastSegConfig, {"head": "projector", "num_classes": 0, "pos_embed_size": 224}),
    "segmenter": (CastSegmenterConfig, {**LEARNED, "encoder_classes": 1000}),
    "vit_conv": (ViTConfig, {}),
}


def build(variant):
    spec = dict(VARIANTS[variant])
    make, values = FAMILIES[spec["family"]]
    names = {"depth": "depth" if make is ViTConfig else "depths", "n_cls": "num_classes"}
    known = ("img_size", "num_classes", "n_cls", "stage")
    spec = {k: v for k, v in spec.items() if k in known} | spec["arch"]
    config = make(**{names.get(k, k): v for k, v in spec.items()} | values)
    return build_model(config).eval()


def load(module, state):
    load_official(module, state)
    use_recorded_positions(module)


def current_state(module):
    return moco_state(module) if isinstance(module, MocoTask) else to_official(module)


def prepare_train(module):
    module.train()
    for m in module.modules():
        if isinstance(m, nn.Dropout):
            m.p = 0.0
        elif isinstance(m, DropPath):
            m.drop_prob = 0.0


def forward(module, image, superpixels, surplus=0):
    config = module.config
    if config.kind == "vit":
        return {"output": module(image)}
    # The published number of segments is the largest label of the batch plus one, on the stem grid where it counts.
    cells = config.kind == "cast" or config.stage == "pretrain"
    seen = resize_labels(superpixels, (image.shape[2] // 8, image.shape[3] // 8)) if cells else superpixels
    result = module.forward_hierarchy(image, superpixels, int(seen.max()) + 1 + surplus)
    out = {"output": result.logits, "cluster_index": result.hierarchy.labels(len(result.levels)).long()}
    for i, level in enumerate(result.levels, start=1):
        out[f"block{i}"], out[f"cls_in{i}"] = level.tokens, level.cls
        out[f"logit{i}"], out[f"sampled_inds{i}"] = level.logits, level.indices
        out[f"centroid{i}"], out[f"cls{i}"] = level.pooled_tokens, level.pooled_cls
        out[f"padding_mask{i}"] = ~level.mask
    return out


def named_grads(module):
    if isinstance(module, MocoTask):
        return moco_grads(module)
    return {official_names(name, module.config)[0]: p.grad for name, p in module.named_parameters()}


def segment_mean(x, labels):
    return cast_kernels.segment_mean(x, labels, int(labels.max()) + 1)[0]


def fps(points, npoints, start):
    return cast_kernels.farthest_point_sample(points, npoints, start=start, duplicates="repeat")


def hierarchy(logits, superpixels):
    return Hierarchy.from_assignments(superpixels, logits).label_maps()[:, 1:]


def graph_pool_build(d, k, l2_normalize_for_fps):
    return GraphPool(d, k, normalize=l2_normalize_for_fps).eval()


def _pool_name(name):
    ours = next(key for key in POOL_NAMES if name.startswith(key))
    return POOL_NAMES[ours] + name[len(ours) :]


def graph_pool_load(module, state):
    own = {name: state[_pool_name(name)] for name in module.state_dict()}
    assert len(own) == len(state)
    module.load_state_dict(own)


def graph_pool_forward(module, cls, src, mask):
    r = module(src, cls, None if mask is None else ~mask)
    return {"cls": r.cls, "centroid": r.tokens, "logit": r.logits, "sampled_inds": r.indices}


def graph_pool_grads(module):
    return {_pool_name(name): p.grad for name, p in module.named_parameters()}


def superpixels(image, recipe):
    """The published recipes, defects included: what each pipeline hands to SEEDS."""
    height, width = image.shape[:2]
    bins, iterations, count = 5, 15, {"moco": 196, "deit": 196, "segmenter": height * width // 256}.get(recipe, 1024)
    if recipe == "moco":
        bins, iterations = 15, 20
    elif recipe in ("deit", "segmenter"):
        planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
        planes = published_bytes(planes, MEAN, STD, "deit" if recipe == "deit" else "negative")
        image = planes[0].permute(1, 2, 0).numpy()
    elif recipe == "spml_half":
        import cv2

        image = cv2.resize(image, (height // 2, width // 2), interpolation=cv2.INTER_LINEAR)
    image = torch.from_numpy(np.ascontiguousarray(image))[None]
    return cast_kernels.seeds(image, count, order="sequential", bins=bins, iterations=iterations)[0].numpy()
