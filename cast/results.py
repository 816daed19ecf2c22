"""The folder of results of each photo: pictures, label maps and tables, written whole or not at all."""

import json
import os
import platform
import secrets
import shutil
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image

from cast.colors import hierarchy_colors
from cast.data import read_image
from cast.panel import color_map, draw_outlines, draw_panel
from cast.segment import DEFAULT_SETTINGS, Segmentation, Settings, segment_image
from cast.weights import SEED, LoadedModel, hash_file
from cast_kernels import __version__

FORMAT = "cast-hierarchy-1"
RANDOM_NOTE = f"Random weights (seed {SEED}): superpixels follow the photo, but the grouping is untrained."


@dataclass(frozen=True)
class FileResult:
    """What became of one photo: ``error`` is None where ``folder`` holds its results; ``skipped`` if it did before."""

    photo: Path
    folder: Path
    error: str | None = None
    skipped: bool = False


def segment_files(
    loaded: LoadedModel,
    photos: Sequence[Path],
    out: Path,
    settings: Settings = DEFAULT_SETTINGS,
    *,
    soft: bool = False,
    skip_existing: bool = False,
) -> Iterator[FileResult]:
    """Segment photos one by one into folders of their own under ``out``; an error stops only the photo it concerns.

    Args:
        loaded: The model.
        photos: Image files. Photos of the same name get folder names that tell them apart.
        out: The folder of all results, created if needed.
        settings: Input size, crop and number of superpixels.
        soft: Store soft assignments too.
        skip_existing: Leave photos alone whose results, of the same content and settings, are complete.

    Yields:
        One result per photo, in order, as soon as it is on disk.

    Raises:
        OSError: ``out`` cannot be created.
    """
    out.mkdir(parents=True, exist_ok=True)
    for photo, name in zip(photos, result_names(photos), strict=True):
        folder = out / name
        try:
            skipped = skip_existing and is_complete(folder, photo, run_settings(loaded, settings, soft))
            if not skipped:
                segment_file(loaded, photo, folder, settings, soft=soft)
            yield FileResult(photo, folder, skipped=skipped)
        except (ValueError, OSError, MemoryError, RuntimeError) as error:  # PyTorch out of memory: RuntimeError
            yield FileResult(photo, folder, error=str(error) or type(error).__name__)


def segment_file(
    loaded: LoadedModel, photo: Path, folder: Path, settings: Settings = DEFAULT_SETTINGS, *, soft: bool = False
) -> Segmentation:
    """Segment one image file and write its results as ``folder``, whole or not at all.

    Earlier results of the same photo in ``folder`` are replaced in the end; anything else there is never touched.

    Raises:
        ValueError: The photo cannot be read or segmented, or ``folder`` holds something else.
        OSError: The results cannot be written.
    """
    check_replaceable(folder, photo)
    start = time.perf_counter()
    segmentation = segment_image(loaded.model, read_image(photo), settings)
    about = {
        "format": FORMAT,
        "photo": {"path": os.path.abspath(photo), "sha256": hash_file(photo)},
        "settings": run_settings(loaded, settings, soft),
        "device": str(next(loaded.model.parameters()).device),
        "versions": {
            "cast-kernels": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "Pillow": PIL.__version__,
            "python": platform.python_version(),
        },
        "seconds": round(time.perf_counter() - start, 3),
    }
    write_results(folder, segmentation, about, random=loaded.random, soft=soft)
    return segmentation


def run_settings(loaded: LoadedModel, settings: Settings, soft: bool) -> dict[str, Any]:
    """Everything that results depend on besides the photo, in plain JSON values."""
    values = {
        "model": loaded.name,
        "config": loaded.model.config.to_dict(),
        "weights": None if loaded.random else {"path": loaded.weights, "sha256": loaded.weights_sha256},
        "random_weights_seed": SEED if loaded.random else None,
        **asdict(settings),
        "soft": soft,
    }
    return json.loads(json.dumps(values))


def write_results(
    folder: Path, segmentation: Segmentation, about: dict[str, Any], *, random: bool, soft: bool = False
) -> None:
    """Write the files of one photo into a temporary folder beside ``folder``, then rename it.

    Files: ``superpixels.png``, ``level1.png`` .. , ``hierarchy.npz``, ``hierarchy.json`` and ``panel.png``. Label maps
    are those of the photo's own pixels.

    Args:
        folder: The folder to create, or to replace (its parent must exist).
        segmentation: What to write.
        about: Further entries of ``hierarchy.json``.
        random: Whether the weights are random: the panel and the JSON say so.
        soft: Store the soft assignments too.
    """
    colors = hierarchy_colors(segmentation.hierarchy)
    full = segmentation.full_hierarchy()
    arrays = {name: a if name == "num_segments" else a[0] for name, a in full.arrays(soft=soft).items()}
    if soft:
        arrays |= {f"soft{level}": full.soft(level)[0].float().numpy() for level in range(1, full.num_levels)}
    table = _json_table(segmentation, arrays, about, random)

    temporary = folder.with_name(f".{secrets.token_hex(8)}.tmp")
    temporary.mkdir()
    try:
        Image.fromarray(draw_outlines(segmentation.photo, arrays["level0"])).save(temporary / "superpixels.png")
        for level in range(1, full.num_levels):
            color_map(arrays[f"level{level}"], colors[level]).save(temporary / f"level{level}.png")
        note = RANDOM_NOTE if random else ""
        panel = draw_panel(segmentation.photo, segmentation.hierarchy, colors=colors, note=note)
        panel.save(temporary / "panel.png")
        np.savez_compressed(temporary / "hierarchy.npz", **arrays)
        (temporary / "hierarchy.json").write_text(table, encoding="ascii")
        _swap(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _json_table(segmentation: Segmentation, arrays: dict, about: dict, random: bool) -> str:
    """The text of ``hierarchy.json``: one line per entry, long tables on a line of their own."""
    geometry, hierarchy = segmentation.geometry, segmentation.hierarchy
    top, left, bottom, right = geometry.region
    levels = []
    for level, count in enumerate(hierarchy.num_segments):
        areas = np.bincount(arrays[f"level{level}"].ravel(), minlength=count)
        entry = {"level": level, "num_segments": count, "num_present": int((areas > 0).sum()), "areas": areas.tolist()}
        if level + 1 < hierarchy.num_levels:
            entry["parents"] = arrays[f"parents{level}"].tolist()
        levels.append(entry)
    values = {
        **about,
        "random_weights": random,
        "image": {"height": geometry.original[0], "width": geometry.original[1]},
        "region": {"top": top, "left": left, "bottom": bottom, "right": right},
        "network_input": {"height": geometry.network[0], "width": geometry.network[1]},
        "classes": {"num_classes": 0 if segmentation.logits is None else len(segmentation.logits)},
        "levels": levels,
    }
    if random:
        values["classes"]["note"] = "random weights: these classes mean nothing"
    values["classes"]["top5"] = segmentation.top_classes()
    lines = ",\n".join(f" {json.dumps(key)}: {_layout(value)}" for key, value in values.items())
    return f"{{\n{lines}\n}}\n"


def _layout(value: Any) -> str:
    if isinstance(value, list):
        return "[\n" + ",\n".join(f"  {json.dumps(item, allow_nan=False)}" for item in value) + "\n ]"
    return json.dumps(value, allow_nan=False)


def _swap(temporary: Path, folder: Path) -> None:
    """Put ``temporary`` in the place of ``folder``; what was there is removed only afterwards."""
    if not folder.exists():
        temporary.rename(folder)
        return
    old = folder.with_name(f".{secrets.token_hex(8)}.old")
    folder.rename(old)
    try:
        temporary.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old)


def check_replaceable(folder: Path, photo: Path) -> None:
    """Raise ValueError unless ``folder`` is free or holds nothing but earlier results of the same photo."""
    if not folder.exists() and not folder.is_symlink():
        return
    about = _read_about(folder)
    if about is None or not all(_is_ours(entry) for entry in folder.iterdir()):
        raise ValueError(f"{folder} exists and holds other files than earlier results; choose another --out")
    if about["photo"]["path"] != os.path.abspath(photo) and about["photo"]["sha256"] != hash_file(photo):
        raise ValueError(f"{folder} holds the results of another photo, {about['photo']['path']}; choose another --out")


def is_complete(folder: Path, photo: Path, settings: dict[str, Any]) -> bool:
    """Whether ``folder`` holds results of the photo's present content, with these settings."""
    about = _read_about(folder)
    if about is None or about["settings"] != settings or about["photo"]["sha256"] != hash_file(photo):
        return False
    levels = [f"level{level}.png" for level in range(1, 1 + len(settings["config"]["num_clusters"]))]
    return all((folder / name).is_file() for name in ("superpixels.png", *levels, "panel.png", "hierarchy.npz"))


def _is_ours(entry: Path) -> bool:
    stem, _, extension = entry.name.partition(".")
    if extension == "png":
        return stem in ("superpixels", "panel") or (stem.startswith("level") and stem[5:].isdecimal())
    return entry.name in ("hierarchy.npz", "hierarchy.json")


def _read_about(folder: Path) -> dict[str, Any] | None:
    """The JSON of earlier results, or None if this is no such folder."""
    try:
        about = json.loads((folder / "hierarchy.json").read_text(encoding="ascii"))
        known = about["format"] == FORMAT and {"path", "sha256"} <= about["photo"].keys() and "settings" in about
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return about if known else None


def result_names(photos: Sequence[Path]) -> list[str]:
    """A folder name for each photo: its stem, with extension and parent folders where that alone is not unique.

    Raises:
        ValueError: A photo is given twice.
    """
    parts = [Path(os.path.abspath(photo)).parts[1:] for photo in photos]
    if len(set(parts)) < len(parts):
        raise ValueError("the same photo was given twice")
    names, parents = [photo.stem for photo in photos], 0
    while clashing := {name for name, times in Counter(map(_folded, names)).items() if times > 1}:
        for index, path in enumerate(parts):
            if _folded(names[index]) in clashing:
                names[index] = "_".join([*path[:-1][max(0, len(path) - 1 - parents) :], path[-1].replace(".", "_")])
        parents += 1
        if parents > max(map(len, parts)):
            # only names such as a/b_c.jpg and a_b/c.jpg come this far: their order decides
            names = [f"{name}_{index}" for index, name in enumerate(names)]
    return names


def _folded(name: str) -> str:
    """Names that a case-insensitive or normalising file system takes for the same are equal when folded."""
    return unicodedata.normalize("NFC", os.fspath(name)).casefold()
