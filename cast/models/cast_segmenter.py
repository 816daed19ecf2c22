"""CAST for semantic segmentation of pixels: a dense encoder, a decoder on its segments, classes gathered to pixels.

Sources: Ke, Mo, Yu, ICLR 2024 (https://arxiv.org/abs/2210.00314), section 4; Strudel et al., "Segmenter" (arXiv
2105.05633) for the decoders.
"""

import dataclasses

import torch.nn.functional as F
from torch import Tensor, nn

from cast.layers import resize_labels, tokens_to_pixels

from .cast_seg import CastSeg
from .compat import present_labels
from .config import CastSegmenterConfig
from .features import check_global_pool
from .fuse import fold_batch_norms
from .heads import ConvDecoder, LinearDecoder, MaskTransformer
from .inputs import channels_first


class CastSegmenter(CastSeg):
    """A `CastSeg` encoder without head, and a decoder: an image in, logits of every pixel out.

    The decoder predicts classes per segment, and each pixel gets those of its superpixel. With ``decoder="conv"`` the
    map has the resolution of the labels first, and is then brought to that of the image bilinearly; the other decoders
    take labels of another resolution by nearest neighbour, and pad the normalised image with zeros, on the right and at
    the bottom, to multiples of 8, as published.

    Args:
        config: The settings; kept as ``model.config``.

    Attributes:
        decoder: `MaskTransformer`, `LinearDecoder` or `ConvDecoder`.
    """

    config: CastSegmenterConfig

    def __init__(self, config: CastSegmenterConfig) -> None:
        super().__init__(config)
        self.head.requires_grad_(False)  # unused
        self.decoder = self._make_decoder(config)
        self._complete_init()

    @staticmethod
    def _make_decoder(config: CastSegmenterConfig) -> nn.Module:
        dim, classes = config.embed_dim, config.num_classes
        if config.decoder == "linear":
            return LinearDecoder(dim, classes)
        if config.decoder == "conv":
            return ConvDecoder(dim, classes)
        heads = config.decoder_heads or max(1, dim // 64)
        return MaskTransformer(dim, classes, config.decoder_depth, heads, config.decoder_dropout)

    def forward(self, image: Tensor, labels: Tensor | None = None, num_segments: int | None = None) -> Tensor:
        """Predict the class of every pixel.

        Arguments and errors are those of `CastSeg.forward`.

        Returns:
            Logits ``[B, num_classes, H, W]`` at the resolution of the image, channels last in memory. Pixels whose
            label belongs to no segment have zeros.
        """
        if labels is None:
            labels = self.superpixels(image)
        return self._predict(self.forward_features(image, labels, num_segments), image, labels)

    def forward_head(self, features: Tensor, pre_logits: bool = False, present: Tensor | None = None) -> Tensor:
        """Map the output of `forward_features` to logits per segment ``[B, N, num_classes]``, or to the tokens.

        With ``present [N]``, bool, the mask transformer sees those segments alone.
        """
        tokens = features[:, 1:]
        if pre_logits:
            return tokens
        return self.decoder(tokens) if present is None else self.decoder(tokens, present)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the decoder by a fresh one; updates ``config``.

        Args:
            num_classes: Number of classes.
            global_pool: As for `Cast`.

        Raises:
            ValueError: ``num_classes`` is no integer of at least 1, or ``global_pool`` is another; the model is as
                before then.
        """
        check_global_pool(global_pool)
        config = dataclasses.replace(self.config, num_classes=num_classes)
        self.decoder = self._make_decoder(config).to(self.cls_token).train(self.training)
        self.config = config
        if config.fused:
            fold_batch_norms(self.decoder)

    def no_weight_decay(self) -> set[str]:
        """Return the parameters, besides biases and norms, that the published training does not decay."""
        return super().no_weight_decay() | ({"decoder.cls_emb"} if self.config.decoder == "mask_transformer" else set())

    def _predict(self, features: Tensor, image: Tensor, labels: Tensor) -> Tensor:
        size = channels_first(image, self.config.in_chans, self.size_multiple).shape[2:]
        if self.config.decoder != "conv":
            masked = self.config.compat and self.config.decoder == "mask_transformer"
            present = present_labels(labels, features.shape[1] - 1) if masked else None
            return tokens_to_pixels(self.forward_head(features, present=present), resize_labels(labels, size))
        if self.training:  # batch statistics are over pixels
            logits = self.decoder(tokens_to_pixels(self.forward_head(features, pre_logits=True), labels))
        else:
            logits = tokens_to_pixels(self.forward_head(features), labels)
        return logits if logits.shape[2:] == size else F.interpolate(logits, size, mode="bilinear", align_corners=False)

    def _pixels(self, image: Tensor) -> Tensor:
        pixels = super()._pixels(image)
        if self.config.decoder == "conv":
            return pixels
        height, width = pixels.shape[2:]
        return F.pad(pixels, (0, -width % 8, 0, -height % 8))
