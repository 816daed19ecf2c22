"""Which GPUs the kernels are for."""

import functools
import re

import torch

from cast_kernels import _ext

OLDEST = (8, 0)  # products of bfloat16 and asynchronous copies begin with sm_80


def has_kernels(device: torch.device) -> bool:
    """Whether kernels run on a CUDA device; on an older one the references do."""
    return torch.cuda.get_device_capability(device) >= OLDEST


def is_built_for(device: torch.device) -> bool:
    """Whether the extension holds code that runs on a CUDA device."""
    capability = torch.cuda.get_device_capability(device)
    return capability >= OLDEST and _cover(tuple(_ext.load().build_info()["cuda_archs"]), capability)


@functools.cache
def _cover(archs: tuple[str, ...], capability: tuple[int, int]) -> bool:
    """Does one of CMake's architectures run on it? 80-real: on 8.x; 80, 80-virtual: on all later; 90a: on 9.0 alone."""
    for arch in archs:
        number, exact, kind = re.fullmatch(r"(\d+)([a-z]?)(|-real|-virtual)", arch).groups()
        oldest = divmod(int(number), 10)
        if exact and capability == oldest:
            return True
        if not exact and kind != "-virtual" and capability[0] == oldest[0] and capability >= oldest:
            return True
        if not exact and kind != "-real" and capability >= oldest:
            return True
    return False
