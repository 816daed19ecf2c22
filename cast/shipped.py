"""The trained weights that come with the package: where they lie, what of, and on which terms. Needs no PyTorch."""

import os
from pathlib import Path

NAME = "imagenette"  # what `--weights` and hierarchy.json call them
FOLDER = Path(__file__).parent / "assets" / NAME  # of a saved model, its licence, its card and its classes
SIZE = 128  # short side at which they segment photos: that of training; larger ones score lower (the card has figures)


def find_folder() -> Path:
    """The folder of the weights.

    Raises:
        ValueError: They are not there: a source tree, or a package, without them.
    """
    missing = [name for name in ("config.json", "model.safetensors") if not (FOLDER / name).is_file()]
    if missing:
        raise ValueError(
            f"the weights that come with the package are missing (no {' and no '.join(missing)} in {FOLDER}): install "
            "it again, or name a model or other weights"
        )
    return FOLDER


def resolve(weights: str | os.PathLike[str]) -> Path:
    """The path of weights that a user names: "imagenette", unless there is such a path, is `FOLDER`.

    Raises:
        ValueError: The package's weights are meant, and are not there.
    """
    path = Path(weights)
    called = path == Path(NAME) and not path.exists()
    return find_folder() if called or os.path.realpath(path) == os.path.realpath(FOLDER) else path


def class_names() -> tuple[str, ...]:
    """What the classes are called, in the order of the logits."""
    return tuple((FOLDER / "classes.txt").read_text(encoding="utf-8").splitlines())


def notice() -> str:
    """What a user must know before the first result."""
    return (
        f"using the weights that come with the package, trained on {NAME} (photos of ten classes of ImageNet). They "
        f"are for non-commercial research only: {FOLDER / 'LICENSE'}"
    )
