"""Which GPUs the kernels are for."""

import torch

OLDEST = (8, 0)  # products of bfloat16 and asynchronous copies begin with sm_80


def has_kernels(device: torch.device) -> bool:
    """Whether kernels run on a CUDA device; on an older one the references do."""
    return torch.cuda.get_device_capability(device) >= OLDEST
