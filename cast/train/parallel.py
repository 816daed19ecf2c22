"""A task made ready for its processes: copies that share gradients (DDP), or pieces of one (FSDP)."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .batch import Batch
from .config import TrainConfig
from .distributed import Processes, broadcast_tensors, get_world_size
from .sync_batchnorm import convert_sync_batchnorm
from .task import Task

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Network:
    """The task on its device, and what to call for a loss.

    Args:
        config: The settings.
        task: Moved, and with FSDP divided, in place.
        processes: Who trains.

    Attributes:
        task: The task, whose parameters the optimizer is for.

    Raises:
        ValueError: Settings that cannot go together.
    """

    def __init__(self, config: TrainConfig, task: Task, processes: Processes) -> None:
        if config.fsdp and config.precision == "float16":
            raise ValueError('expected precision "float32", "bfloat16" or "float64" with fsdp, got "float16"')
        self.config, self.task, self.device = config, task, processes.device
        task.to(self.device, torch.float64 if config.precision == "float64" else None)
        if config.grad_checkpointing:
            for module in task.modules():
                if hasattr(module, "set_grad_checkpointing"):
                    module.set_grad_checkpointing()
        if config.sync_batchnorm:
            convert_sync_batchnorm(task, self.device)
        self._call: nn.Module = task
        self._ddp: DistributedDataParallel | None = None
        self._undivided: Task | None = None
        if processes.world_size > 1 and config.fsdp:
            self._divide()
        elif processes.world_size > 1:
            self._ddp = DistributedDataParallel(task, gradient_as_bucket_view=True)
            self._ddp.broadcast_buffers = False  # not at each step: `whole` takes batch statistics of the main process
            self._call = self._ddp
        if config.compile:
            task.compile()  # its `forward`, in place: what a task does around it, and names of parameters, stay

    def _divide(self) -> None:
        """Divide the parameters in place, and keep a task without any: a place for whole ones."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        broadcast_tensors(self.task, parameters=True)
        self._empty = {name: torch.empty_like(p, device="meta") for name, p in self.task.named_parameters()}
        hollow = {id(p): nn.Parameter(self._empty[name], p.requires_grad) for name, p in self.task.named_parameters()}
        self._undivided = copy.deepcopy(self.task, hollow)
        mesh = init_device_mesh(self.device.type, (get_world_size(),))
        for module in (*self.task.modules_to_shard(), self.task):
            fully_shard(module, mesh=mesh, reshard_after_forward=True)

    def __call__(self, batch: Batch, epoch: float, first_part: bool) -> Tensor:
        """Return the loss of a prepared batch, a scalar."""
        if self.config.precision == "float64":
            batch = Batch(*(x.double() if x is not None and x.is_floating_point() else x for x in batch))
        with self._autocast():
            return self._call(batch, epoch, first_part)

    def _autocast(self) -> AbstractContextManager:
        dtype = AUTOCAST.get(self.config.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    @contextmanager
    def exchange(self, gradients: bool) -> Iterator[None]:
        """Choose whether the passes within, forward and backward, exchange gradients: only a step's last part does."""
        if self._undivided is not None:
            self.task.set_requires_gradient_sync(gradients)
        with nullcontext() if gradients or self._ddp is None else self._ddp.no_sync():
            yield

    @contextmanager
    def whole(self) -> Iterator[Task]:
        """Lend the task with all its parameters, in eval mode, without gradients, the same in all processes.

        Nothing is exchanged within, so that processes may have different numbers of batches.
        """
        broadcast_tensors(self.task, parameters=False)
        task: Task = self.task
        if self._undivided is not None:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

            task = self._undivided
            weights = get_model_state_dict(self.task, options=StateDictOptions(full_state_dict=True))
            task.load_state_dict(weights, assign=True)
        task.eval()
        try:
            with torch.no_grad(), self._autocast():
                yield task
        finally:
            if self._undivided is not None:
                task.load_state_dict(self._empty, strict=False, assign=True)
            self.task.train()

    def is_finite(self) -> bool:
        """Return whether the parameters in this process are; waits for the device."""
        flags = [getattr(p, "_local_tensor", p).detach().isfinite().all() for p in self.task.parameters()]
        return bool(torch.stack(flags).all())
