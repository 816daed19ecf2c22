"""Batch norms folded into the linear layers beside them: in eval mode both are affine, and so is their product."""

import torch
from torch import Tensor, nn

from cast.layers import BlockFusion
from cast.layers.conv_stem import ConvNorm

from .heads import ConvDecoder, Projector

Affine = nn.Linear | nn.Conv2d


@torch.no_grad()
def fold_batch_norms(model: nn.Module) -> None:
    """Replace, in place, each batch norm of the model's layers by the identity, its scale and shift moved next door.

    ``norm(W x + b) = (s W) x + (s b + t)`` and ``W norm(x) + b = (W s) x + (W t + b)``, with
    ``s = gamma / sqrt(var + eps)`` and ``t = beta - s mean`` from the running statistics. Computed in float64 and
    rounded once. A model without batch norms is left as it is.
    """
    for module in model.modules():
        if isinstance(module, ConvNorm) and isinstance(module.norm, nn.BatchNorm2d):
            _fold_into_layer_before(module.conv, module.norm)
            module.norm = nn.Identity().eval()
        elif isinstance(module, BlockFusion) and isinstance(module.norm, nn.BatchNorm1d):
            _fold_into_layer_after(module.norm, module.proj)
            module.norm = nn.Identity().eval()
        elif isinstance(module, Projector | ConvDecoder):
            for i in range(1, len(module)):
                if isinstance(module[i], nn.BatchNorm1d | nn.BatchNorm2d):
                    _fold_into_layer_before(module[i - 1], module[i])
                    module[i] = nn.Identity().eval()


def _fold_into_layer_before(layer: Affine, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    scale, shift = _affine(norm)
    weight = layer.weight.double() * scale.view(-1, *[1] * (layer.weight.ndim - 1))
    _replace(layer, weight, shift if layer.bias is None else scale * layer.bias.double() + shift)


def _fold_into_layer_after(norm: nn.BatchNorm1d, layer: nn.Linear) -> None:
    scale, shift = _affine(norm)
    bias = layer.weight.double() @ shift
    _replace(layer, layer.weight.double() * scale, bias if layer.bias is None else bias + layer.bias.double())


def _affine(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return what a batch norm multiplies by and adds in eval mode, ``[C]`` float64 each."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is None:
        return scale, -scale * norm.running_mean.double()
    scale = scale * norm.weight.double()
    return scale, norm.bias.double() - scale * norm.running_mean.double()


def _replace(layer: Affine, weight: Tensor, bias: Tensor) -> None:
    like = layer.weight
    layer.weight = nn.Parameter(weight.to(like), like.requires_grad)
    layer.bias = nn.Parameter(bias.to(like), like.requires_grad)
