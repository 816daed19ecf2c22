"""Segmentations of photos with masks and their scores: what `bench.imagenette` compares, and the floors below it."""

import csv
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cast.data import crop_geometry, read_image
from cast.data.geometry import Geometry
from cast.evaluate import foreground_iou, kmeans_hierarchy
from cast_kernels import rgb_to_lab, seeds, seeds_count

MULTIPLE = 16  # sides of what networks see: patches of the ViT
# uint8 images [B, 3, h, w] -> label maps [B, L, h, w], and for each of the L levels the name that its row has
Segmenter = Callable[[Tensor], tuple[Tensor, list[str]]]


class Photo(NamedTuple):
    """A photo as networks see it, and the mask of that part of it at its own resolution."""

    kind: str  # of object
    image: np.ndarray  # uint8 [h, w, 3]
    mask: np.ndarray  # bool [H, W]


def read_photos(folder: Path, kinds: list[str], size: int, whole: bool, every: int) -> list[Photo]:
    """Read the validation photos whose masks show a whole object of one of some kinds.

    Args:
        folder: With ``labels.csv``, ``images/ID.jpg`` and ``masks/ID.png``, as ``objects`` has them.
        kinds: Super-classes.
        size: Short side of what networks see.
        whole: Whether they see whole photos, sides rounded to multiples of 16; else the central square of ``size`` of
            the photo whose short side is 8 / 7 of that, as classifiers are evaluated.
        every: Take every ``every``th photo of a kind.
    """
    photos = []
    for kind in kinds:
        with (folder / "labels.csv").open(newline="") as file:
            ids = [
                row["id"]
                for row in csv.DictReader(file)
                if (row["split"], row["super"], row["mask_kind"]) == ("val", kind, "foreground")
            ]
        if not ids:
            raise ValueError(f"no validation photos with masks of {kind} in {folder / 'labels.csv'}")
        for name in sorted(ids)[::every]:
            pixels, mask = read_image(folder / "images" / f"{name}.jpg"), read_image(folder / "masks" / f"{name}.png")
            if mask.shape != pixels.shape:
                raise ValueError(f"expected a mask of {name} of {pixels.shape[:2]} pixels, got {mask.shape[:2]}")
            geometry = whole_geometry(*mask.shape[:2], size) if whole else crop_geometry(*mask.shape[:2], size)
            inside = geometry.cut(mask[..., 0] > 0)
            if inside.any():  # a crop may miss the object
                photos.append(Photo(kind, geometry.apply(pixels), inside))
    return photos


def whole_geometry(height: int, width: int, size: int) -> Geometry:
    """The whole photo with a short side of ``size``, both sides rounded to multiples of 16."""
    scale = size / min(height, width) / MULTIPLE
    resized = (MULTIPLE * max(1, round(height * scale)), MULTIPLE * max(1, round(width * scale)))
    return Geometry((height, width), resized, (0, 0, *resized))


def batches(photos: list[Photo], batch: int) -> Iterator[list[Photo]]:
    """Group photos of equal size, at most ``batch`` at a time."""
    by_size = defaultdict(list)
    for photo in photos:
        by_size[photo.image.shape].append(photo)
    for same in by_size.values():
        yield from (same[start : start + batch] for start in range(0, len(same), batch))


@torch.no_grad()
def score(
    photos: list[Photo], segment: Segmenter, device: torch.device, check: Callable[[], None], batch: int = 16
) -> list[dict[str, Any]]:
    """Segment photos and score every level: a row per kind of object and level, with means over photos.

    ``present`` is how many segments there are, on the pixels of the mask; some may be empty.

    Args:
        photos: What `read_photos` returned.
        segment: What makes label maps of images.
        device: Where the images are put.
        check: Called after each batch; may raise to give up.
        batch: Images at once.
    """
    found = defaultdict(list)
    for group in batches(photos, batch):
        images = torch.from_numpy(np.stack([photo.image for photo in group])).permute(0, 3, 1, 2).contiguous()
        maps, names = segment(images.to(device))
        for photo, levels in zip(group, maps.cpu().numpy(), strict=True):
            for name, labels in zip(names, levels, strict=True):
                segments = nearest(labels, *photo.mask.shape)
                found[photo.kind, name].append((len(np.unique(segments)), *foreground_iou(segments, photo.mask)))
        check()
    return [
        {
            "masks": kind,
            "segments": name,
            "images": len(scores),
            **dict(zip(("present", "majority", "best_match"), map(float, np.mean(scores, axis=0)), strict=True)),
        }
        for (kind, name), scores in found.items()
    ]


def nearest(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a label map to the pixels of a mask: the label whose pixel's centre is nearest."""
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(labels.shape, (height, width), strict=True)
    )
    return labels[rows][:, columns]


# What makes label maps
def from_cast(model: Any) -> Segmenter:
    """The levels of a CAST, superpixels first."""

    def segment(images: Tensor) -> tuple[Tensor, list[str]]:
        maps = model.forward_hierarchy(images).hierarchy.label_maps()
        return maps, ["superpixels", *map(str, model.config.num_clusters)]

    return segment


def from_vit(model: Any, counts: tuple[int, ...], seed: int) -> Segmenter:
    """k-means on the final tokens of a ViT (Appendix E.5)."""

    def segment(images: Tensor) -> tuple[Tensor, list[str]]:
        size = images.shape[2:]
        rows, columns = (side // model.config.stride for side in size)
        tokens = model.forward_features(images)[:, 1:].mT.unflatten(2, (rows, columns))
        return kmeans_hierarchy(tokens, tuple(size), counts, seed), list(map(str, counts))

    return segment


def floors(count: int) -> dict[str, Segmenter]:
    """What needs no network: all foreground, a central box, few superpixels, and k-means on colours."""

    def everything(images: Tensor) -> tuple[Tensor, list[str]]:
        return images.new_zeros(len(images), 1, *images.shape[2:], dtype=torch.int64), ["1"]

    def central_box(images: Tensor) -> tuple[Tensor, list[str]]:
        """Half as high and half as wide as the image; what surrounds it is another segment."""
        box = everything(images)[0]
        (top, bottom), (left, right) = (((n - n // 2) // 2, (n - n // 2) // 2 + n // 2) for n in images.shape[2:])
        box[..., top:bottom, left:right] = 1
        return box, ["2"]

    def superpixels(images: Tensor) -> tuple[Tensor, list[str]]:
        """SEEDS cannot make any number: the smallest it can that is no less."""
        size = images.shape[2:]
        request = next(n for n in range(count, size.numel()) if seeds_count(*size, n) >= count)
        return seeds(images, request)[:, None], [f"{count}+"]

    def colours(images: Tensor) -> tuple[Tensor, list[str]]:
        lab = rgb_to_lab(images).float()
        return kmeans_hierarchy(lab, tuple(images.shape[2:]), (count,), spherical=False), [str(count)]

    return {"all": everything, "central box": central_box, "superpixels": superpixels, "colours": colours}
