"""SS-Net's heads: small networks that see one voxel at a time. They act on rows, "voxels channels"."""

from torch import nn

EMBEDDING = 32
"""Channels of projections, predictions and all that is hidden."""


class VoxelHeads(nn.Module):
    """Projection, prediction, and for each organ one selector of features and one of prototypes (scores, "voxels 1").

    6,146 parameters at 16 channels and one organ.
    """

    def __init__(self, channels: int, organs: int) -> None:
        super().__init__()
        self.project = _head(channels, EMBEDDING, nn.ReLU())
        self.predict = _head(EMBEDDING, EMBEDDING, nn.ReLU())
        self.select = nn.ModuleList(_head(EMBEDDING, 1, nn.LeakyReLU(0.2)) for _ in range(organs))
        self.select_prototypes = nn.ModuleList(_head(EMBEDDING, 1, nn.LeakyReLU(0.2)) for _ in range(organs))


def _head(channels_in: int, channels_out: int, activation: nn.Module) -> nn.Sequential:
    """Linear, batch norm over the voxels, activation, linear."""
    hidden = nn.Linear(channels_in, EMBEDDING), nn.BatchNorm1d(EMBEDDING), activation
    return nn.Sequential(*hidden, nn.Linear(EMBEDDING, channels_out))
