"""timm's way to ask any model for features, parameter groups and data settings.

The names, arguments and defaults are those of https://huggingface.co/docs/timm/feature_extraction; what differs is that
a level of CAST has segments instead of a grid.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from cast.layers import resize_labels, tokens_to_pixels

from .config import CastConfig, CastSegConfig, ImageConfig

_TOKENS, _MAPS = ("NLC", "tokens"), ("NCHW", "maps")


class Features:
    """What every model tells of itself."""

    config: ImageConfig
    _pretrained_cfg: dict[str, Any] | None = None

    @property
    def num_classes(self) -> int:
        """Width of the classifier, 0 without one."""
        return self.config.num_classes

    @property
    def num_features(self) -> int:
        """Width C of the tokens."""
        return self.config.embed_dim

    @property
    def head_hidden_size(self) -> int:
        """Width of what the classifier sees."""
        return self.config.embed_dim

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """What a data pipeline needs to know, under timm's names; see `data_settings`. May be replaced."""
        return data_settings(self.config) if self._pretrained_cfg is None else self._pretrained_cfg

    @pretrained_cfg.setter
    def pretrained_cfg(self, settings: dict[str, Any] | None) -> None:
        self._pretrained_cfg = settings

    default_cfg = pretrained_cfg

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Per index of `forward_intermediates`: ``module``, ``num_chs``, ``reduction`` and ``index``."""
        stride = self.config.stride
        return [
            {"module": name, "num_chs": self.config.embed_dim, "reduction": stride, "index": i}
            for i, name in enumerate(self._feature_modules())
        ]

    def get_classifier(self) -> nn.Module:
        """Return the module that makes logits: ``head``, or the decoder of a model that has one."""
        return self.decoder if hasattr(self, "decoder") else self.head

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that order the parameters by depth, for layer-wise learning rates.

        In ``timm.optim`` each block and each pool is a layer; the embedding comes first, the classifier or decoder
        last. With ``coarse`` each stage is one.
        """
        stages = r"^stages\.(\d+)\."
        fine = [(rf"{stages}blocks\.(\d+)\.", None), (rf"{stages}pool\.", (9998,)), (r"^blocks\.(\d+)\.", None)]
        return {
            "stem": r"^(?:cls_token|pos_embed|stem\.)",
            "blocks": [
                *([(stages, None), (r"^blocks\.(\d+)\.", None)] if coarse else fine),
                (r"^fusion\.", (99998,)),
                (r"^norm\.", (99999,)),  # timm's number for "with the layer before"
            ],
        }


def data_settings(config: ImageConfig) -> dict[str, Any]:
    """Return the settings of a model's data pipeline under timm's names, and those of its superpixels.

    Images are evaluated as published: classifiers see the central square of an image whose short side is 8 / 7 of
    ``img_size``, resized by the filter of their family; dense models see whole images.
    """
    whole = isinstance(config, CastSegConfig) and config.stage != "pretrain"
    settings = {
        "url": "",
        "input_size": (config.in_chans, config.img_size, config.img_size),
        "fixed_input_size": False,
        "pool_size": None,
        "num_classes": config.num_classes,
        "interpolation": "bicubic" if config.init == "deit" else "bilinear",
        "crop_pct": 1.0 if whole else 0.875,
        "crop_mode": "center",
        "mean": config.mean,
        "std": config.std,
        "first_conv": "stem.layers.0.conv",
        "classifier": "decoder" if hasattr(config, "decoder") else "head",
    }
    if isinstance(config, CastConfig):
        settings["superpixels"] = config.to_dict()["superpixels"]
    return settings


class LevelFeatures(NamedTuple):
    """The features of one level."""

    tokens: Tensor  # [B, N, C] one per segment
    labels: Tensor  # [B, H, W] int32, the segment of each pixel; -1 where it belongs to none
    cls: Tensor  # [B, 1, C] the class token at this level


def take_indices(count: int, indices: int | Sequence[int] | None) -> list[int]:
    """Return which of ``count`` outputs are meant: all for None, the last n for an int, negative ones from the end.

    Raises:
        TypeError: An index is no integer.
        ValueError: There is no such output, or none is asked for.
    """
    if indices is None:
        return list(range(count))
    try:
        asked = list(range(-operator.index(indices), 0)) if not isinstance(indices, Sequence) else list(indices)
        taken = [i + count if operator.index(i) < 0 else operator.index(i) for i in asked]
    except TypeError:
        raise TypeError(f"expected indices to be None, an integer or a sequence of integers, got {indices!r}") from None
    if not taken or not all(0 <= i < count for i in taken):
        raise ValueError(f"expected indices of {count} levels, got {indices!r}")
    return taken


def check_format(output_fmt: str) -> bool:
    """Return whether a format is one of maps.

    Raises:
        ValueError: There is no such format.
    """
    if output_fmt not in _TOKENS + _MAPS:
        raise ValueError(f"expected output_fmt to be one of {', '.join(_TOKENS + _MAPS)}, got {output_fmt!r}")
    return output_fmt in _MAPS


def check_global_pool(global_pool: str | None) -> None:
    """Check what timm's scripts choose for the classifier to see.

    Raises:
        ValueError: It is neither None nor "token".
    """
    if global_pool not in (None, "token"):
        raise ValueError(f"expected global_pool='token', which is all that these models have, got {global_pool!r}")


class Run(NamedTuple):
    """What a model made of an image on the way."""

    features: Tensor | None  # what `forward_features` returns, if it was asked for
    levels: list[tuple[Tensor, Tensor]]  # tokens [B, N, C] and class token [B, 1, C]
    label_map: Callable[[int], Tensor]  # of a level, [B, H, W] int32, -1 outside all segments
    grid: tuple[int, int]  # rows and columns of the stem's output


class Intermediates(Features):
    """`forward_intermediates` and `forward_levels`, for which a model defines `_run_levels` and `_feature_modules`."""

    norm: nn.Module

    def forward_intermediates(
        self,
        image: Tensor,
        *args: Any,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        **options: Any,
    ) -> Any:
        """Return the tokens of levels along the way, besides the final features.

        Args:
            image: As in `forward`.
            *args: Labels and their number, as in `forward`.
            indices: Which levels (stages; for a patch transformer, blocks): None = all, an integer n = the last n.
            return_prefix_tokens: Whether each level comes as a pair ``(tokens or map, class token [B, 1, C])``.
            norm: Whether the final norm is applied to each level.
            stop_early: Whether stages after the last one asked for are left out; only with ``intermediates_only``, as
                the final features need all.
            output_fmt: "NLC" or "tokens": ``[B, N, C]``, one token per segment; "NCHW" or "maps": ``[B, C, H / s,
                W / s]``, where each cell of the stem grid (s = 8; rounded up) has the token of the segment that its
                top-left pixel belongs to, and zeros if that is none.
            intermediates_only: Whether the final features are left out.
            **options: The same as ``args``, by name.

        Returns:
            ``(features, levels)``, where ``features`` is what `forward_features` returns and ``levels`` a list from
            fine to coarse; or the list alone.

        Raises:
            TypeError: As in `forward`, or indices that are no integers.
            ValueError: As in `forward`; or there is no such level or format, or no final norm in this model.
        """
        maps = check_format(output_fmt)
        taken = take_indices(len(self.feature_info), indices)
        if norm and isinstance(self.config, CastSegConfig):
            raise ValueError("dense models have no final norm to apply; pass norm=False")
        last = max(taken) if stop_early and intermediates_only else len(self.feature_info) - 1
        run = self._run_levels(image, *args, last=last, finish=not intermediates_only, **options)
        out: list[Any] = []
        for i in sorted(set(taken)):
            tokens, cls = map(self.norm, run.levels[i]) if norm else run.levels[i]
            if maps:
                tokens = tokens_to_pixels(tokens, resize_labels(run.label_map(i), run.grid))
            out.append((tokens, cls) if return_prefix_tokens else tokens)
        return out if intermediates_only else (run.features, out)

    def forward_levels(
        self, image: Tensor, *args: Any, indices: int | Sequence[int] | None = None, **options: Any
    ) -> list[LevelFeatures]:
        """Return the tokens of levels with the label maps of their segments.

        Arguments and errors are those of `forward_intermediates`.
        """
        taken = take_indices(len(self.feature_info), indices)
        run = self._run_levels(image, *args, last=max(taken), finish=False, **options)
        return [LevelFeatures(run.levels[i][0], run.label_map(i), run.levels[i][1]) for i in sorted(set(taken))]
