"""The literature's crop around the organ, which needs the mask of every scan: for the `-literature` presets alone."""

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt

from sscl.core.config import Config
from sscl.core.errors import UserError
from sscl.volumes.volume import Volume


class MaskCrop(Config):
    """The box around the mask on the plan's grid, a margin on both sides of it, and what is made wider still."""

    margin: tuple[NonNegativeInt | None, NonNegativeInt | None, NonNegativeInt | None]
    """Voxels along x, y, z; None: the axis is not cropped."""
    at_least: tuple[PositiveInt, PositiveInt, PositiveInt]
    """A box that is shorter with its margin grows to this many voxels, alike on both sides."""
    zscore_first: bool = False
    """Whether intensities are normalised over the whole scan, before the crop."""


def crop_to_mask(image: Volume, label: Volume, crop: MaskCrop) -> tuple[Volume, Volume]:
    """Both volumes, on one grid, cut to the box of the label's foreground; nothing is padded.

    Raises:
        UserError: the mask is empty.
    """
    box = mask_box(label.array[0] > 0, crop)
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [part.start for part in box]
    array = image.array.astype(np.float32)
    if crop.zscore_first:
        whole = array.reshape(len(array), -1).astype(np.float64)
        mean, std = (of.reshape(-1, 1, 1, 1) for of in (whole.mean(axis=1), whole.std(axis=1)))
        array = ((array - mean) / std).astype(np.float32)
    return Volume(array[:, *box], affine), Volume(label.array[:, *box], affine)


def mask_box(foreground: NDArray[np.bool_], crop: MaskCrop) -> tuple[slice, slice, slice]:
    """The box in voxels, cut off where the scan ends.

    Raises:
        UserError: no foreground.
    """
    if not foreground.any():
        raise UserError("the mask is empty, so there is no box to crop to. Leave the case out with --split.")
    x, y, z = (_range(foreground, axis, crop.margin[axis], crop.at_least[axis]) for axis in range(3))
    return x, y, z


def _range(foreground: NDArray[np.bool_], axis: int, margin: int | None, at_least: int) -> slice:
    length = foreground.shape[axis]
    if margin is None:
        return slice(0, length)
    inside = np.flatnonzero(foreground.any(axis=tuple(other for other in range(3) if other != axis)))
    first, end = int(inside[0]) - margin, int(inside[-1]) + 1 + margin
    lacking = max(0, at_least - (end - first))
    return slice(max(0, first - lacking // 2), min(length, end + lacking - lacking // 2))
