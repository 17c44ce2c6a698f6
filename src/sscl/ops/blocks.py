"""Volumes cut into equal boxes and put together again: UMix's blocks, ComWin+'s windows."""

from collections.abc import Sequence

from jaxtyping import Shaped
from torch import Tensor


def cut(x: Shaped[Tensor, "b c x y z"], box: Sequence[int]) -> Shaped[Tensor, "b n c i j k"]:
    """All boxes of the size `box`, in the order of their places; x must be divisible into them."""
    i, j, k = box
    b, c, *lengths = x.shape
    nx, ny, nz = (length // side for length, side in zip(lengths, box, strict=True))
    return x.reshape(b, c, nx, i, ny, j, nz, k).permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(1, 3)


def join(boxes: Shaped[Tensor, "b n c i j k"], shape: Sequence[int]) -> Shaped[Tensor, "b c x y z"]:
    """The volume of the size `shape` (x, y, z) that `cut` made the boxes of."""
    b, _, c, i, j, k = boxes.shape
    nx, ny, nz = (length // side for length, side in zip(shape, (i, j, k), strict=True))
    return boxes.reshape(b, nx, ny, nz, c, i, j, k).permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(b, c, *shape)
