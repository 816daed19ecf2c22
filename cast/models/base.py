"""What every model has: normalised images, a position table of the stem grid, a classifier that can be replaced."""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from cast.layers import resize_pos_embed, sincos_2d

from .config import CastSegConfig, ImageConfig
from .features import Intermediates, check_global_pool
from .fuse import fold_batch_norms
from .init import init_linear
from .saving import Saving

if TYPE_CHECKING:
    from cast.capture import CapturedModel


class ImageModel(Saving, Intermediates, nn.Module):
    """The base of all models: settings, and buffers that a state dict does not hold.

    A model defines ``cls_token``, ``pos_embed`` and ``head``, and ends its ``__init__`` with
    `init_weights` and `_complete_init`.

    Args:
        config: The settings; kept as ``model.config``.

    Attributes:
        cls_token: ``[1, 1, C]``.
        head: The classifier, or the identity for ``num_classes=0``.
        image_mean: ``[1, 3, 1, 1]``, what uint8 images are normalised with: a buffer that is not saved and that stays
            float32 whatever the model is cast to.
        image_std: The same.
    """

    cls_token: nn.Parameter
    pos_embed: Tensor
    head: nn.Module
    image_mean: Tensor
    image_std: Tensor

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        self.config = config
        self.grad_checkpointing = False
        for name in ("image_mean", "image_std"):
            self.register_buffer(name, torch.empty(1, config.in_chans, 1, 1), persistent=False)
        self.register_load_state_dict_pre_hook(_before_loading)
        self.register_load_state_dict_post_hook(_after_loading)

    def _complete_init(self) -> None:
        """Bring a model whose modules are all there to the state that its config asks for."""
        self.init_non_persistent_buffers()
        if self.config.fused:
            fold_batch_norms(self)
            self.eval()

    def _grid_side(self) -> int:
        """Return the rows and columns of the stem grid at ``config.img_size``."""
        return self.config.img_size // self.config.stride

    def init_non_persistent_buffers(self) -> None:
        """Compute what a state dict does not hold: the sin-cos table, and the mean and deviation of images.

        Called when weights are loaded; after `to_empty` without loading, call it yourself. They follow the device of
        the class token, and the table its dtype.
        """
        if "pos_embed" in self._buffers:
            self.pos_embed = fixed_positions(self.config).to(self.cls_token)
        self._set_image_statistics(self.cls_token.device)

    def _set_image_statistics(self, device: torch.device) -> None:
        for name in ("mean", "std"):
            values = torch.tensor(getattr(self.config, name), dtype=torch.float32, device="cpu")
            setattr(self, f"image_{name}", values.view(1, -1, 1, 1).to(device))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Do what `nn.Module` does for `to`, `half` and the like, but keep the image statistics in float32."""
        super()._apply(fn, recurse)
        if self.image_mean.dtype != torch.float32:
            self._set_image_statistics(self.image_mean.device)
        return self

    def fuse(self) -> Self:
        """Return a copy for inference whose batch norms are folded into the layers beside them; this model stays.

        The outputs are those of this model to rounding: the products are computed in float64 and rounded once. The
        copy's ``config.fused`` is True, so its state dict loads into a model built from that config, and into no other.
        Load and fine-tune weights before. The copy of a fused model is equal to it.

        Raises:
            ValueError: The model is in train mode, where batch norms use the statistics of the batch.
        """
        if self.training or any(module.training for module in self.modules()):
            raise ValueError("expected a model in eval mode: call eval() before fuse()")
        fused = copy.deepcopy(self)
        fold_batch_norms(fused)
        fused.config = dataclasses.replace(self.config, fused=True)
        return fused

    def capture(
        self,
        batch: int,
        size: int | tuple[int, int],
        *,
        labels: bool = False,
        num_segments: int | None = None,
        num_superpixels: int | None = None,
        hierarchy: bool = True,
        dtype: torch.dtype = torch.uint8,
        pool: Any = None,
    ) -> "CapturedModel":
        """Record the model's work at one batch and image size as a CUDA graph, which one launch replays.

        It runs a few times on a stream of its own first, without gradients and under the caller's autocast.

        Args:
            batch: Number of images B.
            size: Height and width of the images, or both as one number.
            labels: Whether superpixels are an input; otherwise making them is part of the graph. Not for `ViT`.
            num_segments: As in `forward`; None = as many as `superpixels` makes.
            num_superpixels: As in `superpixels`.
            hierarchy: Whether `forward_hierarchy` is captured instead of `forward`. Not for `ViT`.
            dtype: Of the images: uint8, or floating point for normalised ones.
            pool: Memory to share with another captured model, its ``pool``, or a `torch.cuda.graph_pool_handle`. Those
                that share may not run at the same time, and what one returns is overwritten by the other.

        Returns:
            The `CapturedModel`, to be called with images, and labels if they are an input.

        Raises:
            TypeError: ``dtype`` is neither.
            ValueError: The model is in train mode or not on a CUDA device, an argument does not fit, or the model waits
                for the device, as where this build has no CUDA code for superpixels.
        """
        from cast.capture import capture

        return capture(
            self,
            batch,
            size,
            labels=labels,
            num_segments=num_segments,
            num_superpixels=num_superpixels,
            hierarchy=hierarchy,
            dtype=dtype,
            pool=pool,
        )

    def train(self, mode: bool = True) -> Self:
        """Choose train or eval mode, as for any `nn.Module`.

        Raises:
            ValueError: Train mode is asked of a fused model, which has no batch norms to train with.
        """
        if mode and self.config.fused:
            raise ValueError("a fused model is for inference only: train the model that fuse() was called on")
        return super().train(mode)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one, or for ``num_classes=0`` by the identity; updates ``config``.

        Args:
            num_classes: Width of the classifier.
            global_pool: timm's way to choose what the classifier sees; None or "token", as that cannot be chosen here.

        Raises:
            ValueError: ``num_classes`` is no integer of at least 0, or ``global_pool`` is another; the model is as
                before then.
        """
        check_global_pool(global_pool)
        config = dataclasses.replace(self.config, num_classes=num_classes)
        head: nn.Module = nn.Identity()
        if num_classes:
            head = nn.Linear(config.embed_dim, num_classes, device=self.cls_token.device, dtype=self.cls_token.dtype)
            init_linear(head, config.init)
        self.config, self.head = config, head

    def no_weight_decay(self) -> set[str]:
        """Return the parameters, besides biases and norms, that the published DeiT training does not decay."""
        return {"cls_token", "pos_embed"} & {name for name, _ in self.named_parameters()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Choose whether training recomputes the blocks' activations in the backward pass, to save memory."""
        self.grad_checkpointing = enable


def _before_loading(model: ImageModel, state_dict: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    if model.config.fused and f"{prefix}stem.layers.0.norm.weight" in state_dict:
        raise ValueError("expected the weights of a fused model: load these before fuse()")
    if not model.config.fused and f"{prefix}stem.layers.0.conv.bias" in state_dict:
        raise ValueError("these are the weights of a fused model: load them into one built with fused=True")


def fixed_positions(config: ImageConfig) -> Tensor:
    """Return the sin-cos table ``[1, N, C]`` of a model, float32, on the CPU whatever device the model is made on.

    It is that of the grid of ``img_size``; with ``pos_embed_size`` that of another size, resized (bicubic) to the grid.
    """
    side = config.img_size // config.stride
    first = config.pos_embed_size // config.stride if isinstance(config, CastSegConfig) else 0
    first = first or side
    table = sincos_2d(first, first, config.embed_dim, device="cpu")
    return resize_pos_embed(table, (first, first), (side, side))


def _after_loading(model: ImageModel, _incompatible_keys: Any) -> None:
    model.init_non_persistent_buffers()  # a model built on the meta device has none until now
