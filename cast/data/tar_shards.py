"""Tar archives of images (shards): which there are, what lies where in them, and reading any part with one call."""

import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from cast.data.images import image_extensions
from cast.data.packed_names import PackedNames

_BLOCK = 512  # of a tar archive
_MAX_OPEN = 128  # archives that a process keeps open; the limit of the system is often 1024 files in all
_LINKS, _FOLDER, _LONG_NAME, _RECORDS = (b"1", b"2"), b"5", b"L", b"x"  # kinds of members
_WITHOUT_CONTENT = (*_LINKS, b"3", b"4", _FOLDER, b"6")  # whatever size they tell
_ABOUT_OTHERS = (_LONG_NAME, b"K", _RECORDS, b"g")  # what they say is about the next member, or all that follow
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")  # {000..146}
_COMPRESSED = {  # first bytes -> how to undo it
    b"\x1f\x8b": "gunzip -k",
    b"BZh": "bunzip2 -k",
    b"\xfd7zXZ\0": "unxz -k",
    b"\x28\xb5\x2f\xfd": "unzstd",
}


class ShardIndex(NamedTuple):
    """The images of some shards, in the order in which they lie there.

    Attributes:
        paths: The shards.
        names: Of the images, within their shards; without a leading ``./``.
        shards: int32 ``[N]``, which shard an image lies in.
        offsets: int64 ``[N]``, where it begins there.
        sizes: int64 ``[N]``, its bytes.
        classes: int64 ``[N]`` from ``.cls`` members; None where there are none.
    """

    paths: tuple[str, ...]
    names: PackedNames
    shards: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    classes: np.ndarray | None

    def select(self, kept: np.ndarray) -> "ShardIndex":
        """Return the index of some images: int64 ``[M]``, their numbers."""
        classes = None if self.classes is None else self.classes[kept]
        names = PackedNames(self.names[i] for i in kept)
        return ShardIndex(self.paths, names, self.shards[kept], self.offsets[kept], self.sizes[kept], classes)


def find_shards(pattern: str) -> list[str]:
    """Return the archives that a pattern names, in order.

    Args:
        pattern: A file, ranges in braces (``train-{000..146}.tar``, zeros kept), a glob, or both of them.

    Raises:
        ValueError: A range runs backwards, an archive of a range is missing, or nothing matches the glob.
    """
    if os.path.isfile(pattern):
        return [pattern]
    found: list[str] = []
    for name in _expand(pattern):
        matches = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
        if not matches:
            raise ValueError(f"no file matches {name}")
        for match in matches:
            if not os.path.isfile(match):
                raise ValueError(f"no such file: {match}" + (f" (of {pattern})" if match != pattern else ""))
        found += matches
    return found


def _expand(pattern: str) -> Iterator[str]:
    *pieces, rest = _RANGE.split(pattern)  # text, first, last, text, first, last, ..., text
    choices = []
    for text, first, last in zip(pieces[::3], pieces[1::3], pieces[2::3], strict=True):
        if int(first) > int(last):
            raise ValueError(f"expected a range that rises, got {{{first}..{last}}} in {pattern}")
        choices.append([f"{text}{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)])
    return ("".join(parts) + rest for parts in itertools.product(*choices))


def index_shards(paths: Sequence[str]) -> ShardIndex:
    """Find the images in archives by walking from header to header; their contents are passed over.

    As in WebDataset, the members of one sample share a key, the name up to its first dot: ``key.jpg``, or any format
    that Pillow reads, is the image and ``key.cls`` its class, a whole number as text. Where there is ``key.jpg``, other
    images of the sample, such as ``key.mask.png``, are passed over. So are hidden members. The index is kept in memory
    alone and made anew by every run: an archive that was replaced in between is never read by an old one.

    Args:
        paths: Archives, not compressed.

    Raises:
        ValueError: An archive is compressed, cut short, damaged or none; holds links instead of images; has a
            ``.cls`` that is no class, or only for some of its images.
    """
    members = [_index_shard(path) for path in paths]
    images = list(itertools.chain.from_iterable(members))
    unlabelled = [image for image in images if image.label is None]
    if unlabelled and len(unlabelled) < len(images):
        raise ValueError(f"expected a .cls for each image or for none, but there is none for {unlabelled[0].name}")
    return ShardIndex(
        paths=tuple(paths),
        names=PackedNames(image.name for image in images),
        shards=np.repeat(np.arange(len(paths), dtype=np.int32), [len(found) for found in members]),
        offsets=np.array([image.offset for image in images], np.int64),
        sizes=np.array([image.size for image in images], np.int64),
        classes=None if unlabelled or not images else np.array([image.label for image in images], np.int64),
    )


class _Member(NamedTuple):
    name: str
    key: str  # the name up to its first dot
    plain: bool  # whether an extension is all that follows
    offset: int
    size: int
    label: int | None = None


def _index_shard(path: str) -> list[_Member]:
    """The images of an archive."""
    found: list[_Member] = []
    labels: dict[str, int] = {}
    extensions = image_extensions()
    try:
        # Headers lie far apart: with a large buffer, most of the archive would be read.
        with open(path, "rb", buffering=8 * _BLOCK) as file:
            for name, kind, offset, size in _walk(path, file):
                if kind == _FOLDER or name.startswith(".") or "/." in name:
                    continue
                key, extension = _split(name)
                if extension == ".cls":
                    file.seek(offset)
                    _set_label(labels, key, file.read(size), f"{name} in {path}")
                elif "." + extension.rpartition(".")[2] in extensions:
                    if kind in _LINKS:
                        raise ValueError(
                            f"{path} holds a link, {name}; pack it by tar --dereference --hard-dereference"
                        )
                    found.append(_Member(name, key, extension in extensions, offset, size))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    plain = {image.key for image in found if image.plain}
    return [image._replace(label=labels.get(image.key)) for image in found if image.plain or image.key not in plain]


def _walk(path: str, file: BinaryIO) -> Iterator[tuple[str, bytes, int, int]]:
    """Name, kind, offset and size of each member of an archive (POSIX.1-2001, and GNU's long names and sizes).

    Python's tarfile takes three times as long, which are minutes for a large set, and takes whatever it cannot read for
    the end.
    """
    _refuse_compressed(path, file.read(6))
    end = os.fstat(file.fileno()).st_size
    start, long_name, records = 0, b"", {}
    while True:
        file.seek(start)
        header = file.read(_BLOCK)
        if header == bytes(_BLOCK):  # a writer that came to its own end left two blocks of zeros
            return
        if start and len(header) < _BLOCK:
            raise ValueError(f"{path} is cut short: it has no end")
        kind, offset = header[156:157], start + _BLOCK
        try:
            size = _size(header)
            if offset + size > end:
                raise EOFError
            if kind == _LONG_NAME:
                long_name = file.read(size).rstrip(b"\0")
            elif kind == _RECORDS:
                records = _read_records(file.read(size))
            elif kind not in _ABOUT_OTHERS:
                size = int(records.get(b"size", size))
                name = records.get(b"path") or long_name or _short_name(header)
        except EOFError:
            raise ValueError(f"{path} is cut short: of {offset + size} bytes, {end} are there") from None
        except ValueError:
            raise ValueError(f"{path} is damaged at byte {start}" if start else f"{path} is no tar archive") from None
        if kind not in _ABOUT_OTHERS:
            yield os.fsdecode(name).removeprefix("./"), kind, offset, size
            long_name, records = b"", {}
        start = offset + -(-size // _BLOCK) * _BLOCK


def _refuse_compressed(path: str, first: bytes) -> None:
    for magic, command in _COMPRESSED.items():
        if first.startswith(magic):
            raise ValueError(f"{path} is compressed, so no image can be read alone; unpack it: {command} {path}")


def _size(header: bytes) -> int:
    """The bytes that follow a header; ValueError where its checksum says that it is none."""
    if _number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise ValueError
    return 0 if header[156:157] in _WITHOUT_CONTENT else _number(header[124:136])


def _number(field: bytes) -> int:
    if field[:1] == b"\x80":  # GNU: more than octal digits can tell
        return int.from_bytes(field[1:], "big")
    return int(field.split(b"\0")[0].strip() or b"0", 8)


def _short_name(header: bytes) -> bytes:
    name = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _read_records(text: bytes) -> dict[bytes, bytes]:
    """Records ``length key=value\\n`` of a POSIX header; a length counts the whole record."""
    records = {}
    while text and (length := int(text.split(b" ", 1)[0])) > 0:
        key, _, value = text[:length].partition(b" ")[2].removesuffix(b"\n").partition(b"=")
        records[key] = value
        text = text[length:]
    return records


def _split(name: str) -> tuple[str, str]:
    """``a/b.c.jpg`` -> ``a/b`` and ``.c.jpg``."""
    dot = name.find(".", name.rfind("/") + 1)
    return (name, "") if dot < 0 else (name[:dot], name[dot:].lower())


def _set_label(labels: dict[str, int], key: str, text: bytes, name: str) -> None:
    if not text.strip().isdigit():
        raise ValueError(f"expected a class, a whole number >= 0, in {name}, got {text[:40]!r}")
    if labels.setdefault(key, int(text)) != int(text):
        raise ValueError(f"{name} says class {int(text)}, an earlier member of that name {labels[key]}")


class ShardReader:
    """Bytes out of archives. A process opens an archive when it first reads from it.

    Reading moves no shared position (``os.pread``), so a forked process may go on with the files that it inherited;
    one to which the reader was pickled opens its own. Not for several threads at once.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = tuple(paths)
        self._open: dict[int, int] = {}  # number of the archive -> descriptor

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Return ``size`` bytes, fewer where the archive ends.

        Raises:
            OSError: The archive cannot be opened or read.
        """
        if shard not in self._open:
            if len(self._open) == _MAX_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[shard] = os.open(self._paths[shard], os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        return os.pread(self._open[shard], size, offset)

    def __getstate__(self) -> dict[str, Any]:
        return {"_paths": self._paths, "_open": {}}

    def __del__(self) -> None:
        for descriptor in getattr(self, "_open", {}).values():
            os.close(descriptor)
