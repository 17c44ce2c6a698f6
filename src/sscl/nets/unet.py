"""3-D U-Nets with concatenated skips (Çiçek et al., MICCAI 2016), and URPC's networks with a head at each scale.

A stage is two 3x3x3 convolutions, each with instance norm (no affine) and ReLU. 5,884,504 parameters for URPC's U-Net
at width 16, 1 channel, 2 classes; 9,449,320 for its V-Net, 454 more than the plain one has.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sscl.nets.vnet import VNet, conv_units

Factor: TypeAlias = tuple[int, int, int]
"""How much smaller each stage is than the one before it, along x, y, z."""

DROPOUT_SHARES = (1.0, 0.6, 0.4, 0.2)
"""Channel dropout of URPC's decoder, coarsest first, as a part of the largest: 0.5, 0.3, 0.2, 0.1 in its code."""


def unchanged(level: int, x: Tensor) -> Tensor:
    """What is done to a decoder's stage outputs unless a network wants more: nothing."""
    return x


class UNetEncoder(nn.Module):
    """Image to the features of as many scales as there are `widths`, by max pooling."""

    def __init__(self, in_channels: int, widths: Sequence[int], factor: Factor = (2, 2, 2)) -> None:
        super().__init__()
        sources = [in_channels, *widths[:-1]]
        self.stages = nn.ModuleList(
            conv_units(source, width, 2, nn.InstanceNorm3d) for source, width in zip(sources, widths, strict=True)
        )
        self.pool = nn.MaxPool3d(factor)

    def forward(self, images: Float[Tensor, "b c x y z"]) -> list[Tensor]:
        """Finest first."""
        features = [self.stages[0](images)]
        for stage in self.stages[1:]:
            features.append(stage(self.pool(features[-1])))
        return features


class UNetDecoder(nn.Module):
    """Back to full size by trilinear upsampling; each stage sees the encoder's features of its scale, if `skips`.

    extra: channels that the coarsest features have beyond `widths[-1]`.
    """

    def __init__(self, widths: Sequence[int], factor: Factor = (2, 2, 2), skips: bool = True, extra: int = 0) -> None:
        super().__init__()
        sources = [widths[-1] + extra, *reversed(widths[1:-1])]
        self.stages = nn.ModuleList(
            conv_units(source + width * skips, width, 2, nn.InstanceNorm3d)
            for source, width in zip(sources, reversed(widths[:-1]), strict=True)
        )
        self.factor, self.skips = factor, skips

    def forward(self, features: Sequence[Tensor], drop: Callable[[int, Tensor], Tensor] = unchanged) -> list[Tensor]:
        """The outputs of the stages, coarsest first; `features` as the encoder gives them, of which only the last is
        read without skips. drop: gets each stage's number and output, and gives what goes on.
        """
        outputs = [features[-1]]
        for level, stage in enumerate(self.stages):
            grown = functional.interpolate(outputs[-1], scale_factor=self.factor, mode="trilinear")
            if self.skips:
                grown = torch.cat([features[-2 - level], grown], 1)
            outputs.append(drop(level, stage(grown)))
        return outputs[1:]


class PyramidUNet(nn.Module):
    """URPC's network: a U-Net that predicts from each of its decoder's four scales."""

    def __init__(self, in_channels: int = 1, num_classes: int = 2, width: int = 16, dropout: float = 0.5) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(5)]
        self.encoder = UNetEncoder(in_channels, widths)
        self.decoder = UNetDecoder(widths)
        self.dropouts = nn.ModuleList(nn.Dropout3d(share * dropout) for share in DROPOUT_SHARES)
        self.heads = _heads(widths[:-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Float[Tensor, "b c x y z"]) -> Float[Tensor, "scales b classes x y z"]:
        """Logits at full size, the finest scale first; sizes must be divisible by 16."""
        outputs = self.decoder(self.encoder(images), lambda level, x: self.dropouts[level](x))
        return _full_size([head(x) for head, x in zip(self.heads, outputs, strict=True)])


class PyramidVNet(nn.Module):
    """The same with the literature's V-Net: three more heads, on the outputs of its decoder's coarser stages."""

    def __init__(self, in_channels: int = 1, num_classes: int = 2, width: int = 16, dropout: float = 0.5) -> None:
        super().__init__()
        self.vnet = VNet(in_channels, num_classes, width, dropout)
        self.heads = _heads([width * 2**level for level in range(1, 4)], num_classes)

    def forward(self, images: Float[Tensor, "b c x y z"]) -> Float[Tensor, "scales b classes x y z"]:
        """Logits at full size, the finest scale first; sizes must be divisible by 16."""
        *finer, x5 = self.vnet.encoder(images)
        decoder = self.vnet.decoder
        *coarser, x9 = decoder.pyramid([*finer, self.vnet.dropout(x5)])
        logits = [head(x) for head, x in zip(self.heads, coarser, strict=True)]
        return _full_size([*logits, decoder.head(decoder.dropout(x9))])


def _heads(widths: Sequence[int], num_classes: int) -> nn.ModuleList:
    """1x1x1 convolutions, coarsest first; `widths` finest first."""
    return nn.ModuleList(nn.Conv3d(width, num_classes, 1) for width in reversed(widths))


def _full_size(logits: Sequence[Tensor]) -> Float[Tensor, "scales b classes x y z"]:
    """Coarsest first to finest first, all of the finest one's size."""
    size = logits[-1].shape[2:]
    return torch.stack([functional.interpolate(z, size, mode="trilinear") for z in reversed(logits)])
