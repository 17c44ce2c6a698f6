"""CoraNet's network: a V-Net of which only the last stage and the head are there three times."""

from jaxtyping import Float
from torch import Tensor, nn

from sscl.nets.vnet import VNetDecoder, VNetEncoder, conv_units


class BranchedVNet(nn.Module):
    """Three outputs from one trunk, which ends where the finest skip is added.

    Instance norm without weights of its own: no statistics are kept, and images of a batch do not see each other.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 2, width: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        norm = nn.InstanceNorm3d
        self.encoder = VNetEncoder(in_channels, width, norm)
        self.dropout = nn.Dropout3d(dropout)
        self.decoder = VNetDecoder(num_classes, width, dropout, norm=norm)
        """The trunk; its last stage and its head are the first branch."""
        self.more = nn.ModuleList(
            nn.Sequential(conv_units(width, width, 1, norm), nn.Dropout3d(dropout), nn.Conv3d(width, num_classes, 1))
            for _ in range(2)
        )

    def forward(self, images: Float[Tensor, "b c x y z"]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the three branches, "b classes x y z" each."""
        x1, x2, x3, x4, x5 = self.encoder(images)
        decoder, x = self.decoder, self.dropout(x5)
        for level, skip in enumerate((x4, x3, x2)):
            x = decoder.rise(level, x, skip)
        trunk = decoder.ups[-1](x) + x1
        first = decoder.head(decoder.dropout(decoder.stages[-1](trunk)))
        second, third = (branch(trunk) for branch in self.more)
        return first, second, third
