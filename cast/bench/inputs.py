"""The images and superpixels that all models of a run are given."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import as_file, files

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cast.models import Cast
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


def worker_maker(model: Cast, workers: int) -> tuple[Maker, str]:
    """Return what makes superpixels on CPU threads, one image each, as a data loader's workers do, and its name.

    OpenCV where it is installed (it leaves Python's lock while it works), else `cast_kernels.seeds` in OpenCV's order;
    the number of superpixels, bins and iterations are the model's.
    """
    settings = model.config.superpixels
    bins, iterations = settings.bins, _iterations(settings)
    try:
        import cv2

        cv2.ximgproc.createSuperpixelSEEDS  # noqa: B018 - only the contrib packages have it
    except (ImportError, AttributeError):

        def make(image: Tensor) -> Tensor:
            threads = torch.get_num_threads()
            torch.set_num_threads(workers)
            try:
                return seeds(image, settings.num_superpixels, order="sequential", bins=bins, iterations=iterations)
            finally:
                torch.set_num_threads(threads)

        return make, f"cast_kernels.seeds on {workers} threads"

    pool = ThreadPoolExecutor(workers)

    def one(image: np.ndarray) -> Tensor:
        high, wide = image.shape[:2]
        segmenter = cv2.ximgproc.createSuperpixelSEEDS(wide, high, 3, settings.num_superpixels, 1, 2, bins)
        segmenter.iterate(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), iterations)
        return torch.from_numpy(segmenter.getLabels())

    def make(image: Tensor) -> Tensor:
        return torch.stack(list(pool.map(one, image.permute(0, 2, 3, 1).contiguous().numpy())))

    return make, f"OpenCV {cv2.__version__} on {workers} threads"


def _iterations(settings: object) -> int:
    """Passes of the published recipe with these bins, where the settings are those of another order."""
    return getattr(settings, "iterations", None) or (20 if getattr(settings, "bins", 15) == 15 else 15)
