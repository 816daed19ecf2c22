"""The ``cast`` command. PyTorch is imported only once there is something to compute."""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cast.results import FileResult
    from cast.weights import LoadedModel

_INTERRUPTED = 130  # what shells report for Ctrl-C
_BROKEN_PIPE = 141  # and for SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: that of the process) and return its exit code.

    0: everything done. 1: some photos could not be segmented. 2: the command line cannot be followed. 130: stopped by
    Ctrl-C; photos finished until then are complete. 141: stopped because nobody reads the output any more.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a file name that the terminal cannot show stops nothing
    try:
        return arguments.run(arguments)
    except _UsageError as error:
        print(f"{parser.prog} {arguments.command}: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the paths, as in `cast segment ... | head -1`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit fails once more
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        print("\nstopped; finished results are complete, nothing half-written is left", file=sys.stderr)
        return _INTERRUPTED


class _UsageError(Exception):
    """The command line cannot be followed."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cast", description="CAST: image recognition that segments, from superpixels to objects, in one pass."
    )
    parser.add_argument("--version", action=_Version, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    segment = commands.add_parser(
        "segment",
        help="segment photos into part-to-whole hierarchies",
        description="Segment photos into part-to-whole hierarchies. Each photo gets a folder of its own in DIR: "
        "superpixels.png, level1.png .., panel.png, hierarchy.npz (label maps and parents) and hierarchy.json.",
    )
    segment.add_argument("photos", nargs="+", metavar="PHOTO", help="a file, a folder, or a glob in quotes")
    segment.add_argument("--out", required=True, type=Path, metavar="DIR", help="the folder of all results")
    _add_model_options(segment)
    segment.add_argument(
        "--superpixels",
        type=_positive,
        metavar="N",
        help="how many to ask for (default: 196 per 224 x 224 pixels)",
    )
    segment.add_argument(
        "--levels", type=_levels, metavar="K,K,..", help="segments of each level, fine to coarse (default: 64,32,16,8)"
    )
    segment.add_argument(
        "--size", type=_positive, default=224, metavar="S", help="short side of the network's input (default: 224)"
    )
    segment.add_argument(
        "--crop", action="store_true", help="the published evaluation transform: resize, then the central square"
    )
    segment.add_argument("--soft", action="store_true", help="store the soft assignments in hierarchy.npz too")
    segment.add_argument(
        "--skip-existing", action="store_true", help="leave photos alone that have complete results of these settings"
    )
    segment.set_defaults(run=_segment)

    demo = commands.add_parser(
        "demo", help="segment the photo that comes with the package", description="Segment the photo of the package."
    )
    demo.add_argument(
        "--out", type=Path, default=Path("cast_demo"), metavar="DIR", help="folder of the result (default: ./cast_demo)"
    )
    _add_model_options(demo)
    demo.set_defaults(run=_demo)
    return parser


class _Version(argparse.Action):
    """Print the version, which is looked up only when it is asked for."""

    def __init__(self, **options: Any):
        super().__init__(nargs=0, default=argparse.SUPPRESS, **options)

    def __call__(self, parser: argparse.ArgumentParser, *unused: Any) -> None:
        print(f"cast-kernels {_version()}")
        parser.exit()


def _version() -> str:
    try:
        return metadata.version("cast-kernels")  # needs no PyTorch
    except metadata.PackageNotFoundError:  # a source tree that is not installed
        from cast_kernels import __version__

        return __version__


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="cast_small", help="name of the model (default: cast_small)")
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help=".safetensors, or a published .pth (default: random weights)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 .. (default: auto)")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _levels(text: str) -> tuple[int, ...]:
    return tuple(_positive(part.strip()) for part in text.split(","))


def _segment(arguments: argparse.Namespace) -> int:
    from cast.data import find_images  # Pillow and NumPy
    from cast.segment import Settings

    photos, failures = [], []
    for pattern in arguments.photos:
        try:
            photos += find_images(pattern)
        except ValueError as error:
            failures.append(str(error))
    photos = list({os.path.abspath(photo): photo for photo in photos}.values())
    if not photos:
        return _report(0, 0, failures, arguments.out)
    _make_folder(arguments.out)
    loaded = _load(arguments, arguments.levels)
    settings = Settings(arguments.size, arguments.crop, arguments.superpixels)

    from cast.results import segment_files

    progress = _Progress(len(photos))
    done = skipped = 0
    progress.show(photos[0].name)
    for result in segment_files(
        loaded, photos, arguments.out, settings, soft=arguments.soft, skip_existing=arguments.skip_existing
    ):
        if result.error is not None:
            failures.append(result.error if str(result.photo) in result.error else f"{result.photo}: {result.error}")
        done += result.error is None
        skipped += result.skipped
        progress.advance(result, photos)
    return _report(done, skipped, failures, arguments.out)


def _demo(arguments: argparse.Namespace) -> int:
    _make_folder(arguments.out.absolute().parent)
    loaded = _load(arguments, None)

    from cast.results import segment_file

    with as_file(files("cast") / "assets" / "demo.jpg") as photo:
        try:
            segment_file(loaded, photo, arguments.out)
        except (ValueError, OSError) as error:
            print(f"cast demo: error: {error}", file=sys.stderr)
            return 1
    print(arguments.out / "panel.png")
    return 0


def _load(arguments: argparse.Namespace, levels: tuple[int, ...] | None) -> "LoadedModel":
    """The model, after a word about random weights."""
    from cast.weights import load_model

    try:
        loaded = load_model(arguments.model, weights=arguments.weights, levels=levels, device=arguments.device)
    except ValueError as error:
        raise _UsageError(error) from error
    if loaded.random:
        print(
            f"cast: no --weights given, so the weights of {loaded.name} are random (seed 0): "
            "superpixels follow the photo, but grouping and classes are untrained",
            file=sys.stderr,
        )
    return loaded


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _UsageError(f"cannot create the folder {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise _UsageError(f"cannot write into the folder {folder}")


def _report(done: int, skipped: int, failures: list[str], out: Path) -> int:
    """Print what was done and, last, what was not; return the exit code."""
    if done:
        already = f" ({skipped} already there)" if skipped else ""
        print(f"{done} {'photo' if done == 1 else 'photos'} in {out}{already}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} {'error' if len(failures) == 1 else 'errors'}:", file=sys.stderr)
        for failure in failures:
            print(f"  {failure}", file=sys.stderr)
    return 1 if failures else 0


class _Progress:
    """Panels on stdout; on stderr a bar where it is a terminal, else a line per photo."""

    def __init__(self, total: int):
        self.total, self.finished = total, 0
        self.bar = sys.stderr.isatty()
        self.start = time.monotonic()

    def show(self, name: str) -> None:
        """Draw the bar, with the name of the photo at work."""
        if self.bar:
            filled = 24 * self.finished // self.total
            left = f"[{'#' * filled}{'.' * (24 - filled)}] {self.finished}/{self.total} {self._left()} {name}"
            sys.stderr.write("\r\x1b[K" + left[: shutil.get_terminal_size().columns - 1])
            sys.stderr.flush()

    def advance(self, result: "FileResult", photos: list[Path]) -> None:
        """Count one photo and print where its panel is."""
        self.finished += 1
        if self.bar:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        else:
            word = "failed" if result.error is not None else "already there" if result.skipped else "done"
            print(f"{self.finished}/{self.total} {result.photo}: {word}", file=sys.stderr)
        if result.error is None:
            print(result.folder / "panel.png", flush=True)
        if self.finished < self.total:
            self.show(photos[self.finished].name)

    def _left(self) -> str:
        if not self.finished:
            return ""
        seconds = round((time.monotonic() - self.start) / self.finished * (self.total - self.finished))
        return f"{seconds // 60}:{seconds % 60:02d} left"
