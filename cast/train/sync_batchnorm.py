"""Batch norms that see the batch of all processes, on the CPU too, where PyTorch has none."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .distributed import get_world_size


def convert_sync_batchnorm(module: nn.Module, device: torch.device) -> nn.Module:
    """Replace the batch norms in a module by ones that see the batch of all processes; nothing for a process alone.

    Parameters, buffers and names in the state dict stay. On CUDA they become PyTorch's `torch.nn.SyncBatchNorm`.

    Args:
        module: Changed in place.
        device: Where it will run.

    Returns:
        The module; where it is a batch norm itself, its replacement.
    """
    if get_world_size() == 1:
        return module
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    if isinstance(module, _BatchNorm) and not isinstance(module, SyncBatchNorm):
        return _convert(module)
    for name, child in module.named_children():
        if (new := convert_sync_batchnorm(child, device)) is not child:
            setattr(module, name, new)
    return module


def _convert(norm: _BatchNorm) -> "SyncBatchNorm":
    new = SyncBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    for name, tensor in [*norm.named_parameters(recurse=False), *norm.named_buffers(recurse=False)]:
        setattr(new, name, tensor)
    return new.train(norm.training)


class SyncBatchNorm(_BatchNorm):
    """A batch norm ``[N, C, ...]`` of any rank whose statistics are those of the batches of all processes, on the CPU.

    What a batch norm computes of the batches behind each other, with gradients of the sum of all processes' losses.
    Processes may have batches of different size. Statistics are computed in float32 at least. In eval mode, and in
    train mode without running statistics to update, it does what `torch.nn.SyncBatchNorm` does.

    Raises:
        ValueError: There is one value per channel in all processes together.
    """

    @torch.compiler.disable  # it looks at the count, so that each norm would be compiled by itself, and again
    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[N, C, ...]``."""
        self._check_input_dim(x)
        if not self.training or get_world_size() == 1:
            return self._forward_alone(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        dims = [d for d in range(x.ndim) if d != 1]
        count = wide.new_tensor([wide.numel() / wide.shape[1]])
        count, total = _all_reduce(torch.cat([count, wide.sum(dims)])).tensor_split([1])
        count = count.detach()
        if count <= 1:
            raise ValueError(f"expected more than 1 value per channel in train mode, got {tuple(x.shape)}")
        shape = [-1 if d == 1 else 1 for d in range(x.ndim)]
        centred = wide - (mean := total / count).view(shape)  # a second pass: no cancellation
        var = _all_reduce(centred.square().sum(dims)) / count
        self._update_running_stats(mean, var * count / (count - 1))
        y = centred * (var + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)

    def _check_input_dim(self, x: Tensor) -> None:
        if x.ndim < 2:
            raise ValueError(f"expected [N, C, ...], got {tuple(x.shape)}")

    def _forward_alone(self, x: Tensor) -> Tensor:
        """Do what a batch norm does, on the batch of this process."""
        batch_statistics = self.training or self.running_mean is None
        factor = self._count_batch() if self.training and self.track_running_stats else 0.0
        running = (
            (None, None) if self.training and not self.track_running_stats else (self.running_mean, self.running_var)
        )
        return F.batch_norm(x, *running, self.weight, self.bias, batch_statistics, factor, self.eps)

    @torch.no_grad()
    def _update_running_stats(self, mean: Tensor, var: Tensor) -> None:
        if self.track_running_stats:
            factor = self._count_batch()
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
            self.running_var.lerp_(var.to(self.running_var.dtype), factor)

    def _count_batch(self) -> float:
        """Return the weight of this batch in the running statistics; ``momentum=None`` makes them a plain mean."""
        self.num_batches_tracked.add_(1)
        return 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum


class _AllReduce(torch.autograd.Function):
    """Sum over processes. Each process's result depends on all inputs, so gradients are summed in the same way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient


def _all_reduce(x: Tensor) -> Tensor:
    return _AllReduce.apply(x)
