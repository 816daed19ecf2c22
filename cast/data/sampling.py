"""Which image is where in training: a function of the position, so that a run can be resumed anywhere."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from cast.train.batch import AUGMENT, PREPARE, SHUFFLE, numpy_generator, torch_seed

_REPEATED_MULTIPLE = 256  # images; DeiT's repeated augmentation cuts an epoch to a multiple of it


class Request(NamedTuple):
    """An image that is asked for: the key of its augmentation, and its number in the set."""

    epoch: int
    place: int  # in the order of the epoch
    index: int


class Position(NamedTuple):
    """A part of a batch: what a process computes at once."""

    epoch: int
    step: int  # within the epoch
    part: int  # of the process's share of the batch
    rank: int


def epoch_order(length: int, seed: int, epoch: int, repeats: int = 1) -> np.ndarray:
    """Return the order of images in an epoch.

    With repeated augmentation (Hoffer et al. 2020; DeiT, Touvron et al. 2021, Table 9), each image of the shuffled set
    stands ``repeats`` times in a row, and the epoch ends when it is as long as the set, cut to a multiple of 256
    images: an epoch sees a part of them, several times each. In a row, so that they fall into one batch, on different
    processes.

    Args:
        length: Images in the set.
        seed: Of the run.
        epoch: From 0.
        repeats: How often an image appears.

    Returns:
        int64, ``[length]`` or what repeated augmentation leaves of it.
    """
    order = numpy_generator(SHUFFLE, seed, epoch).permutation(length)
    return order if repeats == 1 else np.repeat(order, repeats)[: _epoch_length(length, repeats)]


def _epoch_length(length: int, repeats: int) -> int:
    if repeats == 1 or length < _REPEATED_MULTIPLE:
        return length
    return length // _REPEATED_MULTIPLE * _REPEATED_MULTIPLE


def steps_per_epoch(length: int, batch: int, repeats: int = 1) -> int:
    """Return the number of batches in an epoch; images that fill no batch are left to other epochs.

    Raises:
        ValueError: Not even one batch can be filled.
    """
    steps = _epoch_length(length, repeats) // batch
    if not steps:
        raise ValueError(f"expected images for at least one batch of {batch}, got a set of {length}")
    return steps


def prepare_generator(seed: int, step: int, steps_per_epoch: int, part: int, rank: int) -> torch.Generator:
    """Return the random numbers that `Task.prepare` gets, on the CPU: in a worker the same as in the training step.

    Args:
        seed: Of the run.
        step: Of the run, from 0.
        steps_per_epoch: See `steps_per_epoch`.
        part: Of the process's share of the batch, from 0.
        rank: Of the process.
    """
    return _torch_generator(PREPARE, seed, *divmod(step, steps_per_epoch), part, rank)


def augment_generator(seed: int, position: Position) -> torch.Generator:
    """Return the random numbers, on the CPU, of a part of a batch that is augmented as a whole."""
    return _torch_generator(AUGMENT, seed, *position)


def _torch_generator(*key: int) -> torch.Generator:
    return torch.Generator().manual_seed(torch_seed(*key))


class Requests:
    """The images that one process loads, part by part: an iterable of lists of `Request`.

    Batch ``b`` of an epoch is ``order[b * batch : (b + 1) * batch]``; of it, the process takes every ``world``-th from
    ``rank`` on, and cuts these into ``accumulate`` parts. So the batches do not depend on the number of processes.

    Args:
        length: Images in the set.
        batch: Images per step, of all processes and parts together.
        accumulate: Parts of a process's share of a batch.
        seed: Of the order.
        repeats: How often an image appears in an epoch.
        rank: Of this process.
        world: Processes.
        first_step: Step of the run to begin with.
        last_step: Step to end before, in whichever epoch it lies.

    Attributes:
        steps: Batches in an epoch.

    Raises:
        ValueError: The set is smaller than a batch, or the batch cannot be divided among processes and parts.
    """

    def __init__(
        self,
        length: int,
        batch: int,
        accumulate: int,
        seed: int,
        repeats: int,
        rank: int,
        world: int,
        first_step: int,
        last_step: int,
    ) -> None:
        if batch % (world * accumulate):
            raise ValueError(
                f"expected a batch that divides among {world} processes with {accumulate} parts each, got {batch}"
            )
        if not 0 <= rank < world:
            raise ValueError(f"expected a rank in [0, {world}), got {rank}")
        if not 0 <= first_step <= last_step:
            raise ValueError(f"expected 0 <= first_step <= last_step, got {first_step} and {last_step}")
        self.steps = steps_per_epoch(length, batch, repeats)
        self.part_size = batch // (world * accumulate)
        self._length, self._seed, self._repeats = length, seed, repeats
        self._batch, self._accumulate, self._rank, self._world = batch, accumulate, rank, world
        self._first_step, self._last_step = first_step, last_step

    def __len__(self) -> int:
        return (self._last_step - self._first_step) * self._accumulate

    def __iter__(self) -> Iterator[list[Request]]:
        step = self._first_step
        while step < self._last_step:
            epoch, start = divmod(step, self.steps)
            order = epoch_order(self._length, self._seed, epoch, self._repeats)
            for within in range(start, min(self.steps, start + self._last_step - step)):
                places = np.arange(within * self._batch + self._rank, (within + 1) * self._batch, self._world)
                for part in places.reshape(self._accumulate, self.part_size):
                    yield [Request(epoch, *x) for x in zip(part.tolist(), order[part].tolist(), strict=True)]
                step += 1

    def position(self, request: Request) -> Position:
        """Return the part of a batch that a request of any process belongs to."""
        step, place = divmod(request.place, self._batch)
        share, rank = divmod(place, self._world)
        return Position(request.epoch, step, share // self.part_size, rank)
