"""The images and superpixels that all models of a run are given."""

from collections.abc import Callable
from concurrent.futures import Executor
from importlib.resources import as_file, files

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cast.models import Cast, SuperpixelConfig
from cast.models.config import IMAGENET_MEAN, IMAGENET_STD
from cast_kernels import seeds

Maker = Callable[[Tensor], Tensor]  # uint8 images [B, 3, H, W] on the CPU -> labels [B, H, W] on the CPU


def photos(batch: int, size: int) -> Tensor:
    """Return ``[B, 3, size, size]`` uint8 crops of the photo that the package ships, each at another place."""
    with as_file(files("cast") / "assets" / "demo.jpg") as path, Image.open(path) as photo:
        scale = 1.25 * size / min(photo.size)
        wide, high = (round(side * scale) for side in photo.size)
        pixels = torch.from_numpy(np.array(photo.convert("RGB").resize((wide, high)))).permute(2, 0, 1)
    crops = []
    for i in range(batch):
        y, x = (7 * i) % (high - size + 1), (11 * i) % (wide - size + 1)
        crop = pixels[:, y : y + size, x : x + size]
        crops.append(crop.flip(2) if i % 2 else crop)
    return torch.stack(crops) if crops else pixels.new_empty(0, 3, size, size)


def normalised(images: Tensor) -> Tensor:
    """Return uint8 images as normalised float32."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (images.float() / 255 - mean) / std


def seeds_worker(settings: SuperpixelConfig) -> tuple[Maker, str]:
    """Return what makes superpixels the published way on one CPU thread, and the name of what does the work.

    OpenCV where it is installed, else `cast_kernels.seeds` in OpenCV's order; the number of superpixels and the bins
    are those of ``settings``, the iterations those of the published recipe with as many bins.
    """
    iterations = settings.as_published().iterations or 20
    try:
        import cv2

        create = cv2.ximgproc.createSuperpixelSEEDS  # only the contrib packages have it
    except (ImportError, AttributeError):

        def ours(image: Tensor) -> Tensor:
            return seeds(image, settings.num_superpixels, order="sequential", bins=settings.bins, iterations=iterations)

        return ours, "cast_kernels.seeds"

    cv2.setNumThreads(1)  # the workers are the threads

    def opencv(image: Tensor) -> Tensor:
        labels = []
        for pixels in image.permute(0, 2, 3, 1).contiguous().numpy():
            segmenter = create(*pixels.shape[1::-1], 3, settings.num_superpixels, 1, 2, settings.bins)
            segmenter.iterate(cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB), iterations)
            labels.append(torch.from_numpy(segmenter.getLabels()))
        return torch.stack(labels)

    return opencv, f"OpenCV {cv2.__version__}"


def worker_maker(model: Cast, pool: Executor) -> tuple[Maker, str]:
    """Return what makes superpixels on threads of the CPU, an image each, as a data loader's workers do, and its name.

    Both of `seeds_worker` leave Python's lock while they work.
    """
    one, name = seeds_worker(model.config.superpixels)

    def make(image: Tensor) -> Tensor:
        return torch.cat(list(pool.map(one, image.split(1))))

    return make, name
