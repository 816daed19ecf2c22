"""What every model has: normalised images, a position table of the stem grid, a classifier that can be replaced."""

import dataclasses
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from cast.layers import resize_pos_embed, sincos_2d

from .config import CastSegConfig, ImageConfig
from .features import Intermediates
from .init import init_linear
from .saving import Saving


class ImageModel(Saving, Intermediates, nn.Module):
    """The base of all models: settings, and buffers that a state dict does not hold.

    A model defines ``cls_token``, ``pos_embed`` and ``head``, and ends its ``__init__`` with
    `init_weights` and `init_non_persistent_buffers`.

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
        self.register_load_state_dict_post_hook(_after_loading)

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

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a fresh one, or for ``num_classes=0`` by the identity; updates ``config``.

        Raises:
            ValueError: ``num_classes`` is no integer of at least 0; the model is as before then.
        """
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
