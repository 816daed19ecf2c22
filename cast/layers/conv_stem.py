"""Convolutional stem in place of a patch embedding (Xiao et al., https://arxiv.org/abs/2106.14881)."""

import torch
from torch import Tensor, nn


class ConvNorm(nn.Module):
    """3x3 convolution without bias, batch norm and ReLU."""

    def __init__(self, in_chans: int, out_chans: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_chans, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_chans)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, H, W]`` to ``[B, out_chans, ceil(H / stride), ceil(W / stride)]``."""
        return self.act(self.norm(self.conv(x)))


class ConvStem(nn.Module):
    """Four 3x3 convolutions (widths C/8, C/4, C/2, C) and a 1x1 projection, with no norm after it.

    The first three convolutions have stride 2; the last one too where the stem's stride is 16.

    Args:
        in_chans: Number of image channels.
        dim: Number of output channels C, a multiple of 8.
        stride: 8 or 16.

    Raises:
        ValueError: ``dim`` is not a multiple of 8, or the stride is another.
    """

    def __init__(self, in_chans: int, dim: int, stride: int = 8) -> None:
        super().__init__()
        if stride not in (8, 16):
            raise ValueError(f"expected stride 8 or 16, got {stride}")
        if dim < 8 or dim % 8:
            raise ValueError(f"expected dim to be a multiple of 8, got {dim}")
        widths = (in_chans, dim // 8, dim // 4, dim // 2, dim)
        strides = (2, 2, 2, stride // 8)
        self.layers = nn.Sequential(*(ConvNorm(widths[i], widths[i + 1], strides[i]) for i in range(4)))
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Embed an image: ``[B, in_chans, H, W]`` -> ``[B, C, ceil(H / stride), ceil(W / stride)]``."""
        return self.proj(self.hidden(image))

    def hidden(self, image: Tensor) -> Tensor:
        """Embed an image up to the projection, which is linear and may as well follow an average."""
        # One layout whatever the input's, so that results do not depend on it; tokens want channels last as well.
        return self.layers(image.contiguous(memory_format=torch.channels_last))
