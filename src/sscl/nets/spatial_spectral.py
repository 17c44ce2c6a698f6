"""SSCL's student and teacher: a V-Net whose bottleneck also gets spectral and common features (sec. 3.2, 3.3)."""

from jaxtyping import Float
from torch import Tensor, nn

from sscl.nets.vnet import VNetDecoder, VNetEncoder


class SpatialSpectralVNet(nn.Module):
    """Spatial encoder, optional spectral encoder, decoder. 10,149,666 parameters at width 16, 1 channel, 2 classes.

    Without a spectral encoder and without common features it is the V-Net. Skips come from the spatial encoder only.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        width: int,
        dropout: float,
        head_dropout: float,
        spectral: nn.Module | None,
    ) -> None:
        super().__init__()
        self.spatial = VNetEncoder(in_channels, width)
        self.spectral = spectral
        self.dropout = nn.Dropout3d(dropout)
        self.decoder = VNetDecoder(num_classes, width, head_dropout)

    def forward(
        self, images: Float[Tensor, "b c x y z"], f_c: Float[Tensor, "b d x5 y5 z5"] | None = None
    ) -> Float[Tensor, "b classes x y z"]:
        """Logits; f_c: the common features, or None."""
        *finer, f_spa = self.spatial(images)
        f_f = self.dropout(f_spa)
        if self.spectral is not None:
            f_f = f_f + self.spectral(images)  # (5)
        if f_c is not None:
            f_f = f_f + f_c
        return self.decoder([*finer, f_f])  # (4)
