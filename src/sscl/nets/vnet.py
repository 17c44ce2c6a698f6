"""The V-Net of the semi-supervised literature (UA-MT's slimmed form of Milletari et al., 3DV 2016).

3x3x3 convolutions, batch norm, additive skips, no residuals. 9,448,866 parameters at width 16, 1 channel, 2 classes.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor, nn

STAGES = (1, 2, 3, 3, 3)
"""Convolutions of each encoder stage; the decoder mirrors the first four."""


Norm: TypeAlias = Callable[[int], nn.Module]
"""Channels to a normalisation; batch norm unless said."""


def conv_units(channels_in: int, channels_out: int, count: int, norm: Norm = nn.BatchNorm3d) -> nn.Sequential:
    """`count` times 3x3x3 convolution, norm, ReLU."""
    layers: list[nn.Module] = []
    for index in range(count):
        source = channels_in if index == 0 else channels_out
        layers += [nn.Conv3d(source, channels_out, 3, padding=1), norm(channels_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def down(channels: int, norm: Norm = nn.BatchNorm3d) -> nn.Sequential:
    """Half the size, twice the channels: 2x2x2 convolution of stride 2, norm, ReLU."""
    return nn.Sequential(nn.Conv3d(channels, 2 * channels, 2, stride=2), norm(2 * channels), nn.ReLU(inplace=True))


def up(channels: int, norm: Norm = nn.BatchNorm3d) -> nn.Sequential:
    """Twice the size, half the channels: 2x2x2 transposed convolution of stride 2, norm, ReLU."""
    half = channels // 2
    return nn.Sequential(nn.ConvTranspose3d(channels, half, 2, stride=2), norm(half), nn.ReLU(inplace=True))


class VNetEncoder(nn.Module):
    """Image to the features of five scales."""

    def __init__(self, in_channels: int = 1, width: int = 16, norm: Norm = nn.BatchNorm3d) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(len(STAGES))]
        self.stages = nn.ModuleList(
            conv_units(in_channels if level == 0 else widths[level], widths[level], count, norm)
            for level, count in enumerate(STAGES)
        )
        self.downs = nn.ModuleList(down(channels, norm) for channels in widths[:-1])

    def forward(self, images: Float[Tensor, "b c x y z"]) -> list[Tensor]:
        """x1 ... x5, finest first: width * 2**level channels, size / 2**level; sizes must be divisible by 16."""
        features = [self.stages[0](images)]
        for shrink, stage in zip(self.downs, self.stages[1:], strict=True):
            features.append(stage(shrink(features[-1])))
        return features


class VNetDecoder(nn.Module):
    """Features of five scales to one map per output channel. Skips are sums, made after the up-convolution's ReLU."""

    def __init__(
        self,
        out_channels: int = 2,
        width: int = 16,
        dropout: float = 0.5,
        skips: bool = True,
        norm: Norm = nn.BatchNorm3d,
    ) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(len(STAGES))]
        self.ups = nn.ModuleList(up(channels, norm) for channels in reversed(widths[1:]))
        self.stages = nn.ModuleList(
            conv_units(channels, channels, count, norm)
            for channels, count in zip(reversed(widths[:-1]), reversed(STAGES[:-1]), strict=True)
        )
        self.dropout = nn.Dropout3d(dropout)
        self.head = nn.Conv3d(width, out_channels, 1)
        self.skips = skips

    def forward(self, features: Sequence[Tensor]) -> Float[Tensor, "b out x y z"]:
        """Logits (or any linear output); `features` as the encoder gives them."""
        return self.head(self.dropout(self.pyramid(features)[-1]))

    def pyramid(self, features: Sequence[Tensor]) -> list[Tensor]:
        """x6 ... x9, coarsest first: the outputs of the four stages, the last of which `head` reads."""
        outputs = [features[-1]]
        for level, skip in enumerate(reversed(features[:-1])):
            outputs.append(self.rise(level, outputs[-1], skip))
        return outputs[1:]

    def rise(self, level: int, x: Tensor, skip: Tensor) -> Tensor:
        """Stage `level` of the decoder, 0 the coarsest: up-convolution, skip, convolutions."""
        grown = self.ups[level](x)
        return self.stages[level](grown + skip if self.skips else grown)


class VNet(nn.Module):
    """Encoder, channel dropout on x5, decoder with channel dropout before its head."""

    def __init__(self, in_channels: int = 1, num_classes: int = 2, width: int = 16, dropout: float = 0.5) -> None:
        super().__init__()
        self.encoder = VNetEncoder(in_channels, width)
        self.dropout = nn.Dropout3d(dropout)
        self.decoder = VNetDecoder(num_classes, width, dropout)

    def forward(self, images: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b classes x y z"]:
        """Logits."""
        return self.embedded(images)[0]

    def embedded(self, images: Float[Tensor, "b c x y z"]) -> tuple[Tensor, Tensor]:
        """Logits, and the embedding that the head reads: x9 behind its dropout, width channels, full size."""
        *finer, x5 = self.encoder(images)
        x9 = self.decoder.dropout(self.decoder.pyramid([*finer, self.dropout(x5)])[-1])
        return self.decoder.head(x9), x9


class Reconstructor(nn.Module):
    """SSCL's commonality learning module (sec. 3.2): a V-Net that gives back its input, linear output, no dropout.

    9,448,849 parameters at width 16, 1 channel; `skips=False` forces everything through the common features.
    """

    def __init__(self, in_channels: int = 1, width: int = 16, skips: bool = True) -> None:
        super().__init__()
        self.encoder = VNetEncoder(in_channels, width)
        self.decoder = VNetDecoder(in_channels, width, dropout=0.0, skips=skips)

    def forward(self, images: Float[Tensor, "b c x y z"]) -> tuple[Tensor, Tensor]:
        """The reconstruction, shaped like the input, and the common features F_c, the encoder's last output."""
        features = self.encoder(images)
        return self.decoder(features), features[-1]
