"""Random crops, quarter turns and flips: the same for all methods."""

import numpy as np
from numpy.typing import NDArray

from sscl.data.store import Stored

Size = tuple[int, int, int]


def crop(array: Stored, start: Size, size: Size) -> NDArray[np.generic]:
    """A box of the last three axes; what lies outside the volume is zero (the mean of a z-scored image, background).

    `array` may be anything that slices to numpy, so that a crop from disk reads its own blocks only.
    """
    inside = [(max(0, s), min(n, s + p)) for s, p, n in zip(start, size, array.shape[-3:], strict=True)]
    x, y, z = (slice(low, high) for low, high in inside)
    box = array[..., x, y, z]
    pads = [(low - s, s + p - high) for s, p, (low, high) in zip(start, size, inside, strict=True)]
    return np.pad(box, [(0, 0)] * (box.ndim - 3) + pads)


def random_start(rng: np.random.Generator, shape: Size, size: Size) -> Size:
    """Uniform over all boxes inside the volume; along axes where the volume is smaller than the box, centred, the extra
    voxel at the end as in prediction: a network can tell by a voxel where the zeros begin.
    """
    x, y, z = (int(rng.integers(0, n - p + 1)) if n > p else -((p - n) // 2) for n, p in zip(shape, size, strict=True))
    return x, y, z


def start_around(centre: Size, shape: Size, size: Size) -> Size:
    """The box about a voxel, moved into the volume where it fits."""
    x, y, z = (
        min(max(0, c - p // 2), n - p) if n > p else -((p - n) // 2)
        for c, n, p in zip(centre, shape, size, strict=True)
    )
    return x, y, z


def turn_and_flip(array: NDArray[np.generic], quarter_turns: int, flip_axis: int | None) -> NDArray[np.generic]:
    """Quarter turns in the x-y plane, then a mirror image along axis 0 (x) or 1 (y), or none."""
    turned = np.rot90(array, quarter_turns, axes=(-3, -2))
    return turned if flip_axis is None else np.flip(turned, axis=flip_axis - 3)
