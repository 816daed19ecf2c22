"""Reading the ``.npz`` file of a hierarchy, with the doubts that a file from elsewhere deserves."""

from typing import IO

import numpy as np
import torch
from torch import Tensor


def read_tables(file: IO[bytes]) -> tuple[Tensor, list[Tensor], list[Tensor] | None, list[int]]:
    """The superpixels, parents, soft assignments and numbers of segments in an open file.

    Returns:
        Superpixels ``[B, H, W]`` and parents ``[B, N_l]`` of the stored integer types, soft assignments
        ``[B, N_l, N_{l+1}]`` or None, and ``[N_0, .., N_{L-1}]``. Parents are not checked against their ranges.

    Raises:
        ValueError: A table is missing, has the wrong type or shape, or holds labels that do not exist.
        Exception: Whatever NumPy raises for damaged files.
    """
    with np.load(file, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    counts = _table(arrays, "num_segments", "i").tolist()
    if not isinstance(counts, list) or len(counts) < 2 or not all(isinstance(n, int) and n >= 0 for n in counts):
        raise ValueError(f"expected num_segments of at least two levels, got {counts}")
    steps = len(counts) - 1
    superpixels = _table(arrays, "level0", "i")
    if superpixels.size and not -1 <= superpixels.min() <= superpixels.max() < counts[0]:
        raise ValueError(f"level0 must lie in [-1, {counts[0]}), got {superpixels.min()} .. {superpixels.max()}")
    single = superpixels.ndim == 2  # as `cast segment` stores it
    tables = {}
    for kind, dtype in (("parents", "i"), ("assignments", "f")):
        names = [f"{kind}{level}" for level in range(steps)]
        found = {name for name in arrays if name.startswith(kind)}
        if found - set(names) or (found and len(found) < steps):
            raise ValueError(f"expected {', '.join(names)} for {steps + 1} levels, got {', '.join(sorted(found))}")
        tables[kind] = [_batch(_table(arrays, name, dtype), single) for name in names] if found else None
    if tables["parents"] is None:
        raise ValueError("it has no tables of parents")
    if (rows := [table.shape[-1] for table in tables["parents"]]) != counts[:-1]:
        raise ValueError(f"num_segments is {counts}, but the tables of parents have {rows} rows")
    return _batch(superpixels, single), tables["parents"], tables["assignments"], counts


def _table(arrays: dict[str, np.ndarray], name: str, kind: str) -> np.ndarray:
    if name not in arrays:
        raise ValueError(f"it has no {name}")
    if arrays[name].dtype.kind != kind:
        raise ValueError(
            f"expected {name} of {'signed integers' if kind == 'i' else 'floats'}, got {arrays[name].dtype}"
        )
    return arrays[name]


def _batch(table: np.ndarray, single: bool) -> Tensor:
    return torch.from_numpy(table[None] if single else table)
