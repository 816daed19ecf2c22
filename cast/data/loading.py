"""From a set of images to batches: decoded and augmented by worker processes."""

import logging
import os
import signal
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cast.data.augment import Transform
from cast.data.image_sets import BrokenImage, ImageSet
from cast.data.sampling import Request, Requests, prepare_generator
from cast.train.batch import AUGMENT, HELD_OUT, Batch, numpy_generator
from cast.train.config import TrainConfig

Prepare = Callable[[Batch, torch.Generator], Batch]

_MOST_BROKEN = 1000  # images in a row that are skipped; where there are more, the disk is gone
_MOST_WORKERS = 8
_MOST_IN_WHOLE = 64  # images of an evaluation batch that processes do not divide

_log = logging.getLogger("cast")


class LoadedImages(Dataset):
    """Images by `Request`: decoded, and augmented by the random numbers of their place.

    An image that cannot be read is returned, as `BrokenImage`, and not raised: exceptions leave a worker as the text
    of a traceback. Who takes the batch raises it.

    Args:
        image_set: Where they come from.
        transform: Makes views ``[V, 3, S, S]`` of one.
        seed: Of the run.
        held_out: Whether an image's random numbers depend on its number alone, the same in each epoch.
        replace_broken: Whether the next image that can be read takes the place of one that cannot, with a warning.
    """

    def __init__(
        self, image_set: ImageSet, transform: Transform, seed: int, *, held_out: bool, replace_broken: bool
    ) -> None:
        self._images, self._transform, self._seed = image_set, transform, seed
        self._held_out, self._replace_broken = held_out, replace_broken
        self._told: set[int] = set()  # broken images of which this process has told

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, request: Request) -> tuple[Request, Tensor, int] | BrokenImage:
        first = None
        for index in ((request.index + k) % len(self) for k in range(min(len(self), _MOST_BROKEN))):
            try:
                return request, self._views(request, index), int(self._images.targets[index])
            except BrokenImage as error:
                if not self._replace_broken:
                    return error
                first = first or error
                if index not in self._told:
                    self._told.add(index)
                    _log.warning("%s; the next image takes its place", error)
        return BrokenImage(f"no image can be read from this one on: {first}")

    def _views(self, request: Request, index: int) -> Tensor:
        image = self._images.read(index)
        key = (HELD_OUT, self._seed, request.index) if self._held_out else (AUGMENT, self._seed, *request[:2])
        try:
            return self._transform(image, numpy_generator(*key))
        except ValueError as error:  # such as one that is too narrow
            raise BrokenImage(f"cannot use {self._images.name(index)}: {error}") from error


class Collate:
    """Makes a batch of what `LoadedImages` returns, in the worker; None where every image was left out.

    Args:
        seed: Of the run.
        drop_broken: Whether images that cannot be read are left out, with a warning, instead of being returned.
        requests: Of what run, for ``prepare``.
        prepare: What is done with each batch.
    """

    def __init__(
        self, seed: int, *, drop_broken: bool = False, requests: Requests | None = None, prepare: Prepare | None = None
    ) -> None:
        self._seed, self._drop_broken, self._requests, self._prepare = seed, drop_broken, requests, prepare

    def __call__(self, items: list[tuple[Request, Tensor, int] | BrokenImage]) -> Batch | BrokenImage | None:
        """Return the batch of some items of `LoadedImages`, or the first image among them that cannot be read."""
        broken = [item for item in items if isinstance(item, BrokenImage)]
        if broken and not self._drop_broken:
            return broken[0]
        for error in broken:
            _log.warning("%s; it is left out", error)
        if len(broken) == len(items):
            return None
        requests, views, targets = zip(*(item for item in items if not isinstance(item, BrokenImage)), strict=True)
        images = torch.stack(views)
        if images.dtype != torch.uint8 or images.ndim != 5 or images.shape[2] != 3:
            shape = tuple(images.shape[1:])
            raise ValueError(f"expected a transform to make uint8 views [V, 3, S, S], got {images.dtype} {shape}")
        batch = Batch(images, torch.tensor(targets))
        if self._prepare is None:
            return batch
        epoch, step, part, rank = self._requests.position(requests[0])
        steps = self._requests.steps
        return self._prepare(batch, prepare_generator(self._seed, epoch * steps + step, steps, part, rank))


def training_batches(
    image_set: ImageSet,
    transform: Transform,
    config: TrainConfig,
    *,
    rank: int,
    world: int,
    first_step: int,
    last_step: int,
    prepare: Prepare | None = None,
    repeats: int = 1,
) -> Iterator[Batch]:
    """Load what a process trains on, a batch per part that it computes at once, from one step of the run to another.

    What comes does not depend on the number of workers, nor on the step that the run was resumed at; the workers last
    until the end, over all epochs.

    Args:
        image_set: The images.
        transform: Makes views of one. It is sent to the workers, as are the set and ``prepare``.
        config: ``batch``, ``accumulate``, ``seed``, ``workers``, ``skip_broken`` and ``device`` are used.
        rank: Of this process.
        world: Processes.
        first_step: Step of the run to begin with.
        last_step: Step to end before.
        prepare: What the workers do with each batch, with the numbers of `prepare_generator`.
        repeats: How often an image appears in an epoch.

    Returns:
        Batches with ``batch / (world * accumulate)`` images ``[B, V, 3, S, S]`` uint8, in pinned memory for CUDA. It
        raises `BrokenImage` in place of a batch with an image that cannot be read, unless such are skipped.

    Raises:
        ValueError: See `Requests`.
    """
    requests = Requests(
        len(image_set), config.batch, config.accumulate, config.seed, repeats, rank, world, first_step, last_step
    )
    images = LoadedImages(image_set, transform, config.seed, held_out=False, replace_broken=config.skip_broken)
    return load_batches(images, requests, Collate(config.seed, requests=requests, prepare=prepare), config)


def evaluation_batches(
    image_set: ImageSet,
    transform: Transform,
    config: TrainConfig,
    *,
    rank: int,
    world: int,
    whole: bool = False,
    replace_broken: bool = False,
) -> Iterator[Batch]:
    """Load held-out images: each once, over all processes, in order, augmented the same whenever this is called.

    Batches are as large as in training, but the last one. As there, consecutive images go to different processes, so
    one process may get a batch less than another. With ``skip_broken``, images that cannot be read are left out:
    others in their places would count twice.

    For figures that depend on what is in a batch with what, such as contrastive losses, there are ``whole`` batches:
    the same ones for any number of processes, which get every ``world``-th of them. They are of ``batch`` images, at
    most 64, of a set shuffled once for all by ``seed``; in its own order a batch would be of one class.

    Args:
        image_set: The images.
        transform: Makes views of one.
        config: As for `training_batches`.
        rank: Of this process.
        world: Processes.
        whole: Whether batches do not depend on the number of processes.
        replace_broken: Whether ``skip_broken`` puts the next image that can be read in the place of one that cannot,
            as in training: there are as many as in the set then.

    Returns:
        Batches; `BrokenImage` is raised in place of one with an image that cannot be read, unless such are skipped.
    """
    count = len(image_set)
    if whole:
        size = min(config.batch, _MOST_IN_WHOLE)
        # `count` in the key: a key that ends in 0 or not is the same to numpy, and image 0 has one that does
        order = numpy_generator(HELD_OUT, config.seed, count).permutation(count).tolist()
        lists = [order[k : k + size] for k in range(0, count, size)][rank::world]
    else:
        size = max(1, config.batch // (world * config.accumulate))
        mine = range(rank, count, world)
        lists = [mine[k : k + size] for k in range(0, len(mine), size)]
    requests = [[Request(0, i, i) for i in indices] for indices in lists]
    skip = config.skip_broken
    images = LoadedImages(image_set, transform, config.seed, held_out=True, replace_broken=skip and replace_broken)
    return load_batches(images, requests, Collate(config.seed, drop_broken=skip and not replace_broken), config)


def count_workers(workers: int) -> int:
    """Return how many processes a setting of ``workers`` means: -1 = this process's share of the cores, 1 to 8."""
    if workers >= 0:
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MOST_WORKERS, max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))  # torchrun sets it


def load_batches(
    images: LoadedImages, requests: Iterable[list[Request]], collate: Collate, config: TrainConfig
) -> Iterator[Batch]:
    """Load lists of images, each as a batch, in order; ``config`` says by how many workers and for which device."""
    for_cuda = config.device == "auto" or config.device.startswith("cuda")
    loader = DataLoader(
        images,
        batch_sampler=requests,
        num_workers=count_workers(config.workers),
        collate_fn=collate,
        pin_memory=for_cuda and torch.cuda.is_available(),
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # it would take a number from the global one
    )
    return _pass_on(loader)


def _pass_on(loader: DataLoader) -> Iterator[Batch]:
    iterator = iter(loader)
    try:
        for batch in iterator:
            if isinstance(batch, BrokenImage):
                raise batch
            if batch is not None:
                yield batch
    finally:
        # An error of a worker leaves the iterator in a cycle of references. Workers forked before it is collected
        # would collect their copy of it, try to end the workers of that, and be late to end themselves.
        if (end_workers := getattr(iterator, "_shutdown_workers", None)) is not None:
            end_workers()


def _start_worker(number: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the main one ends the others
