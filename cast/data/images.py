"""Finding image files and decoding whatever Pillow reads to RGB bytes."""

import glob
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from cast.result_folders import read_about

# Pillow claims these extensions but cannot decode them by itself (it needs a stub handler, Windows or Ghostscript).
_UNREADABLE = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_WHITE = 255


def find_images(pattern: str | os.PathLike[str]) -> list[Path]:
    """Image files meant by one command-line argument, in natural order (``a2.jpg`` before ``a10.jpg``).

    Args:
        pattern: A file (taken as it is, whatever its name), a folder (the images directly in it), or a glob
            (``**`` crosses folders). In folders and globs, hidden files, files without an image extension and the
            pictures in result folders of ``cast segment`` are left out.

    Returns:
        At least one path, none of them twice.

    Raises:
        ValueError: The name is empty, there is no such path, no image in the folder, or no image matches the glob.
    """
    if not os.fspath(pattern):
        raise ValueError("expected a file, a folder or a glob, got an empty name")
    path = Path(pattern)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = _images(path.iterdir())
        if not found:
            raise ValueError(f"no images in the folder {path}")
        return found
    if glob.has_magic(os.fspath(pattern)):
        found = _images(Path(name) for name in glob.glob(os.fspath(pattern), recursive=True))
        if not found:
            raise ValueError(f"no image matches {os.fspath(pattern)}")
        return found
    if path.exists():
        raise ValueError(f"{path} is neither a file nor a folder")
    raise ValueError(f"no such file or folder: {path}")


def _images(paths: Iterable[Path]) -> list[Path]:
    extensions = image_extensions()
    kept = {p for p in paths if p.suffix.lower() in extensions and not p.name.startswith(".") and p.is_file()}
    results = {folder for folder in {p.parent for p in kept} if read_about(folder) is not None}
    return sorted((p for p in kept if p.parent not in results), key=_natural)


def _natural(path: Path) -> tuple:
    """Sort key that orders runs of digits by value and, in the end, never calls two different paths equal."""
    pieces = re.split(r"(\d+)", os.fspath(path).casefold())
    return ([int(piece) if piece.isdecimal() else piece for piece in pieces], os.fspath(path))


def image_extensions() -> frozenset[str]:
    """Lower-case extensions, dot included, of the formats that the installed Pillow decodes."""
    registered = Image.registered_extensions()  # loads Pillow's plug-ins
    return frozenset(ext for ext, name in registered.items() if name in Image.OPEN and name not in _UNREADABLE)


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Decode the first frame of an image file to RGB.

    The EXIF rotation is applied. Grey and palette images are expanded, transparency is laid on white, 16-bit grey is
    scaled by 255 / 65535, float images are read as [0, 1] when no value exceeds 1 and as [0, 255] otherwise, CMYK is
    converted by Pillow's formula. Colour profiles are ignored, as everywhere in training code.

    Args:
        path: The file. Its content decides the format, not its name.

    Returns:
        uint8 ``[H, W, 3]``.

    Raises:
        ValueError: The file is missing or unreadable, is no image, is damaged or cut short, has more pixels than
            Pillow considers safe (``2 * PIL.Image.MAX_IMAGE_PIXELS``), or has values that no white point explains.
    """
    return decode_image(Path(path), path)


def decode_image(source: Path | IO[bytes], name: object) -> np.ndarray:
    """Decode an image from a path or an open file, by the rules of `read_image`; its errors name ``name``."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of odd metadata, and of half the pixels that it refuses; 100 megapixel cameras are legitimate
            warnings.simplefilter("ignore")
            with Image.open(source) as image:
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
                return to_rgb(image)
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{name} is not an image that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} has too many pixels to be decoded safely: {error}") from error
    except OSError as error:
        raise ValueError(f"cannot read {name}: {error.strerror or error}") from error
    except Exception as error:  # damaged files raise nearly anything: SyntaxError, struct.error, EOFError, IndexError
        raise ValueError(f"cannot decode {name}: {error or type(error).__name__}") from error


def to_rgb(image: Image.Image) -> np.ndarray:
    """The pixels of a PIL image of any mode as RGB uint8 ``[H, W, 3]``, by the rules of ``read_image``.

    Raises:
        ValueError: The image has values that no white point explains.
    """
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = _eight_bits(np.asarray(image))
        key = image.info.get("transparency")
        if isinstance(key, int):  # a 16-bit grey PNG may name one value that stands for "nothing here"
            grey = np.where(np.asarray(image) == key, _WHITE, grey).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "F":
        values = np.asarray(image)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= _WHITE):
            raise ValueError("float images must have values in [0, 1] or [0, 255]")
        grey = np.rint(values * _WHITE if values.max() <= 1 else values).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        if image.mode == "La":
            image = image.convert("LA")
        colour = image.convert("RGBA")
        white = Image.new("RGBA", colour.size, (_WHITE, _WHITE, _WHITE, _WHITE))
        image = Image.alpha_composite(white, colour)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """16-bit grey to 8 bits, rounded. Pillow's own conversion clips everything above 255 to white."""
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"integer images must have values in [0, 65535], got [{values.min()}, {values.max()}]")
    return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
