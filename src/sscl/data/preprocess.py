"""From a scan to network input and from probabilities back to its grid: one code for training and prediction."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sscl.core.errors import UserError
from sscl.core.memory import lacking_memory
from sscl.core.plan import IGNORE, Intensity, Plan
from sscl.volumes.volume import Volume

Size = tuple[int, int, int]


def preprocess(volume: Volume, plan: Plan) -> NDArray[np.float32]:
    """A RAS volume, resampled to the plan's spacing and normalised: float32, (channels, x, y, z).

    Linear interpolation, after a Gaussian of (factor - 1) / 2 voxels along axes that lose resolution, so that fine
    structure does not alias into coarse.

    Raises:
        UserError: nothing to normalise, or voxels of a size that leaves one or more than memory holds.
    """
    return np.stack([_normalise(_resample(channel, volume, plan), plan.intensity) for channel in volume.array])


def resample_label(label: Volume, plan: Plan) -> NDArray[np.int8]:
    """A RAS label volume on the plan's grid: class indices, IGNORE where the mask says `ignore`; (x, y, z).

    Each class is interpolated by itself and the largest wins: borders stay where they are, unlike with
    nearest-neighbour interpolation, and no class number appears that lies between two others.
    """
    values = label.array[0]
    size = _size(label, plan)
    if size == label.shape and _same(label.spacing_mm, plan.spacing_mm):
        classes = values.astype(np.int8)
        return np.where(values == plan.ignore_label, np.int8(IGNORE), classes)
    present = [int(value) for value in np.unique(values)]
    shares = (
        ndimage.affine_transform((values == value).astype(np.float32), **_mapping(label, size, plan))
        for value in present
    )
    names = [IGNORE if value == plan.ignore_label else value for value in present]
    return np.array(names, dtype=np.int8)[_largest(shares)]


def resampled(volume: Volume, plan: Plan) -> Volume:
    """A RAS volume on the plan's grid, its intensities as they were."""
    array = np.stack([_resample(channel, volume, plan) for channel in volume.array])
    shape: Size = array.shape[1:]
    if shape == volume.shape and _same(volume.spacing_mm, plan.spacing_mm):
        return Volume(array, volume.affine)
    scale = np.divide(plan.spacing_mm, volume.spacing_mm)
    step = np.eye(4)  # voxel index on the plan's grid -> voxel index of the scan
    step[:3, :3], step[:3, 3] = np.diag(scale), _offset(scale, volume.shape, shape)
    return Volume(array, volume.affine @ step)


def restore(probabilities: NDArray[np.float32], volume: Volume, plan: Plan) -> NDArray[np.int16]:
    """Class probabilities (classes, x, y, z) on the plan's grid to labels on the RAS volume's own grid, (x, y, z).

    One class at a time, so that memory holds two maps at the scan's resolution, however many classes there are.
    """
    return _largest(on_grid(probabilities, volume, plan)).astype(np.int16)


def on_grid(probabilities: NDArray[np.float32], volume: Volume, plan: Plan) -> Iterable[NDArray[np.float32]]:
    """Each class's probabilities, linearly interpolated on the RAS volume's own grid."""
    size = probabilities.shape[1:]
    if size == volume.shape and _same(volume.spacing_mm, plan.spacing_mm):
        yield from probabilities
        return
    scale = np.divide(volume.spacing_mm, plan.spacing_mm)
    offset = _offset(scale, size, volume.shape)
    for channel in probabilities:
        yield ndimage.affine_transform(channel, scale, offset, volume.shape, order=1, mode="nearest")


def target_size(shape: Size, spacing_mm: Iterable[float], target_mm: Iterable[float]) -> Size:
    """Voxels along each axis after resampling: the field of view, rounded to whole voxels, at least one."""
    x, y, z = (max(1, round(n * old / new)) for n, old, new in zip(shape, spacing_mm, target_mm, strict=True))
    return x, y, z


def _size(volume: Volume, plan: Plan) -> Size:
    """On the plan's grid; metres taken for millimetres are refused, before memory is taken for them."""
    size = target_size(volume.shape, volume.spacing_mm, plan.spacing_mm)
    lack = lacking_memory(8 * len(volume.array) * math.prod(size))  # float32, and a copy
    if lack or math.prod(size) == 1:
        old, new, shape = (
            "x".join(f"{value:g}" for value in row) for row in (volume.spacing_mm, plan.spacing_mm, size)
        )
        raise UserError(
            f"resampled from {old} mm to the plan's {new} mm it has {shape} voxels"
            + (f", which take {lack}. " if lack else ". ")
            + "Is its voxel size in the right unit? The plan's is set by --set spacing_mm=X,Y,Z."
        )
    return size


def _resample(channel: NDArray[np.float32], volume: Volume, plan: Plan) -> NDArray[np.float32]:
    channel = channel.astype(np.float32)
    if _same(volume.spacing_mm, plan.spacing_mm):
        return channel
    size = _size(volume, plan)
    factor = np.divide(plan.spacing_mm, volume.spacing_mm)
    smooth = ndimage.gaussian_filter(channel, np.maximum(0, (factor - 1) / 2), mode="nearest")
    resampled: NDArray[np.float32] = ndimage.affine_transform(smooth, **_mapping(volume, size, plan))
    return resampled


def _mapping(volume: Volume, size: Size, plan: Plan) -> dict[str, Any]:
    """Arguments of affine_transform that keep the centre of the field of view where it is."""
    scale = np.divide(plan.spacing_mm, volume.spacing_mm)
    offset = _offset(scale, volume.shape, size)
    return {"matrix": scale, "offset": offset, "output_shape": size, "order": 1, "mode": "nearest"}


def _offset(scale: NDArray[np.float64], source: Iterable[int], target: Iterable[int]) -> NDArray[np.float64]:
    """Input index = scale * output index + offset, with both centres at the same place."""
    centre_in, centre_out = (np.array(list(source)) - 1) / 2, (np.array(list(target)) - 1) / 2
    return centre_in - scale * centre_out


def _normalise(channel: NDArray[np.float32], intensity: Intensity) -> NDArray[np.float32]:
    """The window, then z-scores of the volume, or the window's range to 0..1, or nothing more."""
    if intensity.window is not None:
        channel = np.clip(channel, *intensity.window)
    if intensity.scaling == "none":
        shift, scale = 0.0, 1.0
    elif intensity.scaling == "unit":
        low, high = intensity.window or (float(channel.min()), float(channel.max()))
        shift, scale = low, high - low
    else:
        shift, scale = channel.mean(dtype=np.float64), channel.std(dtype=np.float64)
    if not scale > 0 or channel.min() == channel.max():
        raise UserError("every voxel has the same value, so the image cannot be normalised: is it an empty scan?")
    return ((channel - shift) / scale).astype(np.float32)


def _largest(maps: Iterable[NDArray[np.float32]]) -> NDArray[np.intp]:
    """Index of the largest of several maps at each voxel; the first one where they are equal."""
    iterator = iter(maps)
    best = np.array(next(iterator))
    index = np.zeros(best.shape, dtype=np.intp)
    for number, candidate in enumerate(iterator, start=1):
        larger = candidate > best
        best[larger], index[larger] = candidate[larger], number
    return index


def _same(first_mm: Iterable[float], second_mm: Iterable[float]) -> bool:
    """Spacings that differ by less than a hundredth of a percent are one: headers store float32."""
    return bool(np.allclose(list(first_mm), list(second_mm), rtol=1e-4, atol=0))
