"""What workers are sent in tests; a module of its own, so that spawned ones can import it."""

import os
import signal

import numpy as np
import torch

from cast.train.batch import Batch


def two_views(image, generator):
    """An image's pixels and random numbers, as two views of 8 x 8."""
    pixels = torch.from_numpy(np.array(image.crop((0, 0, 8, 8)))).permute(2, 0, 1)
    noise = torch.from_numpy(generator.integers(0, 256, (3, 8, 8), dtype=np.uint8))
    return torch.stack([pixels, noise])


def only_large(image, generator):
    """A transform that some images are too small for."""
    if image.width < 9:
        raise ValueError("it is too small")
    return two_views(image, generator)


def floats(image, generator):
    """A transform that makes what no batch has."""
    return two_views(image, generator).float()


def worker_state(image, generator):
    """Where a transform runs."""
    ignores = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    values = (os.getpid() % 256, os.getpid() // 256 % 256, torch.get_num_threads(), ignores, 0, 0)
    return torch.tensor(values, dtype=torch.uint8).view(2, 3, 1, 1)


def numbered(batch, generator):
    """A preparation whose random numbers can be seen."""
    labels = torch.randint(0, 1000, (*batch.images.shape[:2], 2, 2), generator=generator, dtype=torch.int32)
    return Batch(batch.images, batch.targets, labels)


def device_views(images, generator):
    """A device's transform whose random numbers can be seen."""
    noise = torch.randint(0, 256, images.shape, generator=generator, dtype=torch.uint8).to(images.device)
    return torch.stack([images, noise], 1)
