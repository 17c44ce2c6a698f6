"""A DICOM series in a folder: one file a slice, ordered by where the slices lie."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels.utils import pixel_array

from sscl.core.errors import UserError
from sscl.core.memory import refuse_beyond_memory
from sscl.volumes.geometry import Affine, check_affine
from sscl.volumes.volume import Volume

_NUMBERS = {  # and how many values each has
    "ImagePositionPatient": 3,
    "ImageOrientationPatient": 6,
    "PixelSpacing": 2,
    "Rows": 1,
    "Columns": 1,
}
_RESCALING = {"RescaleSlope": 1.0, "RescaleIntercept": 0.0}  # and what holds in a series that has none
_SLICES = {".dcm", ".ima"}
_NOTES = {".csv", ".htm", ".html", ".json", ".log", ".md", ".pdf", ".tsv", ".txt", ".xml", ".yaml"}
_COMPANIONS = _NOTES | {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".db", ".ini"}  # Thumbs.db and desktop.ini, too

log = logging.getLogger("sscl")


@dataclass(frozen=True)
class _Slice:
    """One file: its numbers, all finite; what its stored values mean, in words; what its pixels are decoded from."""

    path: Path
    series: str
    numbers: dict[str, NDArray[np.float64]]
    slope: float
    intercept: float
    values: str
    item: pydicom.Dataset


def is_series(folder: Path) -> bool:
    """Whether a DICOM file lies in the folder or below, or something that may not be read: reading it says so."""
    try:
        return folder.is_dir() and any(_is_dicom(path) for path in _files(folder))
    except OSError:
        return True


def read_dicom(folder: Path) -> Volume:
    """The one series in the folder or below, in rescaled units, float32. What else lies there is told.

    Raises:
        UserError: no series or several, a slice missing, doubled or of another size, undecodable pixels, or a file that
            belongs to the series and cannot be read as a slice.
        OSError: a file or folder below may not be read.
    """
    files = _files(folder)
    slices = [_read_slice(path) for path in files if _is_dicom(path)]
    if not slices:
        raise UserError(f"{folder}: a folder without DICOM files. Give a scan file or the folder of one DICOM series.")
    _check_one_series(slices, folder)
    _check_others([path for path in files if not _is_dicom(path)], slices[0].series, folder)
    affine, slices = _place(slices, folder)
    columns, rows = (int(slices[0].numbers[name][0]) for name in ("Columns", "Rows"))
    refuse_beyond_memory(8 * columns * rows * len(slices), folder)  # float32, and a copy in RAS+
    array = np.empty((1, columns, rows, len(slices)), np.float32)
    for k, item in enumerate(slices):
        array[0, :, :, k] = _pixels(item, (columns, rows))
    return Volume(array, affine)


def patient_of(folder: Path) -> str | None:
    """The PatientID of a series' first file, only to be compared with others' and never to be shown or kept.

    None: it holds none, or is no readable DICOM file.
    """
    try:
        first = next(path for path in _files(folder) if _is_dicom(path) and path.is_file())
        item = pydicom.dcmread(first, stop_before_pixels=True, specific_tags=["PatientID"])
        return str(item.get("PatientID") or "").strip() or None
    except Exception:  # no file, or whatever a parser meets in damaged bytes; reading the series says so
        return None


def _files(folder: Path) -> list[Path]:
    """What lies in the folder and below but hidden files and DICOMDIR; links to folders, which are not followed.

    Raises:
        OSError: a folder may not be read; `rglob` would pass it over.
    """
    found = []
    for top, folders, names in os.walk(folder, onerror=_raise):
        links = [name for name in folders if Path(top, name).is_symlink()]
        found += [Path(top, name) for name in (*names, *links) if name[0] != "." and name.upper() != "DICOMDIR"]
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def _is_dicom(path: Path) -> bool:
    """By the ending, so that a broken slice is an error, or by the mark at byte 128."""
    if path.suffix.lower() in _SLICES:
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _read_slice(path: Path) -> _Slice:
    if not path.is_file():
        raise _no_file(path)
    try:
        item = pydicom.dcmread(path)
        numbers = {name: np.atleast_1d(np.array(item.get(name, ()), np.float64)) for name in _NUMBERS}
        has = [name for name in _RESCALING if name in item]
        empty = [f"a value of {name}" for name in has if item[name].is_empty]
        slope, intercept = (float(item[name].value or 0) if name in has else _RESCALING[name] for name in _RESCALING)
        series = str(item.get("SeriesInstanceUID") or "")
        odd = _odd(item)
    except OSError:
        raise
    except Exception as error:  # whatever a parser meets in damaged bytes
        raise UserError(
            f"{path}: not a readable DICOM file ({type(error).__name__}: {error}). Get the slice again."
        ) from None
    missing = [] if series else ["SeriesInstanceUID"]
    missing += [name for name, size in _NUMBERS.items() if numbers[name].shape != (size,)] + empty
    if missing or odd:
        lacks = f"lacks {', '.join(missing)}" if missing else odd
        raise UserError(f"{path}: no plain slice of a scan: it {lacks}. Remove it, or convert the series to NIfTI.")
    lengths = np.linalg.norm(numbers["ImageOrientationPatient"].reshape(2, 3), axis=1)
    sound = np.isfinite([slope, intercept, *np.concatenate(list(numbers.values()))]).all()
    if not sound or slope == 0 or numbers["PixelSpacing"].min() <= 0 or np.abs(lengths - 1).max() > 1e-3:
        raise UserError(
            f"{path}: its position, direction, spacing or rescaling ({slope} x + {intercept}) is no plain number or "
            "none that can be. Get the slice again."
        )
    values = f"{item.PhotometricInterpretation} with {' and '.join(has) or 'no rescaling'}"
    return _Slice(path, series, numbers, slope, intercept, values, item)


def _odd(item: pydicom.Dataset) -> str:
    """Why pixels are no intensities that a linear rescaling makes units of; empty if they are."""
    kind = item.get("PhotometricInterpretation")
    if int(item.get("NumberOfFrames") or 1) != 1 or item.get("SamplesPerPixel", 1) != 1:
        return "holds several frames or colours"
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        return f"has pixels of the kind '{kind}', not MONOCHROME1 or MONOCHROME2"
    if item.get("ModalityLUTSequence"):
        return "gives the units of its pixels by a table (ModalityLUTSequence), not by slope and intercept"
    return ""


def _check_one_series(slices: list[_Slice], folder: Path) -> None:
    series = sorted({item.series for item in slices})
    if len(series) > 1:
        raise UserError(
            f"{folder}: more than one DICOM series ({', '.join(series)}). Put each series into a folder of its own."
        )
    first = slices[0]
    for item in slices:
        for name in ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"):
            here, there = item.numbers[name], first.numbers[name]
            if not np.allclose(here, there, atol=1e-4):
                raise UserError(
                    f"{item.path}: {name} is {here.tolist()}, in {first.path} it is {there.tolist()}. "
                    "Remove slices that do not belong to the scan."
                )
        if item.values != first.values:
            raise UserError(
                f"{item.path}: its values are {item.values}, those of {first.path} {first.values}. Remove slices that "
                "do not belong to the scan, or get the series again."
            )


def _check_others(paths: Sequence[Path], series: str, folder: Path) -> None:
    """What is no slice to us: refused if it must be one, told if it may be."""
    unknown = []
    for path in paths:
        if path.suffix.lower() in _COMPANIONS:
            continue
        if path.is_dir():
            raise UserError(
                f"{path}: a link to a folder, which is not followed, and slices may lie there. Put the folder in its "
                "place, or remove the link."
            )
        if not path.is_file():
            raise _no_file(path)
        with path.open("rb") as file:
            head = file.read(1 << 16)
        text = head and b"\0" not in head  # LICENSE, for instance
        named = series.encode() in head  # a slice does so near its begin
        if not _SLICES.isdisjoint(suffix.lower() for suffix in path.suffixes) or (named and not text):
            raise UserError(
                f"{path}: by its name or content a slice of the series in {folder}, but packed, incomplete or without "
                "DICOM's header (the mark DICM at byte 128). Unpack it, get it again, or remove it."
            )
        if not text:
            unknown.append(path)
    if unknown:
        log.warning(
            "%s: %d files that are no DICOM slices are passed over, for instance %s. If they hold slices, the scan is "
            "incomplete.", folder, len(unknown), unknown[0].name,
        )  # fmt: skip


def _no_file(path: Path) -> UserError:
    return UserError(f"{path}: not a file, but a broken link, a pipe or a device. Restore the slice or remove it.")


def _place(slices: list[_Slice], folder: Path) -> tuple[Affine, list[_Slice]]:
    """The affine, and the slices in order of their positions along the normal; InstanceNumber may run either way."""
    orientation = slices[0].numbers["ImageOrientationPatient"].reshape(2, 3)
    normal = np.cross(*orientation)
    slices = sorted(slices, key=lambda item: float(np.dot(normal, _position(item))))
    if len(slices) < 2:
        raise UserError(f"{folder}: a DICOM series of a single slice. A 3-D scan needs at least 2.")
    positions = np.array([_position(item) for item in slices])
    gaps = np.diff(positions @ normal)
    rounding = min(0.1, float(np.median(gaps)) / 4)  # positions are often written to 0.1 mm; slices can be closer
    _check_gaps(slices, gaps, rounding)
    _check_line(slices, positions, rounding)
    rows_apart, columns_apart = slices[0].numbers["PixelSpacing"]
    affine = np.eye(4)
    affine[:3, 0] = orientation[0] * columns_apart
    affine[:3, 1] = orientation[1] * rows_apart
    affine[:3, 2] = (positions[-1] - positions[0]) / (len(slices) - 1)
    affine[:3, 3] = positions[0]
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM's axes are left, posterior, superior
    check_affine(affine, folder)
    return affine, slices


def _check_gaps(slices: list[_Slice], gaps: NDArray[np.float64], rounding: float) -> None:
    usual = float(np.median(gaps))
    worst = int(np.abs(gaps - usual).argmax())
    if usual <= 0 or abs(gaps[worst] - usual) > max(0.01 * usual, rounding):
        raise UserError(
            f"{slices[worst].path}: the gap to the next slice ({slices[worst + 1].path}) is "
            f"{gaps[worst]:.3f} mm, the usual gap is {usual:.3f} mm: a slice is missing, doubled or displaced. "
            "Get the whole series again."
        )


def _check_line(slices: list[_Slice], positions: NDArray[np.float64], rounding: float) -> None:
    """All slices lie where a straight stack has them, to half a pixel."""
    regular = np.linspace(positions[0], positions[-1], len(positions))
    aside = np.linalg.norm(positions - regular, axis=1)
    worst = int(aside.argmax())
    if aside[worst] > max(rounding, slices[0].numbers["PixelSpacing"].min() / 2):
        raise UserError(
            f"{slices[worst].path}: the slice lies {aside[worst]:.3f} mm beside the line of the others: displaced. "
            "Get the whole series again."
        )


def _position(item: _Slice) -> NDArray[np.float64]:
    return item.numbers["ImagePositionPatient"]


def _pixels(item: _Slice, size: tuple[int, int]) -> NDArray[np.float32]:
    """x, y of one slice, with the slice's own rescale slope and intercept."""
    try:
        stored = pixel_array(item.item).T
    except Exception as error:  # whatever a decoder meets in damaged bytes
        syntax = item.item.file_meta.get("TransferSyntaxUID", "unknown")
        raise UserError(
            f"{item.path}: its pixels cannot be decoded (transfer syntax {getattr(syntax, 'name', syntax)}: "
            f"{error}). If compressed, decompress the series (dcmdjpeg, or gdcmconv --raw); else get it again."
        ) from None
    if stored.shape != size:
        raise UserError(f"{item.path}: {stored.shape} pixels, its header says {size}. Get the slice again.")
    return np.asarray(stored * item.slope + item.intercept, dtype=np.float32)
