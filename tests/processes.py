"""Processes of their own for what tests run, forked from a server that has imported torch: importing it takes seconds.

Each worker of pytest has one server, which starts when it is first asked for a process.
"""

import multiprocessing
import os
import runpy
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

multiprocessing.set_forkserver_preload(
    [
        "torch._dynamo",
        "torch.distributed.fsdp",
        "torch.distributed.checkpoint.state_dict",
        "cast.train.loop",
        "cast.cli",
    ]
)
CONTEXT = multiprocessing.get_context("forkserver")
STREAMS = ("stdin", "stdout", "stderr")
HANDLERS = {  # by default; under `nohup` SIGHUP is ignored, in the background SIGINT
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}


def start(function, *arguments, folder, closed=()):
    """Call ``function`` in a process that writes to ``folder``/stdout and stderr, but for streams that are closed."""
    for name in STREAMS[1:]:
        (Path(folder) / name).write_text("")
    job = CONTEXT.Process(target=_enter, args=(function, arguments, Path(folder), closed))
    job.start()
    return job


def run(function, *arguments, folder, closed=(), timeout=120):
    """`start`, wait, and return what `subprocess.run` would."""
    return finish(start(function, *arguments, folder=folder, closed=closed), folder, timeout)


def finish(job, folder, timeout=120):
    """Wait for a process that `start` has started."""
    job.join(timeout)
    if job.is_alive():
        job.kill()
        job.join()
        raise AssertionError("a process hangs")
    out, err = ((Path(folder) / name).read_text() for name in STREAMS[1:])
    return SimpleNamespace(returncode=job.exitcode, stdout=out, stderr=err)


def module(name, *arguments):
    """``python -m name arguments``, for `start` and `run`."""
    sys.argv = [name, *map(str, arguments)]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _enter(function, arguments, folder, closed):
    for number, name in enumerate(STREAMS):
        if number:
            file = os.open(folder / name, os.O_WRONLY)
            os.dup2(file, number)
            os.close(file)
    for number, name in enumerate(STREAMS):
        if name in closed:
            os.close(number)
            setattr(sys, name, None)  # as Python finds it at its start
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)
    torch.set_num_threads(1)
    function(*arguments)
