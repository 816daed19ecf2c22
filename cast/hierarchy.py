"""The result of CAST: superpixels, and the chain of parents that joins them into ever larger segments.

Level 0 are the superpixels; ``parents[l]`` says to which segment of level ``l + 1`` each segment of level ``l``
belongs. A pixel's label at any level is therefore one table lookup per level away from its superpixel, and the
segmentations are nested by construction: two pixels that share a segment share all the coarser ones.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cast._files import replace_file
from cast._hierarchy_checks import check_labels, check_logits, check_range, integer
from cast._hierarchy_file import read_tables


class Hierarchy:
    """A part-to-whole segmentation of a batch of images.

    ``L`` levels: the superpixels (level 0, ``N_0`` of them) and ``L - 1`` groupings of ``N_1 .. N_{L-1}`` segments. All
    tensors stay on the device of the superpixels; no method but ``save`` and ``tables`` reads values back to the host
    (the constructor does so too where ``num_coarsest`` must be found out). Everything is deterministic.

    Attributes:
        superpixels: Level 0, int32 ``[B, H, W]``; -1 where the given label was outside ``[0, N_0)``.
        parents: One table per step, int64 ``[B, N_l]`` with values in ``[0, N_{l+1})``.
        assignments: The soft tables ``P_l [B, N_l, N_{l+1}]`` (rows sum to one), or None.
        num_segments: ``(N_0, .., N_{L-1})``. A segment may be empty at any level.
    """

    def __init__(
        self,
        superpixels: Tensor,
        parents: Sequence[Tensor],
        soft: Sequence[Tensor] | None = None,
        *,
        num_coarsest: int | None = None,
    ):
        """Build a hierarchy from label maps and parent tables.

        Args:
            superpixels: Integer labels ``[B, H, W]``; those outside ``[0, N_0)`` belong to no segment, at any level.
            parents: Integer tables ``[B, N_l]``, fine to coarse, at least one. Values must lie in ``[0, N_{l+1})``:
                checked on the CPU; elsewhere that would need a host sync, and indexing is left to fail.
            soft: Soft assignments ``[B, N_l, N_{l+1}]``, floating point, one per table of ``parents``.
            num_coarsest: Number of segments of the last level. Default: from ``soft``, else the largest parent + 1.

        Raises:
            TypeError: A label map or a table is not an integer tensor, or ``soft`` is not floating point.
            ValueError: Shapes or devices do not fit together, or a parent is out of range (CPU).
        """
        check_labels("superpixels", superpixels, 3)
        if not parents:
            raise ValueError("expected at least one table of parents, got none")
        for level, table in enumerate(parents):
            check_labels(f"parents[{level}]", table, 2, superpixels)
        if soft is not None:
            if len(soft) != len(parents):
                raise ValueError(f"expected one soft assignment per table of parents ({len(parents)}), got {len(soft)}")
            for level, (table, p) in enumerate(zip(parents, soft, strict=True)):
                check_logits(f"soft[{level}]", p, superpixels, table.shape[1])
        if num_coarsest is None:
            last = parents[-1]
            num_coarsest = soft[-1].shape[2] if soft is not None else (int(last.max()) + 1 if last.numel() else 0)
        counts = (*(table.shape[1] for table in parents), integer("num_coarsest", num_coarsest))
        for level, table in enumerate(parents):
            if soft is not None and soft[level].shape[2] != counts[level + 1]:
                raise ValueError(
                    f"soft[{level}] assigns to {soft[level].shape[2]} segments, but level {level + 1} has "
                    f"{counts[level + 1]}"
                )
            check_range(f"parents[{level}]", table, counts[level + 1])
        self._set(superpixels, parents, soft, counts)

    @classmethod
    def from_assignments(
        cls, superpixels: Tensor, logits: Sequence[Tensor], parents: Sequence[Tensor] | None = None
    ) -> "Hierarchy":
        """Build a hierarchy from the assignment logits of the graph pools.

        The parent of a segment is its largest logit, the lowest index on ties; the soft assignment is the softmax over
        the clusters, in float32 for half precision. Gradients flow through the soft assignments.

        Args:
            superpixels: Integer labels ``[B, H, W]``.
            logits: Floating point ``[B, N_l, N_{l+1}]``, fine to coarse, at least one.
            parents: The argmax of the logits int64 ``[B, N_l]``, where it is known already, as from ``assign_pool``,
                which takes it before the logits are rounded to half precision. Checked as by the constructor.

        Returns:
            The hierarchy of ``len(logits) + 1`` levels.

        Raises:
            TypeError: The superpixels or parents are not integers, or the logits are not floating point.
            ValueError: Shapes or devices do not fit together, or a parent is out of range (CPU).
        """
        check_labels("superpixels", superpixels, 3)
        if not logits:
            raise ValueError("expected the logits of at least one level, got none")
        rows = None
        for level, table in enumerate(logits):
            check_logits(f"logits[{level}]", table, superpixels, rows)
            if table.shape[2] == 0:
                raise ValueError(f"logits[{level}] has no clusters: {tuple(table.shape)}")
            rows = table.shape[2]
        if parents is None:
            parents = [table.detach().argmax(-1) for table in logits]
        else:
            for level, table in enumerate(parents):
                check_labels(f"parents[{level}]", table, 2, superpixels)
            if [table.shape for table in parents] != [table.shape[:2] for table in logits]:
                raise ValueError("expected one table of parents [B, N_l] per level of logits")
            for level, (table, scores) in enumerate(zip(parents, logits, strict=True)):
                check_range(f"parents[{level}]", table, scores.shape[2])
        self = cls.__new__(cls)
        self._set(
            superpixels,
            parents,
            [table.to(torch.promote_types(table.dtype, torch.float32)).softmax(-1) for table in logits],
            (*(table.shape[1] for table in logits), rows),
        )
        return self

    def _set(self, superpixels: Tensor, parents: Sequence[Tensor], soft: Any, counts: tuple[int, ...]) -> None:
        inside = (superpixels >= 0) & (superpixels < counts[0])
        self.superpixels = torch.where(inside, superpixels.to(torch.int32), -1)
        self.parents = tuple(table.long() for table in parents)
        self.assignments = None if soft is None else tuple(soft)
        self.num_segments = counts

    @property
    def num_levels(self) -> int:
        """Number of levels, the superpixels included."""
        return len(self.num_segments)

    @property
    def batch_size(self) -> int:
        """Number of images."""
        return self.superpixels.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the label maps."""
        return self.superpixels.shape[1], self.superpixels.shape[2]

    @property
    def device(self) -> torch.device:
        """Device of all tensors."""
        return self.superpixels.device

    def chain(self, level: int) -> Tensor:
        """Segment at ``level`` to which each superpixel belongs: int64 ``[B, N_0]``."""
        self._check_level(level)
        chain = torch.arange(self.num_segments[0], device=self.device).repeat(self.batch_size, 1)
        for parents in self.parents[:level]:
            chain = parents.gather(1, chain)
        return chain

    def labels(self, level: int) -> Tensor:
        """Label map of one level: int32 ``[B, H, W]``, -1 where a pixel belongs to no segment."""
        if self._check_level(level) == 0:
            return self.superpixels
        flat = self.superpixels.flatten(1)
        # a column of -1 at the end is what the label -1 of a stray pixel finds
        table = torch.nn.functional.pad(self.chain(level).int(), (0, 1), value=-1)
        return table.gather(1, torch.where(flat < 0, self.num_segments[0], flat).long()).view_as(self.superpixels)

    def label_maps(self) -> Tensor:
        """Label maps of all levels, fine to coarse: int32 ``[B, L, H, W]``."""
        return torch.stack([self.labels(level) for level in range(self.num_levels)], 1)

    def soft(self, level: int) -> Tensor:
        """Soft membership of each superpixel in the segments of ``level``: floating point ``[B, N_0, N_level]``.

        ``S_0 = I`` and ``S_l = S_{l-1} P_{l-1}``, where ``P_{l-1}`` assigns level ``l - 1`` to level ``l``; rows sum to
        one. Its argmax may differ from ``chain(level)``, which follows the best parent at each step (paper,
        Section 3.2; the published code uses the chain).

        Raises:
            ValueError: The hierarchy was built without soft assignments.
        """
        self._check_level(level)
        if self.assignments is None:
            raise ValueError("this hierarchy was built from hard parents only; soft assignments are not known")
        if level == 0:
            eye = torch.eye(self.num_segments[0], dtype=self.assignments[0].dtype, device=self.device)
            return eye.repeat(self.batch_size, 1, 1)
        membership = self.assignments[0]
        for assignment in self.assignments[1:level]:
            membership = membership @ assignment
        return membership

    def soft_maps(self, level: int) -> Tensor:
        """The soft membership of each pixel: ``[B, N_level, H, W]``, zero where a pixel belongs to no segment.

        Raises:
            ValueError: The hierarchy was built without soft assignments.
        """
        membership = torch.nn.functional.pad(self.soft(level).mT, (0, 1))  # [B, N_level, N_0 + 1], the last is zero
        flat = self.superpixels.flatten(1)
        index = torch.where(flat < 0, self.num_segments[0], flat).long()
        maps = membership.gather(2, index[:, None].expand(-1, membership.shape[1], -1))
        return maps.unflatten(2, self.size)

    def areas(self, level: int) -> Tensor:
        """Number of pixels of each segment of ``level``: int64 ``[B, N_level]``, zero for empty segments."""
        labels = self.labels(level).flatten(1)
        count = self.num_segments[level]
        index = torch.where(labels < 0, count, labels).long()
        return index.new_zeros(self.batch_size, count + 1).scatter_add_(1, index, torch.ones_like(index))[:, :count]

    def resize(self, height: int, width: int) -> "Hierarchy":
        """The same hierarchy on a grid of ``height x width`` pixels, by nearest neighbour (pixel centres aligned).

        Raises:
            TypeError: A side is not an integer.
            ValueError: A side is smaller than 1, or the label maps have no pixel.
        """
        height, width = integer("height", height), integer("width", width)
        if height < 1 or width < 1 or 0 in self.size:
            raise ValueError(f"cannot resize label maps of {self.size} to {(height, width)}")
        rows, columns = (
            (torch.arange(new, device=self.device) * 2 + 1) * old // (2 * new)
            for old, new in zip(self.size, (height, width), strict=True)
        )
        return self._copy(superpixels=self.superpixels[:, rows][:, :, columns])

    def to(self, device: torch.device | str) -> "Hierarchy":
        """The same hierarchy with all tensors on ``device``."""
        soft = None if self.assignments is None else [table.to(device) for table in self.assignments]
        return self._copy(self.superpixels.to(device), [table.to(device) for table in self.parents], soft)

    def __len__(self) -> int:
        return self.batch_size

    def __getitem__(self, index: int) -> "Hierarchy":
        """The hierarchy of one image, with a batch size of 1; slices are not supported (TypeError)."""
        index = integer("the index of one image", index)
        if not -self.batch_size <= index < self.batch_size:
            raise IndexError(f"image {index} of a batch of {self.batch_size}")
        one = slice(index % self.batch_size, index % self.batch_size + 1)
        soft = None if self.assignments is None else [table[one] for table in self.assignments]
        return self._copy(self.superpixels[one], [table[one] for table in self.parents], soft)

    def __iter__(self) -> Iterator["Hierarchy"]:
        return (self[index] for index in range(self.batch_size))

    def __repr__(self) -> str:
        height, width = self.size
        return (
            f"Hierarchy(batch_size={self.batch_size}, size={height}x{width}, num_segments={self.num_segments}, "
            f"soft={self.assignments is not None}, device={str(self.device)!r})"
        )

    def arrays(self, *, soft: bool = False) -> dict[str, np.ndarray]:
        """The hierarchy as NumPy arrays, under the names of the ``.npz`` file.

        Args:
            soft: Add the soft assignments.

        Returns:
            ``num_segments`` int64 ``[L]``; ``level0 .. level{L-1}`` label maps ``[B, H, W]``, int16 where that holds
            the labels, else int32; ``parents0 ..`` int64 ``[B, N_l]``; with ``soft`` also ``assignments0 ..`` float32
            ``[B, N_l, N_{l+1}]``.

        Raises:
            ValueError: ``soft`` is asked of a hierarchy without soft assignments.
        """
        if soft and self.assignments is None:
            raise ValueError("this hierarchy was built from hard parents only; soft assignments are not known")
        arrays = {"num_segments": np.asarray(self.num_segments, dtype=np.int64)}
        for level, count in enumerate(self.num_segments):
            dtype = torch.int16 if count <= 2**15 else torch.int32
            arrays[f"level{level}"] = self.labels(level).to(dtype).cpu().numpy()
        for level, table in enumerate(self.parents):
            arrays[f"parents{level}"] = table.cpu().numpy()
        if soft:
            for level, table in enumerate(self.assignments):
                arrays[f"assignments{level}"] = table.detach().float().cpu().numpy()
        return arrays

    def tables(self) -> list[dict[str, Any]]:
        """One dictionary per image for JSON: ``num_segments``, and per level ``areas`` (pixels) and ``parents``."""
        areas = [self.areas(level).tolist() for level in range(self.num_levels)]
        parents = [table.tolist() for table in self.parents]
        return [
            {
                "num_segments": list(self.num_segments),
                "areas": [level[image] for level in areas],
                "parents": [level[image] for level in parents],
            }
            for image in range(self.batch_size)
        ]

    def save(self, path: str | os.PathLike[str], *, soft: bool = False) -> None:
        """Write ``arrays(soft=soft)`` as a compressed ``.npz`` file, whole or not at all.

        Args:
            path: The file to create or replace, written under exactly this name.
            soft: Store the soft assignments too.
        """
        arrays = self.arrays(soft=soft)
        with replace_file(path) as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Hierarchy":
        """Read what ``save`` (or ``cast segment``, which stores one image without the batch dimension) has written.

        Raises:
            OSError: The file cannot be opened.
            ValueError: The file is no such file, or its tables contradict each other.
        """
        with open(path, "rb") as file:
            try:
                superpixels, parents, soft, counts = read_tables(file)
                return cls(superpixels, parents, soft, num_coarsest=counts[-1])
            except Exception as error:  # damaged files raise nearly anything: BadZipFile, zlib.error, SyntaxError
                raise ValueError(f"{os.fspath(path)} does not hold a hierarchy: {error}") from error

    def _check_level(self, level: int) -> int:
        level = integer("level", level)
        if not 0 <= level < self.num_levels:
            raise ValueError(f"expected a level in [0, {self.num_levels}), got {level}")
        return level

    def _copy(self, superpixels: Tensor, parents: Any = None, soft: Any = None) -> "Hierarchy":
        other = type(self).__new__(type(self))
        other._set(
            superpixels,
            self.parents if parents is None else parents,
            self.assignments if parents is None else soft,
            self.num_segments,
        )
        return other
