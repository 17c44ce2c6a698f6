"""Where voxels lie: axis order, grids, and affines that a 3-D model can use."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from sscl.core.errors import UserError
from sscl.volumes.volume import Volume

Affine = NDArray[np.float64]


def to_ras(volume: Volume) -> Volume:
    """The same scan with axes permuted and flipped so that x, y, z run closest to right, anterior, superior.

    No voxel is resampled: the world position of every voxel stays what it was. An oblique scan stays oblique.
    The header is dropped, because it describes the old axis order.
    """
    axes, flipped = _orientation(volume.affine)
    order = np.argsort(axes)
    turned = np.zeros((4, 4))  # voxel index in the new array -> voxel index in the old one
    turned[3, 3] = 1
    for new, old in enumerate(order):
        turned[old, new] = -1 if flipped[old] else 1
        turned[old, 3] = volume.shape[old] - 1 if flipped[old] else 0
    array = volume.array.transpose(0, *(order + 1))
    array = np.flip(array, tuple(1 + new for new, old in enumerate(order) if flipped[old]))
    return Volume(np.ascontiguousarray(array), volume.affine @ turned)


def from_ras(array: NDArray[Any], like: Volume) -> NDArray[Any]:
    """Undo `to_ras`: from (..., x, y, z) on the grid of `to_ras(like)` to the axis order of `like`."""
    axes, flipped = _orientation(like.affine)
    leading = array.ndim - 3
    array = array.transpose(*range(leading), *(axes + leading))
    array = np.flip(array, tuple(leading + axis for axis in range(3) if flipped[axis]))
    return np.ascontiguousarray(array)


def same_grid(a: Volume, b: Volume, tolerance_mm: float = 1e-3) -> bool:
    """Whether both have the same voxels in number and place, to `tolerance_mm` in every corner."""
    return a.shape == b.shape and distance_mm(a.affine, b.affine, a.shape) <= tolerance_mm


def distance_mm(a: Affine, b: Affine, shape: tuple[int, ...]) -> float:
    """The largest distance between the places that two affines give to one voxel of a grid of this shape.

    The difference of affine maps is affine, hence largest in a corner.
    """
    corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)]) * [*(n - 1 for n in shape[:3]), 1]
    return float(np.linalg.norm(corners @ (a - b)[:3].T, axis=1).max())


def check_affine(affine: Affine, path: Path) -> None:
    """Refuse an affine that is no rigid grid of boxes.

    Raises:
        UserError: not finite, a spacing of zero, or axes that are not orthogonal (cosine above 1e-3).
    """
    if not np.isfinite(affine).all():
        raise UserError(f"{path}: the affine holds NaN or infinity. Mend the orientation in its header.")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() < 1e-6:
        raise UserError(f"{path}: the affine gives a voxel spacing of {spacing} mm. Mend the spacing in its header.")
    directions = affine[:3, :3] / spacing
    cosine = np.abs(directions.T @ directions - np.eye(3)).max()
    if cosine > 1e-3:
        raise UserError(
            f"{path}: the affine is sheared: its axes are not orthogonal (cosine {cosine:.3g}), as after a gantry "
            "tilt. Resample the scan to a grid with orthogonal axes."
        )


def _orientation(affine: Affine) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """For each array axis: the RAS axis it is closest to, and whether it runs against it."""
    table = nibabel.io_orientation(affine)
    return table[:, 0].astype(np.intp), table[:, 1] < 0
