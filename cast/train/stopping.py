"""Signals to stop that wait until the run is at a place where it can be saved, and two runs kept apart."""

import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from cast._terminal import Stopped

from .errors import TrainingError

_DEAF = 5.0  # seconds in which further signals are the same one: torchrun passes on what the terminal sends to all


class StopRequest:
    """A context in which Ctrl-C, SIGTERM and SIGHUP are noted instead of obeyed; a second one is obeyed at once.

    Until `wait` is called the first one is obeyed at once too: there is nothing to save yet. Signals that the process
    was started to ignore stay ignored. Outside of the main thread nothing is changed.

    Attributes:
        number: The signal that came; 0 = none.
    """

    def __init__(self) -> None:
        self.number, self._waits = 0, False
        self._since = 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
            heard = [n for n in numbers if signal.getsignal(n) not in (signal.SIG_IGN, None)]
            self._before = {n: signal.signal(n, self._note) for n in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wait(self) -> None:
        """From now on the run is going to be saved before it ends."""
        self._waits = True

    def _note(self, number: int, _: FrameType | None) -> None:
        first = not self.number
        if first:
            self.number, self._since = number, time.monotonic()
        if not self._waits if first else time.monotonic() > self._since + _DEAF:
            raise Stopped(number)


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder, and remove the temporary files of one that was killed there.

    Raises:
        TrainingError: Another process trains into the folder.
    """
    with open(folder / ".lock", "wb") as file:
        _lock(file.fileno(), folder)
        for temporary in folder.glob(".*.tmp"):
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)
        yield


def _lock(descriptor: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # no Unix
        return
    try:  # a lock of the process: it ends with it, and workers do not inherit it
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise TrainingError(f"another process trains into {folder}: wait for it, or use another folder") from error
    except OSError:
        return  # a file system without locks
