"""NIfTI-1 and NIfTI-2, single files, compressed or not.

The file is unpacked here, to its end: a reader that stops at the last voxel never compares the gzip checksum.
"""

import gzip
import logging
import math
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from sscl.core.errors import UserError
from sscl.core.files import write_atomic
from sscl.core.memory import refuse_beyond_memory
from sscl.volumes.geometry import Affine, check_affine, distance_mm
from sscl.volumes.volume import Volume

DEFLATE_RATIO = 1032  # deflate cannot pack denser: a header that promises more is lying
_TEXTS = {"descrip", "aux_file", "db_name", "data_type"}  # where some programs leave the patient's name
_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # NIfTI's unknown, metre, millimetre, micrometre

_WRITABLE = 40  # nibabel's level of doubts about a header from which on it does not write it
_QUIET = logging.Logger("nibabel", logging.CRITICAL)

log = logging.getLogger("sscl")


def read_nifti(path: Path) -> Volume:
    """The scan as stored, scaled by scl_slope and scl_inter; the header goes along for writing masks.

    A fourth dimension (or the fifth of ITK's vector images) becomes the channels.

    Raises:
        UserError: truncated, damaged, not NIfTI, no usable orientation, not 3-D, or voxels that are not plain numbers.
    """
    raw, header = _unpack(path)
    dtype, shape, offset = header.get_data_dtype(), header.get_data_shape(), _offset(header)
    stored = np.frombuffer(raw, dtype, math.prod(shape), offset).reshape(shape, order="F")
    slope, inter = header.get_slope_inter()
    if slope is not None and (slope, inter) != (1, 0):
        stored = stored.astype(np.result_type(dtype, np.float32)) * slope + inter
    return Volume(_channels_first(stored, path), _affine(header, shape, path), header)


def write_nifti(path: Path, label: NDArray[Any], like: Volume) -> None:
    """Write a mask, atomically and compressed, on the grid of `like`, with the header of `like` if it has one.

    Raises:
        UserError: a header that cannot be written; `read_nifti` gives none that is known to be.
    """
    try:
        raw = _image(label, like).to_bytes()
    except (HeaderDataError, ValueError, OverflowError) as error:
        raise UserError(
            f"{path}: cannot be written with its scan's header ({error}). Save the scan again from its source."
        ) from None
    write_atomic(path, lambda file: file.write(gzip.compress(raw, 6, mtime=0)))


def _image(label: NDArray[Any], like: Volume) -> Any:
    if like.header is None:
        image = nibabel.Nifti1Image(label, like.affine)
        image.set_qform(like.affine, code=1)
        image.set_sform(like.affine, code=1)
        image.header.set_xyzt_units("mm")
    else:
        kind = nibabel.Nifti2Image if isinstance(like.header, nibabel.Nifti2Header) else nibabel.Nifti1Image
        image = kind(label, None, like.header)  # no affine: qform and sform stay as they are, to the last bit
        image.header.set_intent("none")
        for field in _TEXTS & set(image.header.keys()):
            image.header[field] = b""
        image.header["cal_min"] = image.header["cal_max"] = 0
    image.header.set_data_dtype(label.dtype)
    return image


def _unpack(path: Path) -> tuple[bytes, Any]:
    """All bytes and the header. The header's promise is compared with the file's size before memory is taken."""
    size = path.stat().st_size
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        try:
            stream = gzip.GzipFile(fileobj=file) if packed else file
            header = _header(stream.read(540), path)
            promised = _promised_bytes(header, path)
            if promised > size * (DEFLATE_RATIO if packed else 1):
                raise _truncated(path, promised, f"the file has {size} bytes")
            refuse_beyond_memory(promised + 4 * math.prod(map(int, header.get_data_shape())), path)  # and as float32
            stream.seek(0)
            layer = _thinnest_layer_bytes(header)
            raw = stream.read(promised + layer)  # past the last voxel, so that the checksum is compared
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(
                f"{path}: truncated or corrupt gzip data ({error}). Copy or download the file again."
            ) from None
    if len(raw) < promised:
        raise _truncated(path, promised, f"there are {len(raw)} bytes")
    if len(raw) >= promised + layer:
        raise UserError(
            f"{path}: holds more data than its header's shape {header.get_data_shape()} and type account for "
            f"({promised} bytes): the size is wrong. Save it again from its source."
        )
    if len(raw) > promised:
        excess = len(raw) - promised
        log.warning("%s: %d bytes after its last voxel are passed over. Look whether it is shifted.", path, excess)
    if packed != path.name.lower().endswith(".gz"):
        log.warning("%s: %s by its name, but it is not; read all the same.", path, "plain" if packed else "gzip")
    return raw, header


def _truncated(path: Path, promised: int, found: str) -> UserError:
    return UserError(f"{path}: truncated: its header expects {promised} bytes, {found}. Copy or download it again.")


def _header(head: bytes, path: Path) -> Any:
    """The header, not yet trusted. Extensions are left behind: they describe the scan, not a mask of it."""
    kinds = {348: (nibabel.Nifti1Header, 348), 540: (nibabel.Nifti2Header, 540)}
    for endian, order in (("<", "little"), (">", "big")):
        kind, length = kinds.get(int.from_bytes(head[:4], order), (None, 0))  # type: ignore[arg-type]
        if kind and len(head) >= length:
            header = kind(head[:length], endianness=endian, check=False)
            if header["magic"].item()[:3] in (b"n+1", b"n+2"):
                return header
    page = " It looks like a web page, as a failed download leaves it." if head.lstrip()[:1] == b"<" else ""
    raise UserError(f"{path}: not a single-file NIfTI: it starts with {head[:16]!r}.{page} Get the file again.")


def _promised_bytes(header: Any, path: Path) -> int:
    """Bytes from the start of the file to the last voxel, as the header has it."""
    try:
        dtype, shape, offset = header.get_data_dtype(), header.get_data_shape(), _offset(header)
        header.get_slope_inter()
        header.copy().check_fix(_QUIET, _WRITABLE)
        if np.isinf(header["scl_slope"]):  # nibabel would not scale
            raise HeaderDataError("scl_slope is infinite")
    except (HeaderDataError, ValueError, OverflowError, KeyError) as error:
        raise UserError(f"{path}: damaged NIfTI header: {error}. Save it again from its source.") from None
    if dtype.kind not in "iuf":
        raise UserError(f"{path}: voxels of type {dtype} (colour or complex). Convert them to one number per voxel.")
    if not shape or min(shape) < 1:
        raise UserError(f"{path}: damaged NIfTI header: shape {shape}. Save it again from its source.")
    return offset + math.prod(map(int, shape)) * int(dtype.itemsize)


def _thinnest_layer_bytes(header: Any) -> int:
    """One layer of voxels across the longest axis: a shape or type that is wrong leaves at least as much unread."""
    shape = list(map(int, header.get_data_shape()))
    return math.prod(shape) // max(shape) * int(header.get_data_dtype().itemsize)


def _offset(header: Any) -> int:
    return max(int(header["vox_offset"]), int(header.single_vox_offset))


def _channels_first(data: NDArray[Any], path: Path) -> NDArray[Any]:
    shape = data.shape
    spatial, extra = shape[:3], [n for n in shape[3:] if n > 1]
    if len(shape) < 3 or len(extra) > 1:
        raise UserError(f"{path}: a {len(shape)}-D file of shape {shape}; need 3 dimensions, or 4 with channels.")
    return np.moveaxis(data.reshape(*spatial, *(extra or [1]), order="F"), 3, 0)


def _affine(header: Any, shape: tuple[int, ...], path: Path) -> Affine:
    """The sform if it is coded, else the qform, else the bare voxel sizes; in millimetres."""
    header["pixdim"][0] = -1 if header["pixdim"][0] < 0 else 1  # the standard takes 0 for 1, nibabel raises
    unit = _MM_PER_UNIT.get(int(header["xyzt_units"]) & 7)
    if unit is None:
        raise UserError(f"{path}: unknown unit of length in its header (xyzt_units). Set it to millimetres.")
    try:
        sform, qform = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
    except (HeaderDataError, ValueError) as error:
        raise UserError(f"{path}: the qform of its header gives no affine: {error}. Mend the header.") from None
    relied_on = "qform_code" if sform is None else "sform_code"
    if int(header[relied_on]) not in nibabel.nifti1.xform_codes.value_set():  # programs disagree on what counts as set
        raise UserError(
            f"{path}: {relied_on} is {header[relied_on]}, which means nothing in NIfTI (0 to 5 do): whether its "
            "orientation holds is unknown. Set the code to 1 if it does, else to 0."
        )
    if sform is None and qform is None:
        log.warning("%s: orientation unknown (qform_code = sform_code = 0); taken from the voxel sizes alone.", path)
        sform = header.get_base_affine()
    elif qform is None:  # else the voxel sizes are the qform's, and compared below
        _compare_spacing(sform, header, path)
    affine: Affine = np.diag([unit, unit, unit, 1.0]) @ (qform if sform is None else sform)
    check_affine(affine, path)
    if sform is not None and qform is not None:
        apart = unit * distance_mm(sform, qform, shape)
        shifted = unit * distance_mm(sform, qform, (1, 1, 1))
        if shifted > 1e-3 or not apart <= 1e-3 + unit * _quaternion_blur(header, shape):
            raise UserError(
                f"{path}: qform and sform place the scan differently (by up to {apart:.4g} mm); which one holds is "
                "unknown. Set the wrong one's code to 0."
            )
    return affine


def _compare_spacing(sform: Affine, header: Any, path: Path) -> None:
    spacing, pixdim = np.linalg.norm(sform[:3, :3], axis=0), np.abs(header["pixdim"][1:4])
    if not np.allclose(spacing, pixdim, rtol=0.01):
        texts = [" x ".join(f"{length:g}" for length in lengths) for lengths in (spacing, pixdim)]
        log.warning("%s: voxels of %s by its sform, which is taken, but of %s by its pixdim. Look at it.", path, *texts)


def _quaternion_blur(header: Any, shape: tuple[int, ...]) -> float:
    """How far the qform may stray by rounding alone, in the header's unit.

    It keeps b, c, d in float32 and leaves a = sqrt(1 - b² - c² - d²) to the reader; nibabel takes a below 6e-4 for 0.
    Near a half turn, as in every slightly oblique scan stored as LPS, the root magnifies both: 1 mm has been seen.
    """
    b, c, d = (float(header[f"quatern_{letter}"]) for letter in "bcd")
    square, rounding = 1 - b * b - c * c - d * d, 4e-7
    angle = 2 * (math.sqrt(max(square + rounding, 0)) - math.sqrt(max(square - rounding, 0)))
    return angle * float(np.linalg.norm(np.array(shape[:3]) * header["pixdim"][1:4]))
