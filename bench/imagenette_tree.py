"""A folder of photos and their labels, laid out as the folders of classes that training reads."""

import csv
import hashlib
import os
import shutil
from pathlib import Path

SOURCE = "source.txt"  # which photos a tree is of


def link_tree(data: Path, tree: Path) -> Path:
    """Make ``TREE/SPLIT/WNID/ID.jpg``, links to the photos, or copies where the system has no links.

    Args:
        data: With ``labels.csv``, which has columns id, split and wnid, and ``images/ID.jpg``.
        tree: Made whole or not at all, and only where it is not there or is of other photos.
    """
    labels = data / "labels.csv"
    source = f"{data.resolve()} {hashlib.sha256(labels.read_bytes()).hexdigest()}\n"
    if (tree / SOURCE).exists() and (tree / SOURCE).read_text() == source:
        return tree
    fresh = tree.with_name(f".{tree.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    with labels.open(newline="") as file:
        for row in csv.DictReader(file):
            photo = (data / "images" / f"{row['id']}.jpg").resolve()
            link = fresh / row["split"] / row["wnid"] / photo.name
            link.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.symlink(photo, link)
            except OSError:
                shutil.copy2(photo, link)
    (fresh / SOURCE).write_text(source)
    shutil.rmtree(tree, ignore_errors=True)
    fresh.rename(tree)
    return tree
