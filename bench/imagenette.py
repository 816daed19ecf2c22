"""A small CAST beside the ViT of its width, on photos: ``python -m bench.imagenette --data D --objects O --out R``.

D holds imagenette as ``labels.csv`` (id, split, wnid) and ``images/ID.jpg``; O photos with masks, see
`bench.imagenette_masks`. Both models are trained by `cast train` with the settings of a recipe, for every seed; then
come a linear probe (`cast probe`) and foreground IoU of their segmentations: CAST's own levels against k-means on the
ViT's tokens, both also with the weights they started from, and floors that need no network. ``--only last-pool`` trains
the last pool of a trained CAST, which as published gets no gradient, and scores it before and after; ``--only joint``
trains a CAST whose last pool learns with the rest from the start.

Each piece is saved in R/results.csv when it is done, with machine and commit, and not done again; training goes on
from its checkpoints. With ``--minutes`` the command ends in time, with exit code 75 if there is more to do.
"""

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from bench import imagenette_masks as masks
from bench.imagenette_last_pool import train_last_pool
from bench.imagenette_tree import link_tree
from bench.record import ROOT, Table, machine
from cast.data.image_sets import open_image_set
from cast.models import from_pretrained
from cast.train.command import train
from cast.train.config import CONFIGS, FREE_TO_CHANGE, TrainConfig
from cast.train.settings import read_settings
from cast.train.tasks import make_task
from cast.weights import find_device

RECIPE = ROOT / "recipes" / "imagenette.toml"
TABLES = {"train", "cast", "vit", "probe", "evaluate", "last_pool", "joint"}  # of a recipe
OF_THE_LAST_POOL = ("last-pool", "joint")  # of CAST alone, done when asked for
USUAL = ("floors", "random", "train", "probe", "segment")
PIECES = (*USUAL, *OF_THE_LAST_POOL)
AGAIN = 75  # EX_TEMPFAIL
RESERVE = 30.0  # seconds in which a run loads its photos, saves itself and ends

Row = dict[str, Any]


class OutOfTime(Exception):
    """The limit is near; what is saved is kept."""


class Experiment:
    """The pieces, each with the settings that it depends on.

    Args:
        arguments: Of the command line.

    Raises:
        ValueError: The recipe is not one, or the device is not there.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.end = time.monotonic() + arguments.minutes * 60 if arguments.minutes else None
        self.recipe, self.out, self.objects = read_settings(arguments.recipe), arguments.out, arguments.objects
        if set(self.recipe) != TABLES:
            raise ValueError(f"expected the tables {', '.join(sorted(TABLES))} in {arguments.recipe}")
        self.device = find_device(arguments.device)
        self.table = Table(self.out / "results.csv")
        self.tree = link_tree(arguments.data, self.out / "imagenette")
        self.facts = machine()
        self.photos: list[masks.Photo] = []

    def do(self, piece: str, model: str, seed: int) -> None:
        """Do a piece and save its rows, unless they are there."""
        key = {"piece": piece, "model": model, "seed": str(seed), "settings": self.settings(piece, model)}
        if any(key.items() <= row.items() for row in self.table.rows):
            return
        self.check_time()
        print(f"== {piece} {model}, seed {seed}", flush=True)
        start = time.monotonic()
        rows = getattr(self, piece.replace("-", "_"))(model, seed)
        facts = {"seconds": round(time.monotonic() - start, 1), **self.facts}
        self.table.add(*({**key, **row, **facts} for row in rows))

    def rows(self) -> list[dict[str, str]]:
        """Return the saved rows that are of the recipe as it is now."""
        return [row for row in self.table.rows if row["settings"] == self.settings(row["piece"], row["model"])]

    # 1. The pieces: rows of a model and a seed
    def models(self, piece: str) -> tuple[str, ...]:
        """Return what a piece is done for."""
        if piece == "floors":
            return tuple(self.floor_segmenters())
        return ("cast",) if piece in OF_THE_LAST_POOL else ("cast", "vit")

    def floors(self, name: str, seed: int) -> list[Row]:
        """Score what needs no network."""
        return self.score(self.floor_segmenters()[name])

    def random(self, model: str, seed: int) -> list[Row]:
        """Score the weights that training starts from."""
        config = self.training(model, seed)
        task = make_task(config, len(open_image_set(config.data).class_names))  # as `train` does
        network = task.model if self.supervised else task.base_encoder
        return self.score(self.segmenter(network.eval().to(self.device), seed))

    def train(self, model: str, seed: int) -> list[Row]:
        """Train a model, or go on with it."""
        return [self.run(self.training(model, seed), self.folder("train", model, seed))]

    def probe(self, model: str, seed: int) -> list[Row]:
        """Train a linear classifier on a trained model."""
        weights = str(self.folder("train", model, seed) / "model")
        config = self.config("probe", seed, {**self.recipe["probe"], "weights": weights})
        return [self.run(config, self.folder("probe", model, seed))]

    def segment(self, model: str, seed: int) -> list[Row]:
        """Score the segmentations of a trained model."""
        return self.score(self.segmenter(self.trained("train", model, seed), seed))

    def last_pool(self, model: str, seed: int) -> list[Row]:
        """Score the coarsest level of a trained CAST before and after its last pool is trained."""
        network = self.trained("train" if self.supervised else "probe", model, seed)  # whichever has a classifier
        rows = [{"state": "before", **row} for row in self.score(masks.from_cast(network))]
        losses = train_last_pool(network, self.tree / "train", self.check_time, seed=seed, **self.recipe["last_pool"])
        found = {"state": "after", "first_loss": losses[0], "loss": losses[-1]}
        rows += [found | row for row in self.score(masks.from_cast(network))]
        return [row for row in rows if row["segments"] == str(network.config.num_clusters[-1])]

    def joint(self, model: str, seed: int) -> list[Row]:
        """Train a CAST with its last pool, and score it."""
        config = dataclasses.replace(self.training(model, seed), **self.recipe["joint"])
        figures = self.run(config, self.folder("joint", model, seed))
        return [figures, *self.score(self.segmenter(self.trained("joint", model, seed), seed))]

    # 2. Training
    @property
    def supervised(self) -> bool:
        """Whether training is, so that the model has a classifier."""
        return self.recipe["train"]["task"] == "supervised"

    def training(self, model: str, seed: int) -> TrainConfig:
        """Return the settings of the training of a model."""
        values = {**self.recipe["train"], **self.recipe[model]}
        return self.config(values.pop("task"), seed, values)

    def config(self, task: str, seed: int, values: dict[str, Any]) -> TrainConfig:
        """Return settings with those that this command decides on."""
        places = {"data": str(self.tree / "train"), "val": str(self.tree / "val"), "device": str(self.device)}
        return CONFIGS[task].from_dict({**values, **places, "seed": seed})

    def run(self, config: TrainConfig, folder: Path) -> Row:
        """Train until the end of the run, or of the time."""
        if self.end is not None:
            left = self.end - RESERVE - time.monotonic()
            config = dataclasses.replace(config, time_limit=max(0.01, left / 60))
        result = train(config, folder)
        if result["status"] == "time limit":
            raise OutOfTime
        figures = {name: result[name] for name in ("step", "epoch", "best")} | {"training_loss": result["loss"]}
        return figures | result["metrics"]  # which are of held-out photos

    def folder(self, piece: str, model: str, seed: int) -> Path:
        """Return where a run lies; one of other settings lies elsewhere."""
        return self.out / "runs" / f"{piece}-{model}-{seed}-{self.settings(piece, model)}"

    def trained(self, piece: str, model: str, seed: int) -> nn.Module:
        """Load what a run saved, in eval mode."""
        folder = self.folder(piece, model, seed) / "model"
        if not folder.is_dir():
            raise ValueError(f"there is no model in {folder.parent}: do the piece {piece} first")
        return from_pretrained(folder, device=self.device)

    def settings(self, piece: str, model: str) -> str:
        """Hash what the recipe says of the rows of a piece."""
        used: dict[str, Any] = {}
        if piece != "floors":
            fixed = self.training(model, 0).to_dict().items()
            used["train"] = {name: value for name, value in fixed if name not in FREE_TO_CHANGE}
        if piece == "probe" or (piece == "last-pool" and not self.supervised):
            used["probe"] = self.recipe["probe"]
        if piece not in ("train", "probe"):
            used["evaluate"] = self.recipe["evaluate"]
        if piece in OF_THE_LAST_POOL:
            table = piece.replace("-", "_")
            used[table] = self.recipe[table]
        return hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()[:8]

    # 3. Scoring
    def floor_segmenters(self) -> dict[str, masks.Segmenter]:
        """Return the floors at the number of the coarsest segments."""
        return masks.floors(self.recipe["evaluate"]["counts"][-1])

    def segmenter(self, network: nn.Module, seed: int) -> masks.Segmenter:
        """Return what makes label maps with a network."""
        if hasattr(network, "forward_hierarchy"):
            return masks.from_cast(network)
        return masks.from_vit(network, tuple(self.recipe["evaluate"]["counts"]), seed)

    def score(self, segment: masks.Segmenter) -> list[Row]:
        """Score label maps on the photos of the recipe."""
        e = self.recipe["evaluate"]
        if not self.photos:
            self.photos = masks.read_photos(self.objects, e["kinds"], e["img_size"], e["whole"], e["every"])
        return masks.score(self.photos, segment, self.device, self.check_time)

    def check_time(self) -> None:
        """Give up when the limit is near."""
        if self.end is not None and time.monotonic() > self.end - RESERVE:
            raise OutOfTime


# 4. Report
def report(rows: list[dict[str, str]]) -> list[str]:
    """Return Markdown tables of figures in percent: means over seeds, ± their standard deviation."""
    lines = ["", "| | seeds | top-1 |", "|---|---|---|"]
    for (piece, model), group in _grouped([row for row in rows if "top1" in row], "piece", "model").items():
        lines.append(f"| {model}, {piece} | {len(group)} | {_percent(group, 'top1')} |")
    scored = [row for row in rows if "masks" in row]
    columns = [(kind, name) for (kind,) in _grouped(scored, "masks") for name in ("majority", "best_match")]
    heads = [f"{kind} {name.replace('_', ' ')}" for kind, name in columns]
    lines += ["", " | ".join(["| | segments | seeds", *heads]) + " |", "|---" * (3 + len(columns)) + "|"]
    for (piece, model, state, segments), group in _grouped(scored, "piece", "model", "state", "segments").items():
        by_kind = _grouped(group, "masks")
        cells = [_percent(by_kind[kind,], name) for kind, name in columns]
        seeds = str(len({row["seed"] for row in group}))
        lines.append(" | ".join([f"| {model}, {piece} {state}".rstrip(), segments, seeds, *cells]) + " |")
    return lines


def _grouped(rows: list[dict[str, str]], *names: str) -> dict[tuple[str, ...], list[dict[str, str]]]:
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name, "") for name in names), []).append(row)
    return groups


def _percent(rows: list[dict[str, str]], name: str) -> str:
    values = 100 * np.array([float(row[name]) for row in rows])
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def main(argv: Sequence[str] | None = None) -> int:
    """Do the pieces that are not done; return 75 if the time was not enough."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of imagenette")
    parser.add_argument("--objects", type=Path, required=True, metavar="DIR", help="folder of photos with masks")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of runs and results")
    parser.add_argument("--recipe", type=Path, default=RECIPE, metavar="FILE", help=f"(default: {RECIPE})")
    parser.add_argument("--minutes", type=float, default=0.0, help="end within this time (default: no limit)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--only", nargs="+", choices=PIECES, default=USUAL, help="(default: all but the last two)")
    parser.add_argument("--device", default="auto", help="(default: auto)")
    arguments = parser.parse_args(argv)
    experiment, code = Experiment(arguments), 0
    try:
        for seed in arguments.seeds:
            for piece in (name for name in PIECES if name in arguments.only):
                for model in experiment.models(piece):
                    experiment.do(piece, model, 0 if piece == "floors" else seed)
    except OutOfTime:
        code = AGAIN
    print("\n".join(report(experiment.rows())))
    if code:
        print("\nout of time: run again to continue")
    return code


if __name__ == "__main__":
    sys.exit(main())
