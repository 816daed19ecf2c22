"""A model as one CUDA graph: an image goes in, logits and hierarchy come out, for one launch from the host."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cast.models.base import ImageModel
from cast.models.inputs import channels_first
from cast.models.trunk import Trunk

_WARM_UPS = 3  # runs before the capture: kernels are compiled, libraries choose algorithms and allocate workspaces


class CapturedModel:
    """A CUDA graph of a model at one batch and image size; `ImageModel.capture` makes it.

    Called with new images, it copies them into its own buffer, replays the graph and returns what the model returned
    when it was captured: **always the same tensors, which the next call overwrites**. Clone what has to last longer.

    All is enqueued on the current stream of the model's device, and nothing waits for it. Calls of one captured model,
    and of those that share its memory pool, must not run at the same time: their buffers are the same.

    The graph reads the weights where they lay when it was captured, and keeps that memory alive. Weights that are
    changed in place (an optimizer, ``load_state_dict``) take effect at the next call; after ``model.to(...)``,
    ``half()`` or another granularity, capture anew.

    Attributes:
        image: The static input ``[B, C, H, W]``.
        labels: The static superpixels ``[B, H, W]`` int32, or None where the model makes its own.
        output: What every call returns.
        pool: Identifies the graph's memory, for ``capture(..., pool=)``.
    """

    def __init__(
        self, model: ImageModel, image: Tensor, labels: Tensor | None, run: Callable[..., Any], pool: Any
    ) -> None:
        self.image, self.labels = image, labels
        self._weights = [t.detach() for t in (*model.parameters(), *model.buffers())]
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(image.device), torch.no_grad(), _autocast_without_cache():
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    run(image, labels)
                _check_waits_for_nothing(lambda: run(image, labels))
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(self._graph, pool=pool, stream=stream):
                self.output = run(image, labels)
        self.pool = self._graph.pool()

    def __call__(self, image: Tensor, labels: Tensor | None = None) -> Any:
        """Run the model on other images.

        Args:
            image: In the shape and dtype of the attribute `image`, or uint8 ``[B, H, W, 3]``; on any device. A copy
                from pinned memory does not wait.
            labels: Superpixels in the shape of the attribute `labels`, integer, for a model captured with
                ``labels=True``.

        Returns:
            The attribute `output`, overwritten.

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
        with torch.cuda.device(self.image.device):
            self.image.copy_(image, non_blocking=True)
            if labels is not None:
                self.labels.copy_(labels, non_blocking=True)
            return self.replay()

    def replay(self) -> Any:
        """Run the model on what `image` and `labels` hold, and return `output`, overwritten."""
        with torch.cuda.device(self.image.device):
            self._graph.replay()
        return self.output

    def _check_labels(self, labels: Tensor | None) -> None:
        if labels is None and self.labels is None:
            return
        if labels is None:
            raise ValueError("expected labels: the model was captured with labels=True")
        if self.labels is None:
            raise ValueError("expected no labels: the model was captured with the superpixels that it makes itself")
        if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
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
    """Record a model's work on a CUDA device as one graph; see `ImageModel.capture`."""
    height, width = size if isinstance(size, tuple) else (size, size)
    for name, value in (("batch", batch), ("height", height), ("width", width)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"expected {name} to be an integer of at least 1, got {value!r}")
    if dtype != torch.uint8 and not dtype.is_floating_point:
        raise TypeError(f"expected dtype uint8 or floating point, got {dtype}")
    if model.training:
        raise ValueError("expected a model in eval mode: call eval() before capture()")
    if labels and num_superpixels is not None:
        raise ValueError("expected labels or num_superpixels, got both: the latter is how the model makes its own")
    if isinstance(model, Trunk):
        if num_segments is None:
            num_segments = model.count_superpixels(height, width, num_superpixels)
    elif labels or num_segments is not None or num_superpixels is not None:
        raise ValueError(f"expected no superpixels: {type(model).__name__} is a model of patches")
    device = model.cls_token.device
    if device.type != "cuda":
        raise ValueError(f"expected a model on a CUDA device, got one on {device}: CUDA graphs hold CUDA work alone")

    image = torch.zeros(batch, model.config.in_chans, height, width, dtype=dtype, device=device)
    maps = torch.zeros(batch, height, width, dtype=torch.int32, device=device) if labels else None
    return CapturedModel(model, image, maps, _runner(model, num_segments, num_superpixels, hierarchy), pool)


def _runner(
    model: ImageModel, num_segments: int | None, num_superpixels: int | None, hierarchy: bool
) -> Callable[[Tensor, Tensor | None], Any]:
    """Return what is to be captured, a function of image and labels."""
    if not isinstance(model, Trunk):
        return lambda image, _: model(image)

    def run(image: Tensor, labels: Tensor | None) -> Any:
        if hierarchy:
            return model.forward_hierarchy(image, labels, num_segments, num_superpixels)
        if labels is None and num_superpixels is not None:
            labels = model.superpixels(image, num_superpixels)
        return model(image, labels, num_segments)

    return run


def _autocast_without_cache() -> torch.autocast:
    """The caller's autocast, without the casts that it keeps: they are freed while the graph still reads them."""
    enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    return torch.autocast("cuda", dtype=dtype, enabled=enabled, cache_enabled=False)


def _check_waits_for_nothing(run: Callable[[], Any]) -> None:
    """Raise a ValueError where the host would wait for the device, which cannot be captured."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        raise ValueError(
            f"cannot capture a model that waits for the device ({str(error).splitlines()[0]}). If that is the model "
            "making its superpixels, for which this build of cast-kernels has no CUDA code, capture with labels=True"
        ) from error
    finally:
        torch.cuda.set_sync_debug_mode(before)
