"""Critics, which tell of which half of the batch a network's map is: SASSNet's and DAN's, and ADVENT's."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class PairCritic(nn.Module):
    """Four 4x4x4 convolutions of stride 2, the first one of map and image apart, summed; mean over space; two logits.

    Leaky ReLU after each convolution, channel dropout after all but the last; no normalisation. The mean stands for the
    fixed pools of the originals (SASSNet: 7x7x5, DAN: 6x6x6), each of which fits one size of patch: to those it is
    equal. Padding 1 halves every even side exactly, so sides from 16 up have room for all four convolutions.
    11,020,290 parameters at width 64 with 1 channel of each.
    """

    def __init__(self, map_channels: int = 1, image_channels: int = 1, width: int = 64, dropout: float = 0.5) -> None:
        super().__init__()
        self.of_map = _halve(map_channels, width)
        self.of_image = _halve(image_channels, width)
        self.rest = nn.Sequential(
            *(nn.LeakyReLU(0.2), nn.Dropout3d(dropout)),
            *(_halve(width, 2 * width), nn.LeakyReLU(0.2), nn.Dropout3d(dropout)),
            *(_halve(2 * width, 4 * width), nn.LeakyReLU(0.2), nn.Dropout3d(dropout)),
            *(_halve(4 * width, 8 * width), nn.LeakyReLU(0.2)),
        )
        self.verdict = nn.Linear(8 * width, 2)

    def forward(self, maps: Float[Tensor, "b m x y z"], images: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b 2"]:
        """Logits of "unlabelled" and "labelled", in float32 (ops/adversarial.py)."""
        features = self.rest(self.of_map(maps) + self.of_image(images))
        return self.verdict(features.float().mean((2, 3, 4))).float()


class PatchCritic(nn.Module):
    """ADVENT's critic: five 4x4x4 convolutions of stride 2, leaky ReLU between them; a logit for each patch of the map.

    A side s becomes s // 2 each time; one that has shrunk to 1 stays 1, where the plain convolution would have to stop.
    3x3x2 logits of 112x112x80 maps, 1x1x1 of 32x32x16. 11,051,969 parameters at width 64 with 2 channels.
    """

    def __init__(self, map_channels: int = 2, width: int = 64) -> None:
        super().__init__()
        channels = (map_channels, width, 2 * width, 4 * width, 8 * width, 1)
        self.convolutions = nn.ModuleList(_halve(source, target) for source, target in pairwise(channels))

    def forward(self, maps: Float[Tensor, "b m x y z"]) -> Float[Tensor, "b 1 u v w"]:
        """Logits, in float32."""
        first, *others = self.convolutions
        features = first(_two_wide(maps))
        for convolution in others:
            features = convolution(_two_wide(functional.leaky_relu(features, 0.2)))
        return features.float()


def _two_wide(features: Tensor) -> Tensor:
    """With a zero behind each side of 1: the convolution's own padding of 1 then makes up one window of 4."""
    x, y, z = (int(side == 1) for side in features.shape[2:])
    return functional.pad(features, (0, z, 0, y, 0, x))


def _halve(channels_in: int, channels_out: int) -> nn.Conv3d:
    return nn.Conv3d(channels_in, channels_out, 4, stride=2, padding=1)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """The network in eval mode, without dropout and with stored statistics; each of its parts as it was afterwards."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
