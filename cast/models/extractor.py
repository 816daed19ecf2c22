"""Models that return features instead of classes, as `timm.create_model(..., features_only=True)` gives them."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .config import ImageConfig
from .features import LevelFeatures, check_format, take_indices


class FeatureInfo:
    """What `FeatureExtractor` returns, per output; timm's accessors."""

    def __init__(self, info: list[dict[str, Any]], out_indices: Sequence[int]) -> None:
        self.info, self.out_indices = info, tuple(out_indices)

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the channels of each output; of one level, or of several, with ``idx``."""
        return self._get("num_chs", idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return how many pixels wide a cell of the maps is."""
        return self._get("reduction", idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the module that each output comes out of."""
        return self._get("module", idx)

    def get_dicts(
        self, keys: Sequence[str] | None = None, idx: int | Sequence[int] | None = None
    ) -> list[dict[str, Any]]:
        """Return everything that is known of each output, or the values of some keys."""
        chosen = self.out_indices if idx is None else (idx,) if isinstance(idx, int) else idx
        return [{k: v for k, v in self.info[i].items() if keys is None or k in keys} for i in chosen]

    def _get(self, key: str, idx: int | Sequence[int] | None) -> Any:
        if isinstance(idx, int):
            return self.info[idx][key]
        return [self.info[i][key] for i in (self.out_indices if idx is None else idx)]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.info[index]

    def __len__(self) -> int:
        return len(self.info)


class FeatureExtractor(nn.Module):
    """A model that returns features of several levels instead of classes: ``create_model(..., features_only=True)``.

    What these features do not depend on (later stages, the final norm, the head) is frozen, so that training does not
    wait for its gradients.

    Args:
        model: The model; kept as ``model``.
        out_indices: Levels, as ``indices`` of `forward_intermediates`.
        output_fmt: "levels": a `LevelFeatures` per level; or one of the formats of `forward_intermediates`.

    Attributes:
        feature_info: The `FeatureInfo` of the outputs.

    Raises:
        ValueError: A level or a format that is not there.
    """

    def __init__(self, model: Any, out_indices: int | Sequence[int] | None = None, output_fmt: str = "levels") -> None:
        super().__init__()
        if output_fmt != "levels":
            check_format(output_fmt)
        info = model.feature_info
        self.out_indices = tuple(sorted(set(take_indices(len(info), out_indices))))
        self.output_fmt = output_fmt
        self.feature_info = FeatureInfo(info, self.out_indices)
        self.model = model
        used = ("cls_token", "pos_embed", "stem.", *model._modules_until(self.out_indices[-1]))
        for name, p in model.named_parameters():
            if not name.startswith(used):
                p.requires_grad_(False)

    @property
    def config(self) -> ImageConfig:
        """The model's settings."""
        return self.model.config

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Choose whether training recomputes the blocks' activations in the backward pass, to save memory."""
        self.model.set_grad_checkpointing(enable)

    def forward(self, image: Tensor, *args: Any, **options: Any) -> list[LevelFeatures] | list[Tensor]:
        """Return the features of each level, fine to coarse; arguments and errors are those of the model."""
        if self.output_fmt == "levels":
            return self.model.forward_levels(image, *args, indices=self.out_indices, **options)
        return self.model.forward_intermediates(
            image, *args, indices=self.out_indices, output_fmt=self.output_fmt, intermediates_only=True, **options
        )
