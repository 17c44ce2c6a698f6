"""A DICOM series in a folder: one file a slice, ordered by where the slices lie."""

from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError
from pydicom.pixels.utils import pixel_array

from sscl.core.errors import UserError
from sscl.volumes.geometry import Affine, check_affine
from sscl.volumes.volume import Volume

_NEEDED = {  # and how many values each has
    "SeriesInstanceUID": 1,
    "ImagePositionPatient": 3,
    "ImageOrientationPatient": 6,
    "PixelSpacing": 2,
    "Rows": 1,
    "Columns": 1,
}


def is_series(folder: Path) -> bool:
    """Whether a DICOM file lies in the folder or below."""
    return folder.is_dir() and any(_is_dicom(path) for path in _files(folder))


def read_dicom(folder: Path) -> Volume:
    """The one series in the folder or below (other files may lie there too), in rescaled units, float32.

    Raises:
        UserError: no series or several, a slice missing, doubled or of another size, undecodable pixels.
    """
    slices = [_read_slice(path) for path in _files(folder) if _is_dicom(path)]
    if not slices:
        raise UserError(f"{folder}: a folder without DICOM files. Give a scan file or the folder of one DICOM series.")
    _check_one_series(slices, folder)
    affine, slices = _place(slices, folder)
    array = np.empty((1, slices[0].Columns, slices[0].Rows, len(slices)), np.float32)
    for k, item in enumerate(slices):
        array[0, :, :, k] = _pixels(item)
    return Volume(array, affine)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir() and path.name.upper() != "DICOMDIR")


def _is_dicom(path: Path) -> bool:
    """By the ending, so that a broken slice is an error, or by the mark at byte 128."""
    if path.name.startswith("."):
        return False
    if path.suffix.lower() in (".dcm", ".ima"):
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _read_slice(path: Path) -> pydicom.Dataset:
    try:
        item = pydicom.dcmread(path)
        missing = [name for name, size in _NEEDED.items() if item.get(name) is None or np.size(item.get(name)) != size]
    except (InvalidDicomError, EOFError, ValueError, KeyError, NotImplementedError) as error:
        raise UserError(f"{path}: not a readable DICOM file ({error}). Get the slice again.") from None
    if missing or int(item.get("NumberOfFrames") or 1) > 1 or item.get("SamplesPerPixel", 1) != 1:
        lacks = f"lacks {', '.join(missing)}" if missing else "holds several frames or colours"
        raise UserError(f"{path}: no plain slice of a scan: it {lacks}. Remove it, or convert the series to NIfTI.")
    return item


def _check_one_series(slices: list[pydicom.Dataset], folder: Path) -> None:
    series = sorted({str(item.SeriesInstanceUID) for item in slices})
    if len(series) > 1:
        raise UserError(
            f"{folder}: more than one DICOM series ({', '.join(series)}). Put each series into a folder of its own."
        )
    first = slices[0]
    for item in slices:
        for name in ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"):
            if not np.allclose(np.array(item[name].value, float), np.array(first[name].value, float), atol=1e-4):
                raise UserError(
                    f"{item.filename}: {name} is {item[name].value}, in {first.filename} it is {first[name].value}. "
                    "Remove slices that do not belong to the scan."
                )


def _place(slices: list[pydicom.Dataset], folder: Path) -> tuple[Affine, list[pydicom.Dataset]]:
    """The affine, and the slices in order of their positions along the normal; InstanceNumber may run either way."""
    orientation = np.array(slices[0].ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(*orientation)
    slices = sorted(slices, key=lambda item: float(np.dot(normal, _position(item))))
    if len(slices) < 2:
        raise UserError(f"{folder}: a DICOM series of a single slice. A 3-D scan needs at least 2.")
    positions = np.array([_position(item) for item in slices])
    _check_gaps(slices, np.diff(positions @ normal))
    rows_apart, columns_apart = (float(value) for value in slices[0].PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0] = orientation[0] * columns_apart
    affine[:3, 1] = orientation[1] * rows_apart
    affine[:3, 2] = (positions[-1] - positions[0]) / (len(slices) - 1)
    affine[:3, 3] = positions[0]
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM's axes are left, posterior, superior
    check_affine(affine, folder)
    return affine, slices


def _check_gaps(slices: list[pydicom.Dataset], gaps: NDArray[np.float64]) -> None:
    usual = float(np.median(gaps))
    worst = int(np.abs(gaps - usual).argmax())
    if usual <= 0 or abs(gaps[worst] - usual) > max(0.01 * usual, 0.1):
        raise UserError(
            f"{slices[worst].filename}: the gap to the next slice ({slices[worst + 1].filename}) is "
            f"{gaps[worst]:.3f} mm, the usual gap is {usual:.3f} mm: a slice is missing, doubled or displaced. "
            "Get the whole series again."
        )


def _position(item: pydicom.Dataset) -> NDArray[np.float64]:
    return np.array(item.ImagePositionPatient, float)


def _pixels(item: pydicom.Dataset) -> NDArray[np.float32]:
    """x, y of one slice, with the slice's own rescale slope and intercept."""
    try:
        stored = pixel_array(item)
    except (ValueError, RuntimeError, NotImplementedError, AttributeError, ImportError, KeyError, TypeError) as error:
        syntax = item.file_meta.get("TransferSyntaxUID", "unknown")
        raise UserError(
            f"{item.filename}: its pixels cannot be decoded (transfer syntax {getattr(syntax, 'name', syntax)}: "
            f"{error}). If compressed, decompress the series (dcmdjpeg, or gdcmconv --raw); else get it again."
        ) from None
    slope, intercept = float(item.get("RescaleSlope") or 1), float(item.get("RescaleIntercept") or 0)
    return np.asarray(stored.T * np.float64(slope) + intercept, dtype=np.float32)
