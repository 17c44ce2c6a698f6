"""A mask as a solid in light: parallel rays run through it, and what they hit first is shaded."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sscl.metrics.overlap import Mask

Field = NDArray[np.float64]

_TURN, _LIFT = np.radians(25.0), np.radians(15.0)
_SMOOTH = 0.8  # voxels: takes the steps off the surface; pieces of one or two voxels vanish with them
_SMOOTH_LIGHT = 1.5  # voxels: the surface's slope, which shows every step, is read off a smoother solid
_AMBIENT = 0.2
_FOG = 0.35  # how much darker the far end of the scene is


def surface_view(mask: Mask, spacing_mm: Sequence[float], side: int) -> Field:
    """Brightness 0 to 1 of the mask's surface in (rows, columns), NaN where a ray hits nothing.

    The eye is in front of the patient, 25 degrees to the patient's right of the middle and 15 degrees above: the
    patient's right is on the left, the head on top. mask: (x, y, z) in RAS+. The frame holds the whole array and three
    voxels around it, in `side` pixels on its larger side: arrays of one shape are seen in one scale. Light comes from
    the eye and the surface is matt (Lambert's cosine); what is farther away is darker.
    """
    mask = np.pad(mask, 3)  # else a surface at the array's edge would be cut, and its slope unknown
    axes = _axes()
    lengths = np.abs(axes) @ (np.array(mask.shape) * np.array(spacing_mm))  # of the frame along its axes, mm
    pitch = float(lengths[:2].max()) / side
    steps = np.array([pitch, pitch, max(pitch, min(spacing_mm)) / 2])  # finer than what can be seen
    counts = np.maximum(1, np.rint(lengths / steps)).astype(int)
    middle = (np.array(mask.shape) - 1) / 2
    to_voxel = (axes * steps[:, None] / np.array(spacing_mm)).T  # steps of the frame to voxels of the mask
    offset = middle - to_voxel @ ((counts - 1) / 2)
    solid, smoother = (
        ndimage.gaussian_filter(mask.astype(np.float32), sigma, mode="constant") for sigma in (_SMOOTH, _SMOOTH_LIGHT)
    )
    seen = ndimage.affine_transform(solid, to_voxel, offset, tuple(counts), order=1, mode="constant")
    depth = _first_hit(seen)
    facing = _cosine(smoother, to_voxel, offset, depth, spacing_mm, axes[2])
    fog = 1 - _FOG * depth / max(counts[2] - 1, 1)
    return np.asarray(((_AMBIENT + (1 - _AMBIENT) * facing) * fog).T[::-1])


def _axes() -> Field:
    """Rows: the frame's right, its up, and the way of the rays, as unit vectors of (x, y, z) in RAS+."""
    ray = np.array([-np.sin(_TURN) * np.cos(_LIFT), -np.cos(_TURN) * np.cos(_LIFT), -np.sin(_LIFT)])
    right = np.array([-np.cos(_TURN), np.sin(_TURN), 0.0])
    return np.stack([right, np.cross(right, ray), ray])


def _first_hit(seen: NDArray[np.float32]) -> Field:
    """Depth in steps where each ray of (right, up, depth) first reaches one half, by a straight line between steps."""
    inside = seen >= 0.5
    k = inside.argmax(axis=2)
    before = np.maximum(k - 1, 0)
    high, low = (np.take_along_axis(seen, at[..., None], 2)[..., 0].astype(np.float64) for at in (k, before))
    rise = np.where(k > 0, high - low, 1.0)
    back = np.where(k > 0, (high - 0.5) / np.where(rise > 0, rise, 1.0), 0.0)
    return np.where(inside.any(axis=2), k - back, np.nan)


def _cosine(
    solid: NDArray[np.float32], to_voxel: Field, offset: Field, depth: Field, spacing_mm: Sequence[float], ray: Field
) -> Field:
    """Cosine of the angle between the surface's normal and the way back to the eye, 0 to 1; NaN without a hit."""
    i, j = np.indices(depth.shape)
    places = np.einsum("vf,f...->v...", to_voxel, np.stack([i, j, np.nan_to_num(depth)])) + offset[:, None, None]
    slopes = np.gradient(solid, *spacing_mm)
    inward = np.stack([ndimage.map_coordinates(slope, places, order=1, mode="nearest") for slope in slopes])
    length = np.sqrt((inward**2).sum(axis=0))
    cosine = np.einsum("v,v...->...", ray, inward) / np.where(length > 0, length, 1.0)
    return np.where(np.isnan(depth), np.nan, np.clip(cosine, 0, 1))
