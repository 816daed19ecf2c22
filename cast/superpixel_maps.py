"""Superpixels of any image: their label maps, what is known of each of them, and pictures."""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cast._files import replace_file
from cast._hierarchy_checks import check_labels, integer
from cast.data import read_image, to_rgb
from cast.panel import OUTLINE
from cast_kernels import SuperpixelSummary, labels_to_edges, seeds, seeds_count, superpixel_summary, unpool

METHODS = ("seeds", "slic")
PICTURES = ("outlined", "mosaic", "labels")
ImageLike = Tensor | np.ndarray | Image.Image | str | os.PathLike[str]


# 1. From images to superpixels
def superpixels(
    image: ImageLike | Sequence[ImageLike],
    num_superpixels: int = 196,
    *,
    method: str = "seeds",
    device: torch.device | str | None = None,
    **options: Any,
) -> "Superpixels | list[Superpixels]":
    """Segment images into superpixels.

    Args:
        image: A uint8 tensor or array, RGB: a batch [B, H, W, 3] or [B, 3, H, W], or one image [H, W, 3] or [3, H, W]
            (channels are last where both readings fit); or a PIL image, as its pixels lie; or the path of an image
            file, turned as its EXIF says; or a list or tuple of any of these, of any sizes.
        num_superpixels: Wanted number per image. The result's ``num_segments`` says what it became.
        method: "seeds", that is ``cast_kernels.seeds``; or "slic", scikit-image's, on the host: install
            ``cast-kernels[slic]``.
        device: Where images are moved first, and all that comes back lives. None: where they are; arrays, PIL images
            and files are on the CPU. ``cast-kernels doctor`` says what each op runs as on a device.
        **options: Of ``cast_kernels.seeds`` (order, bins, ..., but no ``stride``: all pixels have labels here) or
            ``skimage.segmentation.slic`` (compactness, ...).

    Returns:
        ``Superpixels`` of the batch, or of a batch of one; for a list or tuple, a list with one of them for each item.

    Raises:
        TypeError: The image is nothing of the above, its values are not 8 bits, or an option is unknown.
        ValueError: The shape, the method or an option's value is not supported, a file cannot be read; or ``method``
            is "slic" and the images are not on the CPU.
        ImportError: ``method`` is "slic" and scikit-image is not installed.

    Deterministic. Images of one size in a list are segmented together.
    """
    if method not in METHODS:
        raise ValueError(f"expected method to be one of {METHODS}, got {method!r}")
    one = not isinstance(image, list | tuple)
    batches = [_to_batch(item, "image" if one else f"image[{i}]") for i, item in enumerate([image] if one else image)]
    if device is not None:
        batches = [batch.to(device) for batch in batches]
    together: dict[Any, list[int]] = {}
    for i, batch in enumerate(batches):  # SLIC finds another number of segments in each image
        together.setdefault((batch.shape[1:], batch.device) if method == "seeds" else i, []).append(i)
    result: dict[int, Superpixels] = {}
    for members in together.values():
        group = [batches[i] for i in members]
        labels, count = _METHODS[method](torch.cat(group), num_superpixels, options)
        for i, part in zip(members, labels.split([len(batch) for batch in group]), strict=True):
            result[i] = Superpixels(batches[i], part, count)
    return result[0] if one else [result[i] for i in range(len(batches))]


def _to_batch(image: ImageLike, name: str) -> Tensor:
    """Whatever holds an image, or a batch of them, as uint8 [B, H, W, 3]."""
    if isinstance(image, str | os.PathLike):
        image = read_image(image)
    elif isinstance(image, Image.Image):
        image = to_rgb(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8:
            raise TypeError(f"expected {name} in uint8, got {image.dtype} {image.shape}")
        image = torch.from_numpy(np.require(image, requirements=["C", "W"]))  # what torch can share
    if not isinstance(image, Tensor):
        raise TypeError(
            f"expected {name} to be a tensor, an array, a PIL image or a path, got {type(image).__name__} "
            "(several images: a list or tuple of these)"
        )
    if image.dtype != torch.uint8:
        raise TypeError(f"expected {name} in uint8, got {str(image.dtype).removeprefix('torch.')} {list(image.shape)}")
    if image.dim() not in (3, 4) or 3 not in (image.shape[-1], image.shape[-3]):
        raise ValueError(f"expected {name} [B, H, W, 3], [B, 3, H, W], [H, W, 3] or [3, H, W], got {list(image.shape)}")
    pixels = image if image.shape[-1] == 3 else image.movedim(-3, -1)
    return pixels if pixels.dim() == 4 else pixels[None]


def _seeds(image: Tensor, num_superpixels: int, options: dict[str, Any]) -> tuple[Tensor, int]:
    if "stride" in options:
        raise TypeError(
            "stride is no option here, where all pixels have labels; cast_kernels.seeds(..., stride=) has it"
        )
    labels = seeds(image, num_superpixels, **options)
    levels = options.get("num_levels")
    return labels, seeds_count(*image.shape[1:3], num_superpixels, 1 if levels is None else levels)


def _slic(image: Tensor, num_superpixels: int, options: dict[str, Any]) -> tuple[Tensor, int]:
    """Label maps int32 with the labels 0 .. N - 1 of each image, and the largest N; -1 outside SLIC's ``mask``."""
    try:
        from skimage.segmentation import slic
    except ImportError as error:
        raise ImportError('method="slic" needs scikit-image: pip install "cast-kernels[slic]"') from error
    if image.device.type != "cpu":
        raise ValueError(f'method="slic" runs on the CPU and the images are on {image.device}: pass device="cpu"')
    if integer("num_superpixels", num_superpixels) < 1:
        raise ValueError(f"expected num_superpixels >= 1, got {num_superpixels}")
    labels, count = torch.empty(image.shape[:3], dtype=torch.int32), 1  # a batch without images has a label, too
    for target, pixels in zip(labels, image.numpy(), strict=True):
        found = slic(pixels, n_segments=num_superpixels, start_label=0, channel_axis=-1, **options)
        names, dense = np.unique(found, return_inverse=True)  # merging small pieces may leave gaps
        dense = dense.reshape(found.shape) - int((names < 0).sum())
        target.copy_(torch.from_numpy(dense))
        count = max(count, int((names >= 0).sum()))
    return labels, count


_METHODS = {"seeds": _seeds, "slic": _slic}


# 2. What they are
class Superpixels:
    """The superpixels of a batch of images of one size. All tensors live on the images' device.

    Areas, boxes, colours and the boundary are computed together when the first of them is asked for. Any label map
    will do: ``Superpixels(image, hierarchy.labels(2), 32).outlined()`` draws a level of a hierarchy.

    Attributes:
        image: The images, uint8 [B, H, W, 3]: the memory that was given where its values could stay where they are.
        labels: Label maps, int32 [B, H, W]. -1 where a pixel belongs to no superpixel.
        num_segments: Number of labels S. SLIC may find fewer than that in an image of a batch; their area is 0.
    """

    def __init__(self, image: Tensor, labels: Tensor, num_segments: int):
        """Put images and label maps together.

        Args:
            image: uint8 [B, H, W, 3] or [B, 3, H, W], on the device of ``labels``.
            labels: Integer label maps [B, H, W].
            num_segments: Number of labels S.

        Raises:
            TypeError: The image is not a uint8 tensor, or the labels are not integers.
            ValueError: Shapes or devices do not fit.
        """
        check_labels("labels", labels, 3)
        if not isinstance(image, Tensor) or image.dim() != 4:
            raise TypeError(f"expected image to be a uint8 tensor [B, H, W, 3] or [B, 3, H, W], got {_shown(image)}")
        pixels = _to_batch(image, "image")
        if pixels.shape[:3] != labels.shape or pixels.device != labels.device:
            raise ValueError(
                f"expected labels [{', '.join(map(str, pixels.shape[:3]))}] on {pixels.device}, as the image, "
                f"got {list(labels.shape)} on {labels.device}"
            )
        self.image = pixels
        self.num_segments = integer("num_segments", num_segments)
        if self.num_segments < 1:
            raise ValueError(f"expected num_segments >= 1, got {num_segments}")
        inside = (labels >= 0) & (labels < self.num_segments)
        self.labels = torch.where(inside, labels.to(torch.int32), -1)

    @cached_property
    def _summary(self) -> SuperpixelSummary:
        return superpixel_summary(self.labels, self.num_segments, self.image)

    @property
    def areas(self) -> Tensor:
        """Pixels of each superpixel: int64 [B, S]."""
        return self._summary.area

    @property
    def boxes(self) -> Tensor:
        """Bounding boxes (y0, x0, y1, x1) in pixels, half-open: int64 [B, S, 4], zeros for empty superpixels."""
        return self._summary.box

    @property
    def colors(self) -> Tensor:
        """Mean RGB in [0, 255]: float32 [B, S, 3], zeros for empty superpixels."""
        return self._summary.color

    @property
    def boundaries(self) -> Tensor:
        """Pixels whose right or lower neighbour belongs to another superpixel: bool [B, H, W]."""
        return self._summary.boundary

    def edges(self, max_edges: int | None = None) -> tuple[Tensor, Tensor]:
        """Pairs of superpixels that touch, padded with -1, and their number: ``cast_kernels.labels_to_edges``."""
        return labels_to_edges(self.labels, self.num_segments, max_edges=max_edges)

    def mosaic(self) -> Tensor:
        """The images, each superpixel in its mean colour: uint8 [B, H, W, 3]. Other pixels stay as they are."""
        table = torch.where(self.labels < 0, self.num_segments, self.labels).flatten(1).long()
        flat = unpool(self.colors, table).unflatten(1, self.labels.shape[1:])
        return torch.where(self.labels[..., None] < 0, self.image, flat.round().to(torch.uint8))

    def outlined(self, thickness: int | None = None) -> Tensor:
        """The images with the borders between superpixels drawn: uint8 [B, H, W, 3].

        Args:
            thickness: Of the lines, in pixels; by default one for each 400 of the short side.
        """
        if thickness is None:
            thickness = max(1, round(min(self.labels.shape[1:]) / 400))
        if integer("thickness", thickness) < 1:
            raise ValueError(f"expected thickness >= 1, got {thickness}")
        picture = self.image.float()
        for color, opacity, extent in OUTLINE:
            line = _widened(self.boundaries, extent * thickness)[..., None]
            paint = torch.tensor(color, dtype=torch.float32, device=picture.device)
            picture = torch.where(line, torch.lerp(picture, paint, opacity), picture)
        return picture.round().to(torch.uint8)

    def save(self, path: str | os.PathLike[str], picture: str = "outlined") -> None:
        """Write a picture of one image as PNG, whole or not at all.

        Args:
            path: The file to create or replace; its name ends in ``.png``.
            picture: "outlined", "mosaic", or "labels": the label map itself in 16 bits, 65535 for no superpixel.

        Raises:
            ValueError: There is more than one image (save ``superpixels[i]``), the name or the picture is another, or
                the labels do not fit 16 bits.
        """
        if len(self) != 1:
            raise ValueError(f"expected one image, got a batch of {len(self)}: save one with superpixels[i].save(path)")
        if picture not in PICTURES:
            raise ValueError(f"expected picture to be one of {PICTURES}, got {picture!r}")
        if os.path.splitext(path)[1].lower() != ".png":
            raise ValueError(f"expected a name that ends in .png, got {os.fspath(path)!r}")
        if picture == "labels":
            if self.num_segments > 65535:
                raise ValueError(f"{self.num_segments} labels do not fit the 16 bits of a PNG")
            array = self.labels[0].cpu().numpy().astype(np.uint16)
        else:
            array = getattr(self, picture)()[0].cpu().numpy()
        with replace_file(path) as file:
            Image.fromarray(array).save(file, "PNG")

    def to(self, device: torch.device | str) -> "Superpixels":
        """The same superpixels on ``device``."""
        return Superpixels(self.image.to(device), self.labels.to(device), self.num_segments)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> "Superpixels":
        """The superpixels of one image, as a batch of one; slices are not supported (TypeError)."""
        index = integer("the index of one image", index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of a batch of {len(self)}")
        one = slice(index % len(self), index % len(self) + 1)
        return Superpixels(self.image[one], self.labels[one], self.num_segments)

    def __iter__(self) -> Iterator["Superpixels"]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        B, H, W = self.labels.shape
        return (
            f"Superpixels(batch_size={B}, size={H}x{W}, num_segments={self.num_segments}, "
            f"device={str(self.labels.device)!r})"
        )


def _shown(x: object) -> str:
    return str(list(x.shape)) if isinstance(x, Tensor) else type(x).__name__


def _widened(edge: Tensor, width: int) -> Tensor:
    """A one-sided boundary [B, H, W] as lines of ``width`` pixels, laid evenly over both sides."""
    padded = F.pad(edge[:, None].float(), (width // 2, (width - 1) // 2) * 2)
    return F.max_pool2d(padded, width, 1)[:, 0] > 0
