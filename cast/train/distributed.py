"""Processes that train together, as `torchrun` starts them; a process alone is the special case of one."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import TrainingError

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """Where this process stands among those that train together.

    Attributes:
        rank: Its number among all.
        world_size: How many there are.
        local_rank: Its number on this machine.
        device: What it computes on.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device


@contextmanager
def setup(device: str = "auto", timeout: float = 600.0) -> Iterator[Processes]:
    """Join the processes that `torchrun` started, by its environment; without it, this process is alone.

    Gradients travel by NCCL on CUDA and by Gloo on the CPU, numbers that the loop agrees on always by Gloo. When a
    process fails, `torchrun` ends the others; ``timeout`` ends those that nobody ends.

    Args:
        device: "auto" (CUDA where there is one), "cpu", "cuda", ... On CUDA each process takes the GPU of its local
            rank.
        timeout: Seconds after which waiting for another process is an error.

    Yields:
        Its place and its device.

    Raises:
        ValueError: The environment or the device does not fit: more processes than GPUs, say.
        TrainingError: Another process ended, or cannot be reached.
    """
    rank, world_size, local_rank = (_read(name, default) for name, default in _VARIABLES)
    place = Processes(rank, world_size, local_rank, _find_device(device, local_rank, world_size))
    if place.device.type == "cuda":
        torch.cuda.set_device(place.device)
    if world_size == 1 or dist.is_initialized():
        yield place
        return
    backend = "cpu:gloo,cuda:nccl" if place.device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout), rank=rank, world_size=world_size)
    try:
        yield place
    except BaseException as error:
        if place.device.type != "cuda":  # NCCL would wait here for a process that is gone; the end of this one ends it
            dist.destroy_process_group()
        if isinstance(error, RuntimeError) and "gloo/transport" in str(error):
            raise TrainingError("another process has ended or cannot be reached; what it said tells why") from error
        raise
    dist.destroy_process_group()


_VARIABLES = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))


def _read(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ValueError(f"expected a number in the variable {name}, as torchrun sets it, got {text!r}")
    return int(text)


def _find_device(name: str, local_rank: int, world_size: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f'expected device "auto", "cpu", "cuda" or another of PyTorch, got {name!r}') from error
    if world_size > 1 and device.type not in ("cpu", "cuda"):
        raise ValueError(f"expected the CPU or CUDA for several processes, got {name!r}")
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise ValueError(f"expected a device that is there, got {name!r}: PyTorch sees no GPU")
    index = local_rank if world_size > 1 or device.index is None else device.index
    if index >= (count := torch.cuda.device_count()):
        raise ValueError(f"expected a GPU for local rank {index}, but there are {count}: start fewer processes")
    return torch.device("cuda", index)


def get_rank() -> int:
    """Return the number of this process, 0 where it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def get_world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Return whether this is the process that writes files and talks."""
    return get_rank() == 0


def all_gather(x: Tensor) -> Tensor:
    """Return the tensors of all processes behind each other along the first dimension, in the order of ranks.

    Args:
        x: ``[N, ...]``, of the same shape and dtype in every process.

    Returns:
        ``[world_size * N, ...]``, without a gradient.
    """
    x = x.detach()
    if get_world_size() == 1:
        return x
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def sum_over_processes(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the sums over all processes, in float64 on the CPU.

    Args:
        sums: Tensors of the same names and shapes in every process.
    """
    flat = {name: x.detach().to("cpu", torch.float64) for name, x in sorted(sums.items())}
    if get_world_size() == 1 or not flat:
        return flat
    total = torch.cat([x.flatten() for x in flat.values()])
    dist.all_reduce(total)
    parts = total.split([x.numel() for x in flat.values()])
    return {name: part.view(x.shape) for (name, x), part in zip(flat.items(), parts, strict=True)}


def broadcast(value: T) -> T:
    """Return what the main process has: a small object that can be pickled."""
    if get_world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


def on_main(action: Callable[[], None]) -> None:
    """Let the main process do something, such as writing a file; all wait for it, and fail where it fails.

    Raises:
        TrainingError: The main process raised one.
    """
    failure = None
    if is_main():
        try:
            action()
        except TrainingError as error:
            failure = error
    message = broadcast(None if failure is None else str(failure))
    if failure is not None:
        raise failure
    if message is not None:
        raise TrainingError(message)


@torch.no_grad()
def broadcast_tensors(module: nn.Module, parameters: bool) -> None:
    """Give a module the buffers of the main process, such as the statistics of batch norms.

    Args:
        module: The same in every process but for values.
        parameters: Whether parameters follow too.
    """
    if get_world_size() > 1:
        for tensor in [*(module.parameters() if parameters else ()), *module.buffers()]:
            dist.broadcast(tensor.detach(), 0)
