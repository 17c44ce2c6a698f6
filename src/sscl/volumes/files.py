"""Scans and masks from files of any known kind, checked as far as one file can be; masks back to files."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sscl.core.errors import UserError
from sscl.volumes.dicom import is_series, read_dicom
from sscl.volumes.geometry import grid_text, same_grid
from sscl.volumes.h5 import read_h5
from sscl.volumes.nifti import read_nifti, write_nifti
from sscl.volumes.nrrd import read_nrrd
from sscl.volumes.volume import Volume

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".h5")
"""Endings of volume files, in lower case; any case is read. A folder can be a DICOM series."""

_PICKLES = (".npy", ".npz", ".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib")

Spacing = tuple[float, float, float]
log = logging.getLogger("sscl")


def is_volume(path: Path) -> bool:
    """Whether the path is a volume: by its name (also if it then proves unreadable), or a folder with DICOM files."""
    return not path.name.startswith(".") and (_suffix(path) != "" or is_series(path))


def case_stem(path: Path) -> str:
    """The name without its ending: `a.b.nii.gz` gives `a.b`; a DICOM folder's name is kept whole."""
    return path.name[: len(path.name) - len(_suffix(path))]


def unknown_kind(path: Path) -> str:
    """What to say of a file that is no volume by its name."""
    if path.suffix.lower() in _PICKLES:
        return f"may hold pickled objects ('{path.suffix}'), which run code when they are read: unsafe, never opened."
    return f"is not a volume of a known kind. Known: {', '.join(SUFFIXES)}, or the folder of a DICOM series."


def read_image(paths: Sequence[Path], num_channels: int, spacing_if_missing_mm: Spacing | None = None) -> Volume:
    """A scan as stored on disk: (channels, x, y, z) float32, every value finite.

    paths: one file (or DICOM folder) a channel, or a single one that holds all channels.

    Raises:
        UserError: unreadable, damaged, not 3-D, another number of channels, NaN, constant, channels on unequal grids.
    """
    volumes = [_read_channels(path, spacing_if_missing_mm) for path in paths]
    first, counts = volumes[0], [len(volume.array) for volume in volumes]
    if sum(counts) != num_channels or (len(paths) > 1 and max(counts) > 1):
        raise UserError(
            f"{', '.join(map(str, paths))}: {' + '.join(map(str, counts))} channels (a 4-D file counts its fourth "
            f"dimension), but the data set declares {num_channels}. Give one file a channel, or declare them."
        )
    for path, volume in zip(paths[1:], volumes[1:], strict=True):
        if not same_grid(first, volume):
            raise UserError(
                f"{path}: another grid ({grid_text(volume)}) than {paths[0]} ({grid_text(first)}). Resample the "
                "channels to one grid, with axes in one order."
            )
    array = np.concatenate([volume.array for volume in volumes]) if len(volumes) > 1 else first.array
    return Volume(array, first.affine, first.header)


def read_label(
    path: Path, spacing_if_missing_mm: Spacing | None = None, label_map: Mapping[int, int] | None = None
) -> Volume:
    """A mask as stored on disk: (1, x, y, z), int16, or int32 where values need it.

    label_map: stored value to class, where they differ (the left-atrium challenge stores 255 for class 1).

    Raises:
        UserError: unreadable, damaged, not 3-D, several channels, or values that are not integers.
    """
    volume = _read(path, "label", spacing_if_missing_mm)
    if len(volume.array) != 1:
        raise UserError(f"{path}: a 4-D mask of {len(volume.array)} channels (one-hot?). Give one integer a voxel.")
    values = _integers(volume.array, path)
    stored = values.copy()
    for old, new in (label_map or {}).items():
        values[stored == old] = new
    return Volume(values, volume.affine, volume.header)


def write_label(path: Path, label: NDArray[Any], like: Volume) -> None:
    """Write (x, y, z) integers, on the grid of `like`, to a .nii.gz: whole or not at all.

    uint8, or int16 where values need it. A NIfTI header of `like` is kept; otherwise its affine makes a new one.
    """
    assert label.shape == like.shape, (label.shape, like.shape)
    dtype = np.uint8 if label.min() >= 0 and label.max() <= 255 else np.int16
    cast = label.astype(dtype)
    assert (cast == label).all(), (label.min(), label.max())
    write_nifti(path, cast, like)


def _suffix(path: Path) -> str:
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")


def _read(path: Path, dataset: str, spacing_mm: Spacing | None) -> Volume:
    """Any kind of file; of the kinds that hold image and label, the one asked for."""
    try:
        _check_path(path)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # parsers' doubts about fields: those that count are checked here
            volume = _parsed(path, dataset, spacing_mm)
    except UserError:
        raise
    except OSError as error:
        where = error.filename or path  # of a DICOM folder, the slice
        raise UserError(f"{where}: cannot be read: {error.strerror or error}. Check permissions and disk.") from None
    except MemoryError:
        raise UserError(f"{path}: too large for this machine's memory. Crop it, or use a larger machine.") from None
    except Exception as error:  # whatever else a parser meets in damaged bytes
        raise UserError(
            f"{path}: damaged, or not what its name says ({type(error).__name__}: {error}). Get it again."
        ) from error
    if min(volume.shape) < 2:
        raise UserError(f"{path}: shape {volume.shape} is a single slice (2-D). A 3-D scan has at least 2 slices.")
    return volume


def _parsed(path: Path, dataset: str, spacing_mm: Spacing | None) -> Volume:
    match _suffix(path):
        case ".nii.gz" | ".nii":
            return read_nifti(path)
        case ".nrrd":
            return read_nrrd(path)
        case ".h5":
            return read_h5(path, dataset, spacing_mm)
        case _:
            return read_dicom(path)


def _check_path(path: Path) -> None:
    """What is wrong with a file before it is opened."""
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path}: a link to {path.readlink()}, which does not exist. Restore the file or the link.")
    if not path.exists():
        raise UserError(f"{path}: not found. Check the path.")
    suffix = _suffix(path)
    if path.is_dir() != (suffix == ""):
        if suffix:
            raise UserError(f"{path}: a folder named like a {suffix} file. Rename or remove it.")
        raise UserError(f"{path}: {unknown_kind(path)}")
    if suffix and not path.is_file():
        raise UserError(f"{path}: a device or pipe, not a file. Give a regular file.")
    if suffix and path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty (0 bytes). Copy or download it again.")
    if not path.name.endswith(suffix):
        log.warning("%s: the ending is not written %s; read all the same.", path, suffix)
    if suffix.startswith(".nii"):
        _check_twin(path)


def _check_twin(path: Path) -> None:
    """`x.nii` beside `x.nii.gz` is ambiguous: some readers open one when asked for the other."""
    for ending in (".nii", ".nii.gz", ".NII", ".NII.GZ"):
        twin = path.with_name(case_stem(path) + ending)
        if twin.exists() and not twin.samefile(path):
            raise UserError(f"{path}: ambiguous: there are both {path.name} and {twin.name}. Remove one of them.")


def _read_channels(path: Path, spacing_mm: Spacing | None) -> Volume:
    """An image of finite, not constant float32 values."""
    volume = _read(path, "image", spacing_mm)
    for channel in volume.array:
        if channel.min() == channel.max():
            raise UserError(
                f"{path}: a constant image: every voxel of shape {channel.shape} is {channel.flat[0]} (zero variance). "
                "Leave the case out, or get the scan again."
            )
    with np.errstate(over="ignore"):  # beyond float32 is infinite, and counted as such
        array = np.ascontiguousarray(volume.array, dtype=np.float32)
    planes = array.reshape(-1, *array.shape[-2:])  # one at a time, so that no mask of a large scan is made
    bad = array.size - sum(int(np.isfinite(plane).sum()) for plane in planes)
    if bad:
        raise UserError(f"{path}: {bad} voxels are NaN or infinite (not finite). Repair the scan or leave it out.")
    return Volume(array, volume.affine, volume.header)


def _integers(values: NDArray[Any], path: Path) -> NDArray[Any]:
    """The values as int16 or int32; 2.9999 counts as 3, which is how a scaled integer file gives a 3 back."""
    if values.dtype.kind == "f":
        bad = int((~np.isfinite(values)).sum())
        if bad:
            raise UserError(f"{path}: {bad} voxels of the mask are NaN or infinite. Every voxel needs a label.")
        whole = np.rint(values)
        wrong = values[np.abs(values - whole) > 1e-3]
        if wrong.size:
            raise UserError(
                f"{path}: {wrong.size} voxels of the mask are not integers (for instance {wrong[0]:.4g}). It may be an "
                "image, or a mask resampled without nearest neighbour."
            )
        values = whole
    low, high = values.min(), values.max()
    for dtype in (np.int16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return np.ascontiguousarray(values, dtype=dtype)
    raise UserError(f"{path}: mask values from {low} to {high} are no labels. Give small integers.")
