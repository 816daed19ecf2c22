"""What the published training programs write around the weights, made here."""

import argparse

import torch


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


def moco_file(state, **others):
    """What pre-training writes: both encoders with projectors, the predictor, the optimizer."""
    body = {n: v for n, v in state.items() if not n.startswith("head.")}
    projector = {"head.0.weight": torch.randn(8, state["cls_token"].shape[2]), "head.6.weight": torch.randn(4, 8)}
    twin = {n: v + 1 if v.is_floating_point() and "pos_embed" not in n and "pe_token" not in n else v
            for n, v in body.items()}  # fmt: skip
    return {
        "epoch": 100,
        "arch": "cast_small",
        "state_dict": prefixed(body | projector, "module.base_encoder.")
        | prefixed(twin | projector, "module.momentum_encoder.")
        | {"module.predictor.0.weight": torch.randn(4, 4)},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "scaler": {"scale": 65536.0},
    }


def deit_file(state):
    args = argparse.Namespace(model="deit_cast_small", lr=5e-4, output_dir="/somewhere", layers=[1, 2])
    ema = {n: v + 1 if v.is_floating_point() else v for n, v in state.items()}
    others = {"optimizer": {"state": {}}, "lr_scheduler": {"t": 1}, "epoch": 299, "scaler": {"scale": 1.0}}
    return {"model": state, "model_ema": ema, "args": args, **others}


def probe_file(state):
    return {"epoch": 90, "arch": "cast_small", "state_dict": prefixed(state, "module."), "best_acc1": torch.tensor(1.0),
            "optimizer": {"state": {}}}  # fmt: skip


def spml_file(state):
    embedding = {n: v for n, v in state.items() if n.startswith("vit_backbone.")}
    return {
        "embedding_model": prefixed(embedding, "module."),
        "prediction_model": {n: v for n, v in state.items() if n not in embedding},
    }


def segmenter_file(state):
    return {"model": state, "optimizer": {"state": {}}, "n_cls": 5, "lr_scheduler": {}, "epoch": 63}
