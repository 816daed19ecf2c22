"""The ``cast`` command. PyTorch is imported only once there is something to compute."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cast import shipped
from cast._terminal import Progress, exit_code, prepare_streams, printable, stop_signals
from cast.bench.cli import add_bench
from cast.train.cli import add_train

if TYPE_CHECKING:
    from cast.weights import LoadedModel

_BROKEN_PIPE = 141  # what shells report for SIGPIPE
_MOST_SUPERPIXELS = 65536  # labels that the superpixel algorithm can hold


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: that of the process) and return its exit code.

    0: everything done. 1: some photos could not be segmented. 2: the command line cannot be followed. 129, 130, 143:
    stopped by SIGHUP, Ctrl-C or SIGTERM; photos finished until then are complete. 141: stopped because nobody reads the
    output any more.
    """
    prepare_streams()
    parser = _parser()
    arguments = parser.parse_args(argv)
    arguments.argv = sys.argv[1:] if argv is None else list(argv)
    with stop_signals(restore=argv is not None):
        try:
            return arguments.run(arguments)
        except _UsageError as error:
            print(f"{parser.prog} {arguments.command}: error: {printable(str(error))}", file=sys.stderr)
            return 2
        except BrokenPipeError:  # whoever read the paths, as in `cast segment ... | head -1`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit fails once more
            return _BROKEN_PIPE
        except KeyboardInterrupt as stop:
            with suppress(OSError):  # the terminal may be gone
                print("\nstopped; finished results are complete, nothing half-written is left", file=sys.stderr)
            return exit_code(stop)


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
    segment.add_argument("--out", required=True, type=_folder, metavar="DIR", help="the folder of all results")
    _add_model_options(segment)
    segment.add_argument(
        "--superpixels",
        type=_superpixels,
        metavar="N",
        help=f"how many to ask for, up to {_MOST_SUPERPIXELS} (default: 196 per 224 x 224 pixels)",
    )
    segment.add_argument(
        "--levels",
        type=_levels,
        metavar="K,K,..",
        help="segments of each level, fine to coarse (default: 32,16,8; of --model and other weights, their own)",
    )
    segment.add_argument(
        "--size",
        type=_positive,
        metavar="S",
        help="short side of the network's input, 8 to 8192; with --crop a multiple of 8 "
        "(default: 128; of --model and other weights, 224)",
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
        "--out",
        type=_folder,
        default=Path("cast_demo"),
        metavar="DIR",
        help="folder of the result (default: ./cast_demo)",
    )
    _add_model_options(demo)
    demo.set_defaults(run=_demo)

    export = commands.add_parser(
        "export",
        help="write a model for other runtimes, ONNX or torch.export",
        description="Write a model that takes images and superpixels, for other runtimes, and print how far its "
        "outputs are from the model's own on a photo. Needs the extra `export` for ONNX.",
    )
    export.add_argument("--out", required=True, type=_exported, metavar="FILE", help="model.onnx or model.pt2")
    _add_model_options(export)
    export.add_argument("--levels", type=_levels, metavar="K,K,..", help="segments of each level, fine to coarse")
    export.add_argument("--size", type=_positive, metavar="S", help="side of the images (default: the model's)")
    export.set_defaults(run=_export)

    add_train(commands)
    add_bench(commands)
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
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="name of the model; without --weights its weights are random (default: that of the weights if they tell, "
        "else cast_small)",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="PATH",
        help="a published checkpoint, a .safetensors file, or the folder of a saved model (default, without --model: "
        f"{shipped.NAME}, the small model that comes with the package; for non-commercial research only)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 .. (default: auto)")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _superpixels(text: str) -> int:
    if (count := _positive(text)) > _MOST_SUPERPIXELS:
        raise argparse.ArgumentTypeError(f"expected at most {_MOST_SUPERPIXELS}, got {count}")
    return count


def _levels(text: str) -> tuple[int, ...]:
    levels = tuple(_positive(part.strip()) for part in text.split(","))
    if list(levels) != sorted(levels, reverse=True):
        raise argparse.ArgumentTypeError(f"expected numbers of segments from fine to coarse, got {text!r}")
    return levels


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("expected a folder, got an empty name")
    return Path(text)


def _exported(text: str) -> Path:
    if Path(text).suffix not in (".onnx", ".pt2"):
        raise argparse.ArgumentTypeError(f"expected a file that ends in .onnx or .pt2, got {text!r}")
    return Path(text)


def _segment(arguments: argparse.Namespace) -> int:
    from cast.data import find_images
    from cast.segment import Settings

    _check_request(arguments)
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
    settings = Settings(arguments.size or loaded.size, arguments.crop, arguments.superpixels)

    from cast.results import segment_files

    progress = Progress(len(photos))
    done = skipped = 0
    progress.show(photos[0].name)
    for result in segment_files(
        loaded, photos, arguments.out, settings, soft=arguments.soft, skip_existing=arguments.skip_existing
    ):
        if result.error is not None:
            named = str(result.photo) in result.error
            failures.append(result.error if named else f"{result.photo}: {_in_options(result.error)}")
        done += result.error is None
        skipped += result.skipped
        progress.advance(result, photos)
    return _report(done, skipped, failures, arguments.out)


def _check_request(arguments: argparse.Namespace) -> None:
    """Raise _UsageError for whatever can be seen to be wrong before a model is built."""
    from cast.data.geometry import check_size
    from cast.models import CastConfig
    from cast.weights import planned_config

    try:
        if arguments.size is not None:
            check_size(arguments.size, arguments.crop)
    except ValueError as error:
        raise _UsageError(f"--size{' and --crop' if arguments.crop else ''}: {error}") from error
    try:
        config = planned_config(arguments.model, arguments.weights)
    except (ValueError, OSError) as error:
        raise _UsageError(error) from error
    if config is None:
        return  # loading it will say so, and which there are; or only the weights tell
    name = arguments.model or shipped.NAME
    if not isinstance(config, CastConfig):
        raise _UsageError(f"--model: {name} makes no segments")
    own = config.num_clusters
    levels = arguments.levels or own
    if len(levels) != len(own):
        raise _UsageError(f"--levels: {name} groups {len(own)} times, so expected {len(own)} levels, got {levels}")
    if arguments.superpixels is not None and arguments.superpixels < levels[0]:
        raise _UsageError(
            f"--superpixels {arguments.superpixels} are fewer than the {levels[0]} segments of the first of --levels"
        )


def _in_options(message: str) -> str:
    """What the model says about its arguments, in the words of the command line."""
    message = message.replace("num_clusters[0]", "the first of --levels").replace("num_clusters", "--levels")
    message = message.replace("num_superpixels", "--superpixels")
    return message if "superpixels" not in message else f"{message} (see --superpixels, --levels and --size)"


def _demo(arguments: argparse.Namespace) -> int:
    from cast.result_folders import workspace

    _make_folder(workspace(arguments.out))
    loaded = _load(arguments, None)

    from cast.results import segment_file
    from cast.segment import Settings

    with as_file(files("cast") / "assets" / "demo.jpg") as photo:
        try:
            segment_file(loaded, photo, arguments.out, Settings(loaded.size))
        except (ValueError, OSError) as error:
            print(f"cast demo: error: {printable(str(error))}", file=sys.stderr)
            return 1
    print(printable(str(arguments.out / "panel.png")))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    if not arguments.out.parent.is_dir():
        raise _UsageError(f"no such folder: {arguments.out.parent}")
    model = _load(arguments, arguments.levels).model

    from cast._export_command import export_and_compare

    try:
        differences, agree = export_and_compare(model, arguments.out, arguments.size or model.config.img_size)
    except (ImportError, ValueError, OSError) as error:
        raise _UsageError(error) from error
    print(printable(str(arguments.out)))
    for name, value in differences.items():
        exact = name.startswith(("parents", "label"))
        print(f"  {name}: {f'{value:.3%} differ' if exact else f'off by at most {value:.1e}'}")
    if not agree:
        print("cast export: error: the file does not compute what the model does", file=sys.stderr)
    return 0 if agree else 1


def _load(arguments: argparse.Namespace, levels: tuple[int, ...] | None) -> "LoadedModel":
    """The model, after a word about weights that nobody named."""
    from cast.weights import load_model

    try:
        loaded = load_model(arguments.model, weights=arguments.weights, levels=levels, device=arguments.device)
    except ValueError as error:
        raise _UsageError(error) from error
    if loaded.shipped:
        print(printable(f"cast: {shipped.notice()}"), file=sys.stderr)
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
        print(printable(f"{done} {'photo' if done == 1 else 'photos'} in {out}{already}"), file=sys.stderr)
    if failures:
        print(f"{len(failures)} {'error' if len(failures) == 1 else 'errors'}:", file=sys.stderr)
        for failure in failures:
            print(f"  {printable(failure)}", file=sys.stderr)
    return 1 if failures else 0
