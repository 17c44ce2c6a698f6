"""How far the borders of two masks lie apart.

The border of a mask is what a 6-neighbour erosion removes; outside the volume counts as background (as in MedPy and the
literature). Every border voxel weighs 1. Two conventions read different numbers off the same distances, so none is
called plain "HD95" here: see `sscl.metrics.table.definitions`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sscl.metrics.overlap import Mask, require_masks

Distances = NDArray[np.float64]


@dataclass(frozen=True)
class BorderDistances:
    """From each border voxel of one mask to the nearest border voxel of the other, in the unit of the spacing.

    If one of the masks is empty, its list is empty and the other one is all infinite: every distance read off is inf.
    """

    from_prediction: Distances
    from_reference: Distances

    @property
    def failed(self) -> bool:
        """One of the two masks is empty: there is no distance."""
        return not (self.from_prediction.size and self.from_reference.size)

    @property
    def pooled(self) -> Distances:
        """Both lists as one."""
        return np.concatenate([self.from_prediction, self.from_reference])


def border_distances(prediction: Mask, reference: Mask, spacing: Sequence[float]) -> BorderDistances | None:
    """Both directed lists of distances, computed once; None (not applicable) if both masks are empty.

    prediction, reference: masks of equal shape; spacing: voxel size per array axis, in the unit wanted (1: voxels).

    Raises:
        UserError: shapes differ, or an array is not boolean.
    """
    require_masks(prediction, reference)
    assert len(spacing) == prediction.ndim, "one spacing per axis"
    if not (prediction.any() or reference.any()):
        return None
    box = bounding_box(prediction | reference)
    border_p, border_r = border(prediction[box]), border(reference[box])
    return BorderDistances(
        from_prediction=_distances_to(border_r, spacing)[border_p],
        from_reference=_distances_to(border_p, spacing)[border_r],
    )


def border(mask: Mask) -> Mask:
    """The voxels of a mask that touch background, or the edge of the volume, with one of their 2n faces."""
    inner: Mask = ndimage.binary_erosion(mask)
    return mask & ~inner


def bounding_box(mask: Mask) -> tuple[slice, ...]:
    """The smallest box that holds a mask that is not empty.

    Cropping to it changes no border (outside counts as background) and no distance (all border voxels are inside).
    """
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    return tuple(box)


def drop_single_slices(mask: Mask, spacing: Sequence[float]) -> tuple[Mask, tuple[float, ...]]:
    """Without the axes of length 1: in 3-D all voxels of a single slice are border, which flatters the mean."""
    axes = [axis for axis, length in enumerate(mask.shape) if length > 1] or [0]
    return mask.reshape([mask.shape[axis] for axis in axes]), tuple(float(spacing[axis]) for axis in axes)


def hd95_pooled(distances: BorderDistances) -> float:
    """95th percentile of both directed lists together (MedPy's `hd95`), linear interpolation; inf if failed."""
    return np.inf if distances.failed else float(np.percentile(distances.pooled, 95))


def hd95_max(distances: BorderDistances) -> float:
    """The larger of the two directed 95th percentiles (as in Metrics Reloaded), linear interpolation; inf if failed."""
    if distances.failed:
        return np.inf
    return float(max(np.percentile(distances.from_prediction, 95), np.percentile(distances.from_reference, 95)))


def asd_directed(distances: BorderDistances) -> float:
    """Mean distance of the prediction's border to the reference's, not the way back (MedPy's `asd`); inf if failed."""
    return np.inf if distances.failed else float(distances.from_prediction.mean())


def assd(distances: BorderDistances) -> float:
    """Average symmetric surface distance: mean of both directed lists together; inf if failed."""
    return np.inf if distances.failed else float(distances.pooled.mean())


def nsd(distances: BorderDistances, tolerance: float) -> float:
    """Share of the border voxels of both masks, 0 to 1, at most `tolerance` from the other border; 0 if failed.

    Normalised surface distance (Nikolov et al. 2018, doi 10.2196/26151) with border voxels in place of surface area.
    """
    # 3 voxels of 0.1 mm are 0.30000000000000004 mm: rounding must not put them outside of 0.3 mm
    return float(np.mean(distances.pooled <= tolerance * (1 + 1e-9)))


def _distances_to(targets: Mask, spacing: Sequence[float]) -> Distances:
    """At every voxel the distance to the nearest target; inf if there is none."""
    if not targets.any():
        return np.full(targets.shape, np.inf)
    distances: Distances = ndimage.distance_transform_edt(~targets, sampling=tuple(spacing))
    return distances
