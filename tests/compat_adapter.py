"""The adapter of `reference_adapter.py` for models that find the published number of superpixels themselves."""

import dataclasses

import reference_adapter as plain
from reference_adapter import current_state, hierarchy, load, named_grads, prepare_train

from cast.models import build_model

__all__ = ["build", "current_state", "forward", "hierarchy", "load", "named_grads", "prepare_train"]
SURPLUS = 11  # superpixels that the models are told of and that no label names


def build(variant):
    return build_model(dataclasses.replace(plain.build(variant).config, compat="published")).eval()


def forward(module, image, superpixels):
    out = plain.forward(module, image, superpixels, SURPLUS)
    per_superpixel = ["block1", "logit1", "padding_mask1"]
    if getattr(module.config, "stage", "pretrain") != "pretrain":
        per_superpixel.append("output")
    return out | {name: out[name][:, :-SURPLUS] for name in per_superpixel}
