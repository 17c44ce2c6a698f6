"""Where voxels lie: axis order, grids, and affines that a 3-D model can use."""

import logging
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from sscl.core.errors import UserError
from sscl.volumes.volume import Volume

Affine = NDArray[np.float64]
_WORLD = {"L": -1, "R": 1, "P": -1, "A": 1, "I": -1, "S": 1}  # against or along right, anterior, superior

log = logging.getLogger("sscl")


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


def grid_text(volume: Volume) -> str:
    """All that two grids can differ in but a slight turn."""
    spacing, origin = (", ".join(f"{v:.6g}" for v in vs) for vs in (volume.spacing_mm, volume.affine[:3, 3]))
    axes = "".join(nibabel.aff2axcodes(volume.affine))
    return f"shape {volume.shape}, spacing ({spacing}) mm, axes {axes}, first voxel at ({origin}) mm"


def on_grid_of(scan: Volume, label: Volume, axes: str, path: Path) -> Volume:
    """A mask on its scan's grid, for data sets whose masks lie on that grid but have headers that say otherwise.

    A header that agrees with the scan to half a voxel is believed. Otherwise the mask's array is taken to run along
    `axes` in this order ("LPS": to the left, posterior, superior), and each of its voxels to be one of the scan's.

    Raises:
        UserError: names `path`: another number of voxels, or another voxel size (by more than 1 %), than the scan's.
    """
    grid, believed = to_ras(scan), to_ras(label)
    half_mm = min(grid.spacing_mm) / 2
    if believed.shape == grid.shape and distance_mm(believed.affine, grid.affine, grid.shape) <= half_mm:
        return Volume(from_ras(believed.array, scan), scan.affine)
    signs = [_WORLD[letter] for letter in axes]
    turned = to_ras(Volume(label.array, np.diag([*np.multiply(signs, label.spacing_mm), 1.0])))
    if turned.shape != grid.shape or not np.allclose(turned.spacing_mm, grid.spacing_mm, rtol=0.01):
        raise UserError(
            f"{path}: the mask has {turned.shape} voxels of {turned.spacing_mm} mm, its scan {grid.shape} of "
            f"{grid.spacing_mm} mm (right, anterior, superior): it cannot be laid on the scan. Get both files again."
        )
    found = "".join(nibabel.aff2axcodes(label.affine))
    log.info("%s: its header (%s) does not place it on its scan; its array is taken to run %s", path, found, axes)
    return Volume(from_ras(turned.array, scan), scan.affine)


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
