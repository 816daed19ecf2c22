"""What a command line tool owes its terminal: streams that exist, names that are safe to show, a clean stop."""

import io
import os
import shutil
import signal
import sys
import threading
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cast.results import FileResult

_STDERR = 2  # the last of the file descriptors with a meaning
_INTERRUPTED = 130  # what shells report for Ctrl-C
_CLEANING = 5  # seconds after a signal to stop in which further ones are ignored: enough to remove a folder
_UNPRINTABLE = {"Cc", "Zl", "Zp"}  # control characters, line and paragraph separators


def prepare_streams() -> None:
    """Give the process an output and an error stream that take any text, also where it was started without."""
    if None in (sys.stdin, sys.stdout, sys.stderr):  # closed, as by `>&-`: files opened next would take their numbers
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
            pass
        os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open as long as the process
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name that the terminal cannot show stops nothing


def printable(text: str) -> str:
    """The text on one line, its control characters written as escapes: file names must not steer the terminal."""
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in _UNPRINTABLE else c for c in text)


class Stopped(KeyboardInterrupt):
    """A signal asks the process to end; ``code`` is the exit code that tells which one."""

    def __init__(self, number: int):
        super().__init__()
        self.code = 128 + number


def exit_code(stop: KeyboardInterrupt) -> int:
    """The exit code of a run that ended so."""
    return stop.code if isinstance(stop, Stopped) else _INTERRUPTED


@contextmanager
def stop_signals(restore: bool) -> Iterator[None]:
    """Raise ``Stopped`` once on Ctrl-C, SIGTERM or SIGHUP; the same again is ignored while the first is dealt with.

    Signals that the process was started to ignore (``nohup``) stay ignored. Outside of the main thread, where Python
    allows no handlers, nothing is changed.

    Args:
        restore: Whether the former handlers come back in the end. A process that is about to exit is better without:
            an impatient second Ctrl-C would find it among the ruins.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    deaf_until = 0.0

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal deaf_until
        if time.monotonic() >= deaf_until:
            deaf_until = time.monotonic() + _CLEANING
            raise Stopped(number)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {n: signal.signal(n, stop) for n in numbers if signal.getsignal(n) not in (signal.SIG_IGN, None)}
    try:
        yield
    finally:
        if restore:
            for number, handler in before.items():
                signal.signal(number, handler)


class Progress:
    """Panels on stdout; on stderr a bar where it is a terminal, else a line per photo."""

    def __init__(self, total: int):
        self.total, self.finished = total, 0
        self.bar = sys.stderr.isatty()
        self.start = time.monotonic()

    def show(self, name: str) -> None:
        """Draw the bar, with the name of the photo at work."""
        if self.bar:
            filled = 24 * self.finished // self.total
            left = (
                f"[{'#' * filled}{'.' * (24 - filled)}] {self.finished}/{self.total} {self._left()} {printable(name)}"
            )
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
            print(printable(f"{self.finished}/{self.total} {result.photo}: {word}"), file=sys.stderr)
        if result.error is None:
            print(printable(str(result.folder / "panel.png")), flush=True)
        if self.finished < self.total:
            self.show(photos[self.finished].name)

    def _left(self) -> str:
        if not self.finished:
            return ""
        seconds = round((time.monotonic() - self.start) / self.finished * (self.total - self.finished))
        return f"{seconds // 60}:{seconds % 60:02d} left"
