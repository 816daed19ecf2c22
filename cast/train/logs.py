"""What a run tells: a line of JSON per record in a file, curves for TensorBoard, progress on stderr."""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from cast._files import replace_file
from cast._terminal import printable

from .errors import writing

FILE_NAME = "log.jsonl"
TIMES = ("seconds", "images_per_second")  # what differs between runs that are equal
_REDRAW = 0.2  # seconds


class RunLog:
    """The records of a run, appended to ``log.jsonl`` in its folder, and shown by TensorBoard if asked for.

    Lines beyond the step that the run starts from are dropped: they are of a run that was killed, and come again.

    Args:
        folder: Of the run.
        step: Steps that are done.
        evaluated: The step of the last evaluation that counts.
        tensorboard: Whether there are files for TensorBoard in the folder ``tensorboard``.

    Raises:
        ImportError: The package tensorboard is missing.
        TrainingError: The file cannot be written.
    """

    def __init__(self, folder: Path, step: int, evaluated: int, tensorboard: bool = False) -> None:
        self.path = folder / FILE_NAME
        self.board = _open_board(folder / "tensorboard", step) if tensorboard else None
        with writing(self.path):
            kept = b"".join(_lines_until(self.path, step, evaluated))
            if not self.path.exists() or kept != self.path.read_bytes():
                with replace_file(self.path) as file:
                    file.write(kept)
            self.file: IO[bytes] = open(self.path, "ab")  # noqa: SIM115 - open as long as the run

    def write(self, record: dict[str, Any]) -> None:
        """Append a record, which names its ``step``.

        Raises:
            TrainingError: The disk is full.
        """
        with writing(self.path):
            self.file.write(json.dumps(record).encode() + b"\n")
            self.file.flush()
        if self.board is not None:
            for name, value in _flatten(record):
                self.board.add_scalar(name, value, record["step"])

    def sync(self) -> None:
        """Make sure that the lines so far are on the disk, before a checkpoint that comes after them."""
        with writing(self.path):
            os.fsync(self.file.fileno())

    def close(self) -> None:
        """Close the files."""
        with suppress(OSError):  # of a full disk, `write` told
            self.file.close()
        if self.board is not None:
            self.board.close()


def read_log(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the records of a ``log.jsonl``."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def _lines_until(path: Path, step: int, evaluated: int) -> Iterator[bytes]:
    if not path.exists():
        return
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            record = json.loads(line)
            if record["step"] > (evaluated if "evaluation" in record else step) or not line.endswith(b"\n"):
                return
        except (ValueError, KeyError, TypeError):  # cut off by a kill
            return
        yield line


def _flatten(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{name}/")
        elif name not in ("step", "seconds"):
            yield prefix + name, value


def _open_board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(f"tensorboard=True needs it: pip install 'cast-kernels[train]' ({error})") from error
    return SummaryWriter(os.fspath(folder), purge_step=step + 1)


class TrainProgress:
    """Progress on stderr: a bar where it is a terminal, else a line per record; and the clock behind it.

    Args:
        total: Steps of the run.
        step: Steps that are done.
        batch: Images per step.
        show: Whether anything is shown.
    """

    def __init__(self, total: int, step: int, batch: int, show: bool) -> None:
        self.total, self.batch, self.show = total, batch, show
        self.bar = show and sys.stderr.isatty()
        self.start = self.mark = self.drawn = time.monotonic()
        self.first = self.marked = step  # the steps at `start` and `mark`
        self.paused = 0.0  # seconds since `start` in which nothing was trained
        self.text = ""

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Keep the time spent within out of images per second: it goes to figures or files."""
        before = time.monotonic()
        yield
        spent = time.monotonic() - before
        self.paused, self.mark = self.paused + spent, self.mark + spent

    def seconds(self) -> float:
        """Return the time since the run was started, this time."""
        return time.monotonic() - self.start

    def images_per_second(self, step: int) -> float:
        """Return the rate since this was last asked."""
        now = time.monotonic()
        rate = (step - self.marked) * self.batch / max(now - self.mark, 1e-9)
        self.mark, self.marked = now, step
        return rate

    def advance(self, step: int) -> None:
        """Draw the bar, if it is time to."""
        if self.bar and (time.monotonic() >= self.drawn + _REDRAW or step == self.total):
            self.drawn = time.monotonic()
            filled = 24 * step // self.total
            line = f"[{'#' * filled}{'.' * (24 - filled)}] {step}/{self.total} {self._left(step)} {self.text}"
            sys.stderr.write("\r\x1b[K" + printable(line)[: shutil.get_terminal_size().columns - 1])
            sys.stderr.flush()

    def tell(self, step: int, text: str) -> None:
        """Show the figures of a step: beside the bar, or as a line."""
        self.text = text
        if self.show and not self.bar:
            print(printable(f"{step}/{self.total} {text} {self._left(step)}").rstrip(), file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self.bar:
            sys.stderr.write("\r\x1b[K")
        if self.show:
            print(printable(text), file=sys.stderr, flush=True)

    def _left(self, step: int) -> str:
        if step in (self.first, self.total):
            return ""
        seconds = round((self.seconds() - self.paused) / (step - self.first) * (self.total - step))
        hours, minutes = seconds // 3600, seconds // 60 % 60
        return f"{hours}:{minutes:02d}:{seconds % 60:02d} left"
