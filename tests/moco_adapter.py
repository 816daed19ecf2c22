"""A step of MoCo v3 as the checker of the published figures wants to see it; see reference_adapter.py."""

import torch
from recorded_positions import use_recorded_positions

from cast.models.config import CastConfig, CastSegConfig
from cast.models.official import load_official, to_official
from cast.models.official_names import official_names
from cast.train.batch import Batch
from cast.train.config import MocoConfig
from cast.train.moco import MocoTask

MODELS = {CastConfig.kind: "cast_small", CastSegConfig.kind: "cast_seg_small_pretrain"}
PREDICTOR = "predictor."


def moco_build(spec):
    arch = dict(spec["arch"])
    overrides = {"depths": arch.pop("depth"), **arch, "compat": "published"}  # which finds the number of superpixels
    overrides["superpixels"] = {"num_superpixels": 100}  # more than there are labels
    config = MocoConfig(
        model=MODELS[spec["family"]],
        model_overrides=overrides,
        img_size=spec["img_size"],
        dim=spec["dim"],
        hidden_dim=spec["mlp_dim"],
        temperature=spec["T"],
        momentum=spec["m"],
    )
    return MocoTask(config)


def encoders(task):
    return {"base_encoder.": task.base_encoder, "momentum_encoder.": task.momentum_encoder}


def moco_load(task, state):
    left = set(state)
    for prefix, encoder in encoders(task).items():
        own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        load_official(encoder, own)
        use_recorded_positions(encoder)
        left -= {prefix + name for name in own}
    task.predictor.load_state_dict({name.removeprefix(PREDICTOR): state[name] for name in left})


def moco_loss(task, x1, x2, y1, y2, momentum):
    assert momentum == task.config.momentum, "at epoch 0 the schedule gives the one of the config"
    batch = Batch(torch.stack([x1, x2], 1), torch.zeros(len(x1), dtype=torch.int64), torch.stack([y1, y2], 1))
    return task(batch, 0.0)


def moco_grads(task):
    grads = {
        prefix + official_names(name, encoder.config)[0]: p.grad
        for prefix, encoder in encoders(task).items()
        for name, p in encoder.named_parameters()
    }
    return grads | {PREDICTOR + name: p.grad for name, p in task.predictor.named_parameters()}


def moco_state(task):
    state = {
        prefix + name: value
        for prefix, encoder in encoders(task).items()
        for name, value in to_official(encoder).items()
    }
    return state | {PREDICTOR + name: value for name, value in task.predictor.state_dict().items()}
