"""Tripled-UA's network: one encoder, and a decoder for each of three tasks.

Wang et al., MICCAI 2021, in 3-D: the V-Net's encoder and decoder in the place of the paper's two-dimensional ones.
"""

from jaxtyping import Float
from torch import Tensor, nn

from sscl.nets.vnet import VNetDecoder, VNetEncoder


class ThreeDecoderVNet(nn.Module):
    """V-Net encoder, channel dropout on x5 only, three V-Net decoders, of which the last has no skips.

    13,592,789 parameters at width 16, 1 channel, 2 classes.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 2, width: int = 16, dropout: float = 0.5) -> None:
        super().__init__()
        self.encoder = VNetEncoder(in_channels, width)
        self.dropout = nn.Dropout3d(dropout)
        self.segmentation = VNetDecoder(num_classes, width, dropout=0.0)
        self.distance = VNetDecoder(num_classes - 1, width, dropout=0.0)
        self.reconstruction = VNetDecoder(num_classes * in_channels, width, dropout=0.0, skips=False)

    def forward(self, images: Float[Tensor, "b c x y z"]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the classes, logits of a distance map for each organ, and the part of the image in each class."""
        *finer, x5 = self.encoder(images)
        features = [*finer, self.dropout(x5)]
        return self.segmentation(features), self.distance(features), self.reconstruction(features)
