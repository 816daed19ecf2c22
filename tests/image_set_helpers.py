"""Tiny images in folders and tar archives, each of a colour that tells which it is."""

import io
import tarfile
from pathlib import Path

from PIL import Image


def png(number: int, size: tuple[int, int] = (10, 8)) -> bytes:
    """A lossless image whose pixels say `number`."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (number % 256, number // 256, 7)).save(buffer, "png")
    return buffer.getvalue()


def number_of(image: Image.Image) -> int:
    """The number that an image was made with."""
    low, high, seven = image.getpixel((0, 0))
    assert (image.mode, seven) == ("RGB", 7)
    return low + 256 * high


def write_files(root: Path, files: dict[str, bytes]) -> Path:
    """Write files, with the folders that they need."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    """Pack files into an archive, in their order."""
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def class_tree(root: Path, classes: int = 2, per_class: int = 3) -> Path:
    """Folders `class0`, ... with images numbered from 0, in the order of the set."""
    numbers = range(classes * per_class)
    return write_files(root, {f"class{i // per_class}/{i:03d}.png": png(i) for i in numbers})
