"""The folder of results of each photo: pictures, label maps and tables, written whole or not at all."""

import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image

from cast._files import hash_file
from cast.colors import hierarchy_colors
from cast.data import read_image
from cast.panel import color_map, draw_outlines, draw_panel
from cast.result_folders import FORMAT, check_replaceable, is_complete, replace_folder, result_names
from cast.segment import DEFAULT_SETTINGS, Segmentation, Settings, segment_image
from cast.weights import SEED, LoadedModel
from cast_kernels import __version__

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
    An empty folder is filled.

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
    write_results(folder, segmentation, about, random=loaded.random, soft=soft, class_names=loaded.class_names)
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
    folder: Path,
    segmentation: Segmentation,
    about: dict[str, Any],
    *,
    random: bool,
    soft: bool = False,
    class_names: Sequence[str] = (),
) -> None:
    """Write the files of one photo, whole or not at all.

    Files: ``superpixels.png``, ``level1.png`` .. , ``hierarchy.npz``, ``hierarchy.json`` and ``panel.png``. Label maps
    are those of the photo's own pixels.

    Args:
        folder: The folder to create, or whose results to replace (its parent must exist). A symbolic link stays one.
        segmentation: What to write.
        about: Further entries of ``hierarchy.json``.
        random: Whether the weights are random: the panel and the JSON say so.
        soft: Store the soft assignments too.
        class_names: Of the classes of the logits, for the JSON; empty where they have none.
    """
    colors = hierarchy_colors(segmentation.hierarchy)
    full = segmentation.full_hierarchy()
    arrays = {name: a if name == "num_segments" else a[0] for name, a in full.arrays(soft=soft).items()}
    if soft:
        arrays |= {f"soft{level}": full.soft(level)[0].float().numpy() for level in range(1, full.num_levels)}
    table = _json_table(segmentation, arrays, about, random, class_names)

    with replace_folder(folder) as temporary:
        Image.fromarray(draw_outlines(segmentation.photo, arrays["level0"])).save(temporary / "superpixels.png")
        for level in range(1, full.num_levels):
            color_map(arrays[f"level{level}"], colors[level]).save(temporary / f"level{level}.png")
        note = RANDOM_NOTE if random else ""
        panel = draw_panel(segmentation.photo, segmentation.hierarchy, colors=colors, note=note)
        panel.save(temporary / "panel.png")
        np.savez_compressed(temporary / "hierarchy.npz", **arrays)
        (temporary / "hierarchy.json").write_text(table, encoding="ascii")


def _json_table(segmentation: Segmentation, arrays: dict, about: dict, random: bool, class_names: Sequence[str]) -> str:
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
    top = segmentation.top_classes()
    values["classes"]["top5"] = [{"class": class_names[e["class_id"]]} | e for e in top] if class_names else top
    lines = ",\n".join(f" {json.dumps(key)}: {_layout(value)}" for key, value in values.items())
    return f"{{\n{lines}\n}}\n"


def _layout(value: Any) -> str:
    if isinstance(value, list):
        return "[\n" + ",\n".join(f"  {json.dumps(item, allow_nan=False)}" for item in value) + "\n ]"
    return json.dumps(value, allow_nan=False)
