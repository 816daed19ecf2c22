"""From a setting to a call: model, inputs and the way it is launched, checked before it is handed out."""

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from cast.models import Cast

from . import gate
from .harness import capture
from .inputs import Maker, normalised, photos, worker_maker
from .models import build
from .published import PublishedForward
from .setting import DTYPES, Setting


@dataclass(frozen=True)
class Path:
    """A call that is ready to be measured.

    Attributes:
        call: Runs one batch.
        error: Distance of the logits from the float64 reference, relative to its norm.
        note: What the columns of the setting do not say.
        peak: MiB that one run allocates at its peak, weights and inputs included; None where PyTorch does not
            count. Of a graph, what the same run allocates without it.
    """

    call: Callable[[], object]
    error: float
    note: str = ""
    peak: float | None = None


class Workshop:
    """Makes paths; a reference is computed once for all paths that share it.

    Args:
        device: Where models run.
        workers: Threads that make superpixels where a setting says "workers".
    """

    def __init__(self, device: torch.device, workers: int) -> None:
        self.device = device
        self.workers = workers
        self._pool = ThreadPoolExecutor(workers)
        self._references: dict[tuple[object, ...], gate.Outcome] = {}

    def clear(self) -> None:
        """Let go of what paths that are no longer used have left on the device and in the compiler."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        torch.compiler.reset()

    def path(self, setting: Setting) -> Path:
        """Make the call of a setting and check what it computes.

        Raises:
            Missing: The model cannot be built here.
            Refused: It computes something else than its float64 reference.
        """
        original = build(setting.model, setting.size, setting.quality)
        images = photos(setting.batch, setting.size)
        maker, note = self._maker(original, setting)
        expected = self._reference(original, images, maker, setting)
        held = torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0
        model = original.to(self.device, DTYPES[setting.dtype])
        inputs, before = self._inputs(model, images, maker, setting)

        rows = gate.checked_images(setting.batch)
        if before is not None:
            before()
        with torch._dynamo.config.patch(recompile_limit=64):  # all models of a class share a cache of 8
            plain = self._launch(model, inputs, _eager_for_graph(setting), rows)
            peak = self._peak(plain, held)
            run = plain if setting.launch != "graph" else self._launch(model, inputs, setting, rows)
            error = gate.check(expected, gate.observe(run, model, rows), setting.dtype)
            if setting.trained:
                run = self._train_call(model, inputs, setting)
        return Path(run if before is None else lambda: (before(), run()), error, note, peak)

    def _train_call(self, model: nn.Module, inputs: tuple[Tensor, ...], setting: Setting) -> Callable[[], Tensor]:
        """The call in train mode, which has no reference: checked against the eager one, itself right in eval mode."""
        rows = range(setting.batch)
        eager = self._launch(model.train(), inputs, replace(setting, launch="eager"))
        expected = gate.observe(eager, model, rows)
        run = self._launch(model, inputs, setting)
        gate.check(expected, gate.observe(run, model, rows), setting.dtype)
        return run

    def _maker(self, model: nn.Module, setting: Setting) -> tuple[Maker | None, str]:
        model = model.model if isinstance(model, PublishedForward) else model
        if not isinstance(model, Cast):
            return None, ""
        if setting.superpixels != "workers":
            return model.superpixels, ""
        make, name = worker_maker(model, self._pool)
        return make, f"{name} on {self.workers} threads"

    def _reference(self, model: nn.Module, images: Tensor, maker: Maker | None, setting: Setting) -> gate.Outcome:
        rows = gate.checked_images(setting.batch)
        source = (setting.superpixels == "workers", setting.quality)
        key = (setting.model, setting.size, source, setting.trained, *rows)
        if key not in self._references:
            few = images[rows]
            labels = () if maker is None else (maker(few),)
            self._references[key] = gate.reference(model, (normalised(few), *labels), gradients=setting.trained)
        return self._references[key]

    def _inputs(
        self, model: nn.Module, images: Tensor, maker: Maker | None, setting: Setting
    ) -> tuple[tuple[Tensor, ...], Callable[[], object] | None]:
        """Return the inputs on the device, and what has to happen before each run of the model."""
        if setting.superpixels == "made":
            few = images[gate.checked_images(setting.batch)]
            gate.check_superpixels(model, few.to(self.device), maker(few))
            return (images.to(self.device),), None
        pixels = normalised(images).to(self.device, DTYPES[setting.dtype])
        if maker is None:
            return (pixels,), None
        labels = maker(images).to(self.device)
        if setting.superpixels == "given":
            return (pixels, labels), None
        return (pixels, labels), lambda: labels.copy_(maker(images))  # in place, where a graph reads them

    def _launch(
        self, model: nn.Module, inputs: tuple[Tensor, ...], setting: Setting, rows: list[int] | None = None
    ) -> Callable[[], Tensor]:
        """Return the call that runs a model; its gradients are of the loss of ``rows`` of the batch, or of all."""
        run = model
        if setting.launch == "compile":
            run = torch.compile(model, fullgraph=True, dynamic=False)  # else the second batch size is compiled for any
        if not setting.trained:

            @torch.no_grad()
            def call() -> Tensor:
                return run(*inputs)
        else:

            def call() -> Tensor:
                for parameter in model.parameters():
                    parameter.grad = None
                logits = run(*inputs)
                gate.loss(logits if rows is None else torch.stack([logits[i] for i in rows])).backward()
                return logits.detach()  # with its graph it would bind gradients to the stream of this run

        return self._recorded(call, model) if setting.launch == "graph" else call

    def _recorded(self, call: Callable[[], Tensor], model: nn.Module) -> Callable[[], Tensor]:
        kept: list[Tensor] = []  # a graph writes where its capture did
        replay = capture(lambda: kept.append(call()), self.device)
        del kept[:-1]
        gradients = [(p, p.grad) for p in model.parameters() if p.grad is not None]
        for tensor in (kept[-1], *(gradient for _, gradient in gradients)):
            tensor.fill_(torch.nan)  # only a replay can make it right

        def replayed() -> Tensor:
            replay()
            for parameter, gradient in gradients:
                parameter.grad = gradient
            return kept[-1]

        return replayed

    def _peak(self, call: Callable[[], object], held: int) -> float | None:
        if self.device.type != "cuda":
            return None
        call()  # compiles, loads, tunes
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        call()
        torch.cuda.synchronize(self.device)
        return (torch.cuda.max_memory_allocated(self.device) - held) / 2**20


def _eager_for_graph(setting: Setting) -> Setting:
    return replace(setting, launch="eager") if setting.launch == "graph" else setting
