"""A small set of images that lies on the device as a whole, so that no batch waits for the disk."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cast.data.device_augment import DeviceTransform
from cast.data.image_sets import ImageSet
from cast.data.loading import Collate, LoadedImages, load_batches
from cast.data.sampling import Request, Requests, augment_generator
from cast.train.batch import Batch, send
from cast.train.config import TrainConfig

_CHUNK = 64  # images that a worker decodes at once


class DeviceImages:
    """A whole set on the device, as squares of uint8, from which batches are made without any worker.

    Each process keeps the whole set, as an epoch brings every image to any of them.

    Args:
        image_set: The images. Of each, the central square is kept, resized to ``cache_size`` (Pillow, bicubic).
        config: ``cache_size`` and what `training_batches` uses.
        device: Where they are kept.
        progress: Called with the images that are there, and those that there will be.

    Attributes:
        images: uint8 ``[N, 3, R, R]``.
        targets: int64 ``[N]``.

    Raises:
        ValueError: They do not fit into the device's memory.
        BrokenImage: An image cannot be read, and such are not skipped.
    """

    def __init__(
        self,
        image_set: ImageSet,
        config: TrainConfig,
        device: torch.device | str,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._config, total, size = config, len(image_set), config.cache_size or config.img_size
        self.images = _allocate(total, size, torch.device(device))
        self.targets = torch.empty(total, dtype=torch.int64, device=device)
        loaded = LoadedImages(
            image_set, _CentralSquare(size), config.seed, held_out=True, replace_broken=config.skip_broken
        )
        chunks = [[Request(0, i, i) for i in range(k, min(total, k + _CHUNK))] for k in range(0, total, _CHUNK)]
        done = 0
        for batch in load_batches(loaded, chunks, Collate(config.seed), config):
            place = slice(done, done := done + len(batch.targets))
            self.images[place].copy_(batch.images[:, 0], non_blocking=True)
            self.targets[place].copy_(batch.targets, non_blocking=True)
            if progress is not None:
                progress(done, total)

    def batches(
        self,
        transform: DeviceTransform,
        *,
        rank: int,
        world: int,
        first_step: int,
        last_step: int,
        repeats: int = 1,
    ) -> Iterator[Batch]:
        """Make what a process trains on; see `training_batches`.

        Args:
            transform: Makes uint8 views ``[B, V, 3, S, S]`` of images ``[B, 3, R, R]`` on the device, with random
                numbers on the CPU that depend on the position of the batch.
            rank: Of this process.
            world: Processes.
            first_step: Step of the run to begin with.
            last_step: Step to end before.
            repeats: How often an image appears in an epoch.

        Returns:
            Batches on the device.

        Raises:
            ValueError: See `Requests`.
        """
        c = self._config
        requests = Requests(
            len(self.targets), c.batch, c.accumulate, c.seed, repeats, rank, world, first_step, last_step
        )
        return (self._batch(part, requests, transform) for part in requests)

    def _batch(self, part: list[Request], requests: Requests, transform: DeviceTransform) -> Batch:
        index = send(torch.tensor([request.index for request in part]), self.images.device)
        generator = augment_generator(self._config.seed, requests.position(part[0]))
        return Batch(transform(self.images[index], generator), self.targets[index])


class _CentralSquare:
    def __init__(self, size: int) -> None:
        self._size = size

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> Tensor:
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        box = (left, top, left + side, top + side)
        square = image.resize((self._size, self._size), Image.Resampling.BICUBIC, box=box)
        return torch.from_numpy(np.array(square)).permute(2, 0, 1)[None]


def _allocate(count: int, size: int, device: torch.device) -> Tensor:
    need = count * 3 * size * size
    error = f"expected the images to fit on {device}: {count} of {size} x {size} pixels need {need / 2**30:.1f} GiB"
    advice = 'choose a smaller cache_size, or cache="none"'
    if device.type == "cuda" and need > (free := torch.cuda.mem_get_info(device)[0]):
        raise ValueError(f"{error}, {free / 2**30:.1f} are free; {advice}")
    try:
        return torch.empty(count, 3, size, size, dtype=torch.uint8, device=device)
    except RuntimeError as failure:  # of whatever kind a device has
        raise ValueError(f"{error}; {advice}") from failure
