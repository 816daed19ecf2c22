"""The forward pass of a patched vision transformer: timm's own, with pools between the blocks."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cast._patch_grid import gather_rotary, patch_labels, superpixels_of_patches, uint8_image
from cast.hierarchy import Hierarchy
from cast.layers import PoolResult
from cast.models import SuperpixelConfig
from cast.models.features import take_indices
from cast.models.inputs import check_count_covers, check_labels
from cast_kernels import seeds, unpool


class PatchedOutput(NamedTuple):
    """Everything that `PooledVit.forward_hierarchy` computes."""

    logits: Tensor  # [B, num_classes], or whatever the head of the model returns
    features: Tensor  # [B, M + K, C] what forward_features returns: M prefix tokens, then the last segments
    hierarchy: Hierarchy  # label maps and parents of all levels; level 0 are the patches or the superpixels
    pools: tuple[PoolResult, ...]  # what each pool returned, fine to coarse


class PooledVit(nn.Module):
    """What `patch_timm` adds to a timm model's class.

    Deliberately no state but two attributes: the object keeps its identity, weights and hooks, and its class, made by
    `pooled_class`, is timm's with these methods in front.

    Attributes:
        graph_pools: The pools, under the index of the block that each follows.
        superpixel_config: How superpixels are made of an image without labels; None = they are not.
        timm_class: The class without pools.
    """

    graph_pools: nn.ModuleDict
    superpixel_config: SuperpixelConfig | None
    timm_class: type[nn.Module]

    def __reduce_ex__(self, protocol: int) -> tuple[Any, ...]:
        """Pickle and copy by the class without pools, since the one with them has no name in a module."""
        return _new, (self.timm_class,), self.__getstate__()

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        superpixels: Tensor | None = None,
        num_segments: int | None = None,
    ) -> Tensor:
        """Classify images, as timm's ``forward`` does; arguments and errors are those of `forward_features`."""
        return self.forward_head(
            self.forward_features(x, attn_mask, is_causal, superpixels=superpixels, num_segments=num_segments)
        )

    def forward_features(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        superpixels: Tensor | None = None,
        num_segments: int | None = None,
    ) -> Tensor:
        """Return prefix tokens and the tokens of the last segments, after the final norm.

        Args:
            x: Normalised images ``[B, C, H, W]``.
            attn_mask: Refused: tokens change places and number between the blocks.
            is_causal: Refused, for the same reason.
            superpixels: Integer labels ``[B, H, W]``; labels outside ``[0, num_segments)`` belong to no superpixel, and
                a superpixel without a pixel is a zero token, never a centroid as long as others are left. None = made
                of the image where the model was patched to do so, and patches otherwise.
            num_segments: Number of superpixels; None = as many as the model makes of such an image.

        Returns:
            ``[B, M + K, C]`` with M prefix tokens and the K clusters of the last pool.

        Raises:
            TypeError: The labels are no integer tensor.
            ValueError: A mask is given; labels do not fit the image; their number is not known; or there are fewer
                tokens than clusters.
        """
        _refuse_mask(attn_mask, is_causal)
        return self._run(x, superpixels, num_segments).features

    def forward_hierarchy(
        self, x: Tensor, *, superpixels: Tensor | None = None, num_segments: int | None = None
    ) -> PatchedOutput:
        """Classify images and return how patches, or superpixels, were grouped.

        Arguments and errors are those of `forward_features`; patch dropout, which leaves holes, is a ValueError too.
        """
        run = self._run(x, superpixels, num_segments)
        if not run.pools:
            raise ValueError("no pool is left in this model: its blocks were pruned")
        labels = run.labels
        if labels is None:
            labels = patch_labels(self.patch_embed, x, run.pools[0].parents.shape[1])
        hierarchy = Hierarchy.from_assignments(labels, [p.logits for p in run.pools], [p.parents for p in run.pools])
        return PatchedOutput(self.forward_head(run.features), run.features, hierarchy, tuple(run.pools))

    @torch.no_grad()
    def hierarchy(self, x: Tensor, *, superpixels: Tensor | None = None, num_segments: int | None = None) -> Hierarchy:
        """Return the `Hierarchy` alone, without gradients; arguments and errors are those of `forward_features`."""
        return self.forward_hierarchy(x, superpixels=superpixels, num_segments=num_segments).hierarchy

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Any:
        """Return what blocks make of the patches, as timm's ``forward_intermediates`` does.

        Arguments and returns are timm's. After a pool each patch has the token of the segment that it belongs to, so
        that every map is on the patch grid.

        Raises:
            TypeError: Indices are no integers.
            ValueError: A mask is given; the format is neither "NCHW" nor "NLC"; a block does not exist; or the model
                makes superpixels of images, whose tokens are on no grid (`forward_hierarchy` returns those).
        """
        _refuse_mask(attn_mask, is_causal)
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f'expected output_fmt "NCHW" or "NLC", got {output_fmt!r}')
        if self.superpixel_config is not None:
            raise ValueError("tokens of superpixels are on no grid; forward_hierarchy returns them with their labels")
        wanted = sorted(set(take_indices(len(self.blocks), indices)))
        outputs: dict[int, Tensor] = dict.fromkeys(wanted)
        run = self._run(x, None, None, outputs, wanted[-1] + 1 if stop_early else None)
        tokens = [self.norm(t) if norm else t for t in outputs.values()]
        prefixes = [t[:, : self.num_prefix_tokens] for t in tokens]
        maps = [t[:, self.num_prefix_tokens :] for t in tokens]
        if output_fmt == "NCHW":
            grid = self.patch_embed.dynamic_feat_size(x.shape[-2:])
            maps = [m.unflatten(1, grid).permute(0, 3, 1, 2).contiguous() for m in maps]
        return_prefix_tokens = return_prefix_tokens and self.num_prefix_tokens > 0
        if output_dict:
            result: dict[str, Any] = {"image_intermediates": maps}
            if return_prefix_tokens:
                result["image_intermediates_prefix"] = prefixes
            return result if intermediates_only else result | {"image_features": run.features}
        intermediates = list(zip(maps, prefixes, strict=True)) if return_prefix_tokens else maps
        return intermediates if intermediates_only else (run.features, intermediates)

    def prune_intermediate_layers(self, *args: Any, **kwargs: Any) -> list[int]:
        """Cut off the blocks behind the last one wanted, as timm does, and the pools behind them."""
        kept = super().prune_intermediate_layers(*args, **kwargs)
        for block in [block for block in self.graph_pools if int(block) >= len(self.blocks)]:
            del self.graph_pools[block]
        return kept

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Group parameters by depth, as timm does, each pool with the block that it follows."""
        matcher = super().group_matcher(coarse)
        return matcher | {"blocks": [*matcher["blocks"], (r"^graph_pools\.(\d+)", None)]}

    def _run(
        self,
        x: Tensor,
        labels: Tensor | None,
        num_segments: int | None,
        outputs: dict[int, Tensor] | None = None,
        depth: int | None = None,
    ) -> "_Run":
        """Run the first ``depth`` blocks; the keys of ``outputs`` get what those blocks make, on the patch grid."""
        labels, num_segments = self._superpixels(x, labels, num_segments)
        num_prefix = self.num_prefix_tokens
        tokens, rotary = self._tokens(x)
        place, mask = None, None  # which rotary embedding each token has; which tokens are valid
        if labels is not None:
            prefix, patches = tokens[:, :num_prefix], tokens[:, num_prefix:]
            patches, mask, place = superpixels_of_patches(self.patch_embed, x, patches, labels, num_segments)
            tokens = torch.cat([prefix, patches], dim=1)

        pools: list[PoolResult] = []
        chain = None  # the token that each patch has gone to
        mixed = getattr(self, "rope_mixed", False)  # a table for each block
        turned = None
        for index, block in enumerate(self.blocks[:depth]):
            arguments = {}
            if rotary is not None:
                if turned is None or mixed:
                    turned = gather_rotary(rotary[index] if mixed else rotary, place)
                arguments["rope"] = turned
            if self.grad_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, use_reentrant=False, **arguments)
            else:
                tokens = block(tokens, **arguments)
            if outputs is not None and index in outputs:
                outputs[index] = _on_grid(tokens, num_prefix, chain)
            if str(index) in self.graph_pools:
                prefix = tokens[:, :num_prefix] if num_prefix else None
                pooled = self.graph_pools[str(index)](tokens[:, num_prefix:], prefix, mask)
                pools.append(pooled)
                tokens = pooled.tokens if prefix is None else torch.cat([pooled.cls, pooled.tokens], dim=1)
                mask = turned = None  # no pooled token is empty
                if rotary is not None:
                    place = pooled.indices if place is None else place.gather(1, pooled.indices)
                if outputs is not None:
                    chain = pooled.parents if chain is None else pooled.parents.gather(1, chain)
        return _Run(self.norm(tokens), labels, pools)

    def _tokens(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what the first block sees: prefix and patch tokens, and the rotary table of the patches."""
        embedded = self._pos_embed(self.patch_embed(x))
        if isinstance(embedded, tuple):  # Eva, which drops patches in there too
            tokens, rotary = embedded
        else:
            tokens, rotary = self.patch_drop(embedded), None
        return self.norm_pre(tokens) if hasattr(self, "norm_pre") else tokens, rotary  # Eva of timm 1.0.15 has none

    def _superpixels(
        self, x: Tensor, labels: Tensor | None, num_segments: int | None
    ) -> tuple[Tensor | None, int | None]:
        """Return the labels to use and their number, or twice None for patches."""
        config = self.superpixel_config
        if labels is None and config is None:
            if num_segments is not None:
                raise ValueError("expected superpixels with num_segments: this model makes none of its images")
            return None, None
        if labels is not None:
            check_labels(labels, x)
            if labels.shape[1:] != x.shape[2:]:
                raise ValueError(f"expected superpixels of {tuple(x.shape[2:])} pixels, got {tuple(labels.shape[1:])}")
        if config is None:
            if num_segments is None:
                raise ValueError("expected num_segments with superpixels: this model makes none of its images")
            return labels, num_segments
        height, width = x.shape[2:]
        usual = self.patch_embed.img_size or (height, width)
        request = max(1, round(config.num_superpixels * height * width / (usual[0] * usual[1])))
        if num_segments is None:
            num_segments = config.count(height, width, request)
            if labels is not None:
                check_count_covers(labels, num_segments)
        if labels is None:
            labels = seeds(
                uint8_image(x.detach(), self.pretrained_cfg["mean"], self.pretrained_cfg["std"]),
                request,
                **config.options(),
            )
        return labels, num_segments


class _Run(NamedTuple):
    features: Tensor
    labels: Tensor | None
    pools: list[PoolResult]


@functools.cache
def pooled_class(base: type[nn.Module]) -> type[PooledVit]:
    """Return the class of timm models of class ``base`` with pools."""
    return type(f"Pooled{base.__name__}", (PooledVit, base), {"timm_class": base, "__doc__": PooledVit.__doc__})


def _new(base: type[nn.Module]) -> PooledVit:
    cls = pooled_class(base)
    return cls.__new__(cls)


def _refuse_mask(attn_mask: Tensor | None, is_causal: bool) -> None:
    if attn_mask is not None or is_causal:
        raise ValueError("a patched model takes no attention mask: its tokens change places and number between blocks")


def _on_grid(tokens: Tensor, num_prefix: int, chain: Tensor | None) -> Tensor:
    if chain is None:
        return tokens
    return torch.cat([tokens[:, :num_prefix], unpool(tokens[:, num_prefix:], chain)], dim=1)
