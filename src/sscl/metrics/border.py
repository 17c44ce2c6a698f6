"""Wrong voxels at the reference's border and away from it, counted apart.

A border lies between voxels of different class. A voxel is *near* it if the centre of some voxel of another class is at
most `reach` voxels from its own centre (Euclidean, each voxel a unit cube). At a flat border a reach of 2 takes in the
two layers on either side: the definition is the same seen from the organ and from what is around it. What the
reference ignores is no class: it makes no border, and is counted neither near nor elsewhere. Nor is there a border at
the edge of the volume. A reference of one class has none, so all of it is elsewhere.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sscl.metrics.overlap import Mask

REACH = 2.0
"""Voxels."""


@dataclass(frozen=True)
class BorderCounts:
    """Of one case: voxels that are counted, and how many of them have another class than in the reference."""

    wrong_near: int
    voxels_near: int
    wrong_elsewhere: int
    voxels_elsewhere: int

    @property
    def rate_near(self) -> float | None:
        """Share of the voxels near the border that are wrong, 0 to 1; None (not applicable) without a border."""
        return self.wrong_near / self.voxels_near if self.voxels_near else None

    @property
    def rate_elsewhere(self) -> float | None:
        """Share of the other voxels that are wrong, 0 to 1; None (not applicable) if there is no other."""
        return self.wrong_elsewhere / self.voxels_elsewhere if self.voxels_elsewhere else None


def wrong_voxels(prediction: NDArray[Any], reference: NDArray[Any], ignore_label: int | None = None) -> Mask:
    """Where two label arrays of equal shape differ; voxels that the reference ignores are never wrong."""
    assert prediction.shape == reference.shape, "the caller compares grids"
    return np.asarray(prediction != reference) & _counted(reference, ignore_label)


def near_border(reference: NDArray[Any], ignore_label: int | None = None, reach: float = REACH) -> Mask:
    """The voxels of a label array that lie near its borders."""
    counted = _counted(reference, ignore_label)
    near = np.zeros(reference.shape, bool)
    for value in np.unique(reference[counted]):
        others = counted & (reference != value)
        if others.any():  # without a target the transform measures the way to nowhere
            near |= (reference == value) & (ndimage.distance_transform_edt(~others) <= reach)
    return near


def border_counts(
    prediction: NDArray[Any], reference: NDArray[Any], near: Mask, ignore_label: int | None = None
) -> BorderCounts:
    """Count two label arrays of equal shape; near: `near_border` of the reference, once for all predictions of it."""
    wrong, elsewhere = wrong_voxels(prediction, reference, ignore_label), _counted(reference, ignore_label) & ~near
    return BorderCounts(
        wrong_near=int(np.count_nonzero(wrong & near)),
        voxels_near=int(np.count_nonzero(near)),
        wrong_elsewhere=int(np.count_nonzero(wrong & elsewhere)),
        voxels_elsewhere=int(np.count_nonzero(elsewhere)),
    )


def _counted(reference: NDArray[Any], ignore_label: int | None) -> Mask:
    return np.ones(reference.shape, bool) if ignore_label is None else np.asarray(reference != ignore_label)
