"""How fresh weights are drawn in the two published families."""

import math

from torch import nn

from cast.layers import BlockFusion, GraphPool


def init_linear(layer: nn.Linear, rule: str, *, is_qkv: bool = False) -> None:
    """Draw one linear layer, with a bias of zero.

    "moco": Xavier uniform, where a joint query, key and value layer counts as three square ones.
    "deit": normal of deviation 0.02, truncated at +-2.
    """
    if rule == "moco":
        fan_out = layer.out_features // 3 if is_qkv else layer.out_features
        bound = math.sqrt(6.0 / (layer.in_features + fan_out))
        nn.init.uniform_(layer.weight, -bound, bound)
    else:
        nn.init.trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def init_weights(model: nn.Module, rule: str) -> None:
    """Draw the linear layers, the class token and the learned positions of a model.

    The stem, the norms and, in the "deit" family, the pools and the fusion keep PyTorch's defaults, as published.
    """
    late = [m for m in model.modules() if isinstance(m, GraphPool | BlockFusion)]  # there, made after the drawing
    in_late = {id(child) for m in late for child in m.modules()}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and (rule == "moco" or id(module) not in in_late):
            init_linear(module, rule, is_qkv=name.endswith(".qkv"))
    if rule == "moco":
        nn.init.normal_(model.cls_token, std=1e-6)
    else:
        nn.init.trunc_normal_(model.cls_token, std=0.02)
    if isinstance(model.pos_embed, nn.Parameter):
        nn.init.trunc_normal_(model.pos_embed, std=0.02)
