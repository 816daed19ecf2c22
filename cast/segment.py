"""One photo in, its hierarchy out."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cast.data import Geometry, crop_geometry, fit_geometry
from cast.hierarchy import Hierarchy
from cast.models import Cast, CastSeg


@dataclass(frozen=True)
class Settings:
    """How photos are segmented.

    Attributes:
        size: Short side of the network's input in pixels, in [8, 8192]; a multiple of 8 with ``crop``.
        crop: Whether the network sees the published central square instead of the whole photo.
        num_superpixels: Number of superpixels to ask for; None: the model's number, in proportion to the area.
    """

    size: int = 224
    crop: bool = False
    num_superpixels: int | None = None


DEFAULT_SETTINGS = Settings()


@dataclass(frozen=True)
class Segmentation:
    """What was found in one photo.

    Attributes:
        photo: The part of the photo that the network saw, uint8 ``[H, W, 3]`` at the photo's own resolution.
        geometry: How the photo became the network's input.
        hierarchy: On the network's pixels, of a single image, on the CPU.
        logits: Of the classes, float32 ``[num_classes]`` on the CPU; None for a model that does not classify images.
    """

    photo: np.ndarray
    geometry: Geometry
    hierarchy: Hierarchy
    logits: Tensor | None

    def full_hierarchy(self) -> Hierarchy:
        """The hierarchy on the pixels of ``photo``, by nearest neighbour."""
        return self.geometry.restore(self.hierarchy)

    def top_classes(self, count: int = 5) -> list[dict[str, Any]]:
        """The most likely classes: ``class_id``, ``logit`` and ``probability``, best first, lowest id on ties."""
        if self.logits is None:
            return []
        probabilities = self.logits.double().softmax(0)
        order = self.logits.argsort(descending=True, stable=True)[:count].tolist()
        return [{"class_id": k, "logit": self.logits[k].item(), "probability": probabilities[k].item()} for k in order]


@torch.inference_mode()
def segment_image(model: Cast | CastSeg, image: np.ndarray, settings: Settings = DEFAULT_SETTINGS) -> Segmentation:
    """Segment one photo.

    Args:
        model: A model in eval mode; the work is done on its device.
        image: uint8 ``[H, W, 3]``, RGB.
        settings: Input size, crop and number of superpixels.

    Returns:
        Hierarchy and class logits.

    Raises:
        ValueError: The photo is too small or too narrow for superpixels, or has fewer than the first level's segments.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected an RGB image uint8 [H, W, 3], got {image.dtype} {image.shape}")
    geometry = (crop_geometry if settings.crop else fit_geometry)(*image.shape[:2], settings.size)
    # Each family is evaluated with the filter that it was trained with.
    seen = geometry.apply(image, "bicubic" if model.config.init == "deit" else "bilinear")
    batch = torch.tensor(seen)[None].to(next(model.parameters()).device)
    output = model.forward_hierarchy(batch, num_superpixels=settings.num_superpixels)
    is_classifier = model.config.num_classes and output.logits.ndim == 2
    logits = output.logits[0].float().cpu() if is_classifier else None
    return Segmentation(geometry.cut(image), geometry, output.hierarchy.to("cpu"), logits)
