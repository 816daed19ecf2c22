"""A model as one CUDA graph: an image goes in, logits and hierarchy come out, with a single launch from the host."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from cast.models.base import ImageModel
from cast.models.inputs import channels_first
from cast.models.trunk import Trunk

_WARM_UPS = 3  # runs before the capture: the first compiles kernels, libraries choose algorithms and allocate


class CapturedModel:
    """A CUDA graph of a model at one batch and image size; `ImageModel.capture` makes it.

    Called with new images, it copies them into its own buffers, replays the graph and returns what the model returned
    when it was captured: **always the same tensors, which the next call overwrites**. Copy what has to last longer.

    All is enqueued on the current stream and nothing waits for the device. Calls of one captured model, and of those
    that share its memory pool, must not run at the same time: their buffers are the same.

    The graph reads the weights where they lay when it was captured, and keeps that memory alive. Weights that are
    changed in place (an optimizer, ``load_state_dict``) take effect; after ``model.to(...)``, ``half()`` or another
    granularity, capture anew.

    Attributes:
        image: The static input ``[B, C, H, W]``.
        labels: The static superpixels ``[B, H, W]`` int32, or None where the model makes its own.
        output: What every call returns.
        pool: Identifies the graph's memory, for ``capture(..., pool=)``.
    """

    def __init__(self, model: ImageModel, image: Tensor, labels: Tensor | None, options: dict[str, Any]) -> None:
        self.image, self.labels = image, labels
        pool = options.pop("pool")
        self._weights = [t.detach() for t in (*model.parameters(), *model.buffers())]
        self._graph = torch.cuda.CUDAGraph()

        def run() -> Any:
            return _run(model, self.image, self.labels, **options)

        with torch.cuda.device(image.device), torch.inference_mode(), _autocast_without_cache():
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    run()
                _check_no_wait(run)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(self._graph, pool=pool, stream=stream):
                self.output = run()
        self.pool = self._graph.pool()

    def __call__(self, image: Tensor, labels: Tensor | None = None) -> Any:
        """Run the model on other images.

        Args:
            image: As `image`, in its shape and dtype, or uint8 ``[B, H, W, 3]``; on any device. Copies from pinned
                memory do not wait.
            labels: Superpixels in the shape of `labels`, any integer dtype, for a model captured with ``labels=True``.

        Returns:
            `output`, overwritten.

        Raises:
            TypeError: An input is not a tensor, or of another dtype.
            ValueError: An input has another shape, is missing, or was not captured.
        """
        image = channels_first(image, self.image.shape[1], 1)
        if image.dtype != self.image.dtype:
            raise TypeError(f"expected an image in {self.image.dtype}, as captured, got {image.dtype}")
        if image.shape != self.image.shape:
            raise ValueError(f"expected an image {tuple(self.image.shape)}, as captured, got {tuple(image.shape)}")
        self._check_labels(labels)
        self.image.copy_(image, non_blocking=True)
        if labels is not None:
            self.labels.copy_(labels, non_blocking=True)
        return self.replay()

    def replay(self) -> Any:
        """Run the model on what `image` and `labels` hold, and return `output`, overwritten."""
        self._graph.replay()
        return self.output

    def _check_labels(self, labels: Tensor | None) -> None:
        if (labels is None) != (self.labels is None):
            raise ValueError(
                "expected no labels: the model was captured with the superpixels that it makes itself"
                if self.labels is None
                else "expected labels: the model was captured with labels=True"
            )
        if labels is None:
            return
        if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
            raise TypeError(f"expected integer labels, got {getattr(labels, 'dtype', type(labels).__name__)}")
        if labels.shape != self.labels.shape:
            raise ValueError(f"expected labels {tuple(self.labels.shape)}, as captured, got {tuple(labels.shape)}")


def capture(
    model: ImageModel,
    batch: int,
    size: int | tuple[int, int],
    *,
    labels: bool = False,
    num_segments: int | None = None,
    num_superpixels: int | None = None,
    hierarchy: bool = True,
    dtype: torch.dtype = torch.uint8,
    pool: Any = None,
) -> CapturedModel:
    """Record a model's work on a CUDA device as one graph; arguments are those of `ImageModel.capture`."""
    height, width = (size, size) if isinstance(size, int) else size
    for name, value in (("batch", batch), ("height", height), ("width", width)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"expected {name} to be an integer of at least 1, got {value!r}")
    if dtype != torch.uint8 and not dtype.is_floating_point:
        raise TypeError(f"expected dtype uint8 or floating point, got {dtype}")
    segments = isinstance(model, Trunk)
    if not segments and (labels or num_segments is not None or num_superpixels is not None):
        raise ValueError(f"expected no superpixels: {type(model).__name__} is a model of patches")
    if labels and num_superpixels is not None:
        raise ValueError("expected either labels or num_superpixels: the latter says how the model makes its own")
    if model.training:
        raise ValueError("expected a model in eval mode: call eval() before capture()")
    device = model.cls_token.device
    if device.type != "cuda":
        raise ValueError(f"expected a model on a CUDA device, got one on {device}: CUDA graphs are of CUDA work alone")
    image = torch.zeros(batch, model.config.in_chans, height, width, dtype=dtype, device=device)
    maps = None
    if labels:
        # What the warm-up sees: superpixels of all numbers there are, in the order of the pixels.
        maps = torch.arange(height * width, dtype=torch.int32, device=device).view(height, width)
        maps = maps.remainder(num_segments or _default_count(model, height, width)).repeat(batch, 1, 1)
    options = {"pool": pool}
    if segments:
        options |= {"num_segments": num_segments, "num_superpixels": num_superpixels, "hierarchy": hierarchy}
    return CapturedModel(model, image, maps, options)
