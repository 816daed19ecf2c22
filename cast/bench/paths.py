"""From a setting to a call: model, inputs and the way it is launched, checked before it is handed out."""

from collections.abc import Callable
from dataclasses import dataclass

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
    """

    call: Callable[[], object]
    error: float
    note: str = ""


class Workshop:
    """Makes paths; a reference is computed once for all paths that share it.

    Args:
        device: Where models run.
        workers: Threads that make superpixels where a setting says "workers".
    """

    def __init__(self, device: torch.device, workers: int) -> None:
        self.device = device
        self.workers = workers
        self._references: dict[tuple[object, ...], gate.Reference] = {}

    def path(self, setting: Setting) -> Path:
        """Make the call of a setting and check what it computes.

        Raises:
            Missing: The model cannot be built here.
            Refused: It computes something else than its float64 reference.
        """
        original = build(setting.model, setting.size)
        images = photos(setting.batch, setting.size)
        maker, note = self._maker(original, setting)
        expected = self._reference(original, images, maker, setting)
        model = original.to(self.device, DTYPES[setting.dtype])
        inputs, before = self._inputs(model, images, maker, setting)

        check = _launch(model, inputs, setting, checking=True)
        if before is not None:
            before()
        error = gate.check(expected, check, model, setting.dtype)
        trained = setting.direction != "forward"
        run = _launch(model.train(), inputs, setting, checking=False) if trained else check
        return Path(run if before is None else lambda: (before(), run()), error, note)

    def _maker(self, model: nn.Module, setting: Setting) -> tuple[Maker | None, str]:
        model = model.model if isinstance(model, PublishedForward) else model
        if not isinstance(model, Cast):
            return None, ""
        return worker_maker(model, self.workers) if setting.superpixels == "workers" else (model.superpixels, "")

    def _reference(self, model: nn.Module, images: Tensor, maker: Maker | None, setting: Setting) -> gate.Reference:
        few = images[: gate.IMAGES]
        key = (setting.model, setting.size, setting.superpixels == "workers", len(few))
        if key not in self._references:
            labels = () if maker is None else (maker(few),)
            self._references[key] = gate.reference(model, (normalised(few), *labels))
        return self._references[key]

    def _inputs(
        self, model: nn.Module, images: Tensor, maker: Maker | None, setting: Setting
    ) -> tuple[tuple[Tensor, ...], Callable[[], object] | None]:
        """Return the inputs on the device, and what has to happen before each run of the model."""
        if setting.superpixels == "made":
            gate.check_superpixels(model, images[: gate.IMAGES].to(self.device), maker(images[: gate.IMAGES]))
            return (images.to(self.device),), None
        pixels = normalised(images).to(self.device, DTYPES[setting.dtype])
        if maker is None:
            return (pixels,), None
        labels = maker(images).to(self.device)
        if setting.superpixels == "given":
            return (pixels, labels), None
        return (pixels, labels), lambda: labels.copy_(maker(images))  # in place, where a graph reads them


def _launch(model: nn.Module, inputs: tuple[Tensor, ...], setting: Setting, *, checking: bool) -> Callable[[], Tensor]:
    """Return the call that runs a model; while checking, its gradients are those of the first images alone."""
    run = torch.compile(model, fullgraph=True) if setting.launch == "compile" else model
    if setting.direction == "forward":

        @torch.no_grad()
        def call() -> Tensor:
            return run(*inputs)
    else:

        def call() -> Tensor:
            for parameter in model.parameters():
                parameter.grad = None
            logits = run(*inputs)
            gate.loss(logits[: gate.IMAGES] if checking else logits).backward()
            return logits

    if setting.launch != "graph":
        return call
    kept = []  # a graph writes where its capture did
    replay = capture(lambda: kept.append(call()))

    def replayed() -> Tensor:
        replay()
        return kept[-1]

    return replayed
