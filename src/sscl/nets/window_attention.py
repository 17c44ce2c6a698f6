"""ComWin+'s network: a V-Net that looks again, by attention, where its half-resolution output sees a boundary.

Wu et al.: "Compete to Win", TMI 2023, there "deep-supervised boundary-aware attention" (DSBA).
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from sscl.nets.vnet import VNet
from sscl.ops.blocks import cut, join


class WindowAttention(nn.Module):
    """Self-attention within cubes of voxels: one head, a learned bias for each relative position, no shift."""

    relative: Tensor

    def __init__(self, channels: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.bias = nn.Parameter(0.02 * torch.randn((2 * window - 1) ** 3))
        self.register_buffer("relative", relative_positions(window), persistent=False)

    def forward(self, x: Float[Tensor, "b c x y z"], label: Int64[Tensor, "b x y z"]) -> Float[Tensor, "b c x y z"]:
        """Shaped like x; 0 in windows whose label holds one class only, where there is no boundary."""
        cube = (self.window,) * 3
        padded = _repeat_edge(x, self.window)
        windows = cut(padded, cube).flatten(3).transpose(2, 3)  # b windows voxels c
        q, k, v = self.qkv(windows).chunk(3, 3)
        attended = functional.scaled_dot_product_attention(q, k, v, self.bias[self.relative].to(q.dtype))
        classes = cut(_repeat_edge(label.unsqueeze(1), self.window), cube).flatten(2)
        boundary = classes.amax(2) != classes.amin(2)
        found = self.out(attended) * boundary[:, :, None, None]
        joined = join(found.transpose(2, 3).unflatten(3, cube), padded.shape[2:])
        return joined[..., : x.shape[2], : x.shape[3], : x.shape[4]]


class BoundaryAwareVNet(nn.Module):
    """V-Net with a second output at half resolution and attention, where that sees a boundary, before the last stage.

    In training others say where the boundary is, and they need the half-resolution outputs of all networks first:
    `coarse`, then `fine`.
    """

    def __init__(self, in_channels: int, num_classes: int, width: int, dropout: float, window: int) -> None:
        super().__init__()
        self.vnet = VNet(in_channels, num_classes, width, dropout)
        self.coarse_head = nn.Sequential(
            nn.Conv3d(2 * width, num_classes, 1),
            nn.BatchNorm3d(num_classes),
            nn.ReLU(inplace=True),
            nn.Conv3d(num_classes, num_classes, 1),
        )
        self.attention = WindowAttention(2 * width, window)

    def coarse(self, images: Float[Tensor, "b c x y z"]) -> tuple[Tensor, Tensor, Tensor]:
        """Encoder features x1, decoder features x8 of half the resolution, and logits of that resolution."""
        x1, *finer, x5 = self.vnet.encoder(images)
        x8 = self.vnet.dropout(x5)
        for level, skip in enumerate(reversed(finer)):
            x8 = self.vnet.decoder.rise(level, x8, skip)
        return x1, x8, self.coarse_head(x8)

    def fine(self, x1: Tensor, x8: Tensor, label: Tensor) -> Float[Tensor, "b classes x y z"]:
        """Logits. label: classes at half resolution, of which the windows with a boundary are attended to."""
        x9 = self.vnet.decoder.rise(3, x8 + self.attention(x8, label), x1)
        return self.vnet.decoder.head(self.vnet.decoder.dropout(x9))

    def forward(self, images: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b classes x y z"]:
        """Logits; the boundary is where the network itself sees it."""
        x1, x8, logits = self.coarse(images)
        return self.fine(x1, x8, logits.argmax(1))


def relative_positions(window: int) -> Int64[Tensor, "voxels voxels"]:
    """Of each pair of a window's voxels the number of its difference in position, 0 to (2 window - 1)^3 - 1."""
    axis = torch.arange(window)
    places = torch.cartesian_prod(axis, axis, axis)
    difference = places[:, None] - places[None] + window - 1
    side = 2 * window - 1
    return (difference * torch.tensor([side * side, side, 1])).sum(2)


def _repeat_edge(x: Tensor, window: int) -> Tensor:
    """Last slices of "b c x y z" repeated until the sides are divisible by `window`; of any type, labels too."""
    for axis, length in enumerate(x.shape[2:], start=2):
        if missing := -length % window:
            x = torch.cat([x, x.narrow(axis, length - 1, 1).repeat_interleave(missing, axis)], axis)
    return x
