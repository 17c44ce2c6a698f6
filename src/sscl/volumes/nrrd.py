"""NRRD with its data in the same file."""

import io
import math
import zlib
from pathlib import Path
from typing import Any

import nrrd
import numpy as np

from sscl.core.errors import UserError
from sscl.core.memory import refuse_beyond_memory
from sscl.volumes.geometry import Affine, check_affine
from sscl.volumes.nifti import DEFLATE_RATIO
from sscl.volumes.volume import Volume

_SPACES = {  # the signs that turn the file's world axes to right, anterior, superior
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
}
_MM_PER_UNIT = {"mm": 1.0, "millimeter": 1.0, "m": 1000.0, "um": 0.001, "": 1.0}
_ELSEWHERE = ("data file", "datafile", "line skip", "lineskip", "byte skip", "byteskip")


def read_nrrd(path: Path) -> Volume:
    """The scan as stored; an axis without a space direction becomes the channels.

    Raises:
        UserError: truncated, damaged, data in another file (a header may not point elsewhere), unknown space, not 3-D.
    """
    refuse_beyond_memory(path.stat().st_size, path)
    stream = io.BytesIO(path.read_bytes())
    try:
        header = nrrd.read_header(stream)
        for field in _ELSEWHERE:
            if header.get(field):
                raise UserError(f"{path}: its data are not attached ('{field}: {header[field]}'). Save it as one file.")
        payload = _payload(header, stream, path)
        array = nrrd.read_data({**header, "encoding": "raw"}, io.BytesIO(payload))
        if len(payload) > array.nbytes + 16:  # a line end may follow the voxels
            raise ValueError(f"{len(payload)} bytes for sizes {header['sizes']}")
    except UserError:
        raise
    except (nrrd.NRRDError, ValueError, KeyError, TypeError, IndexError, StopIteration, OSError, zlib.error) as error:
        raise UserError(f"{path}: truncated or damaged NRRD ({error or 'no header'}). Get the file again.") from None
    affine, spatial = _affine(header, path)
    channels = [axis for axis in range(array.ndim) if axis not in spatial]
    array = array.transpose(*channels, *spatial)
    return Volume(array if channels else array[None], affine)


def _payload(header: dict[str, Any], stream: io.BytesIO, path: Path) -> bytes:
    """The voxels' bytes, unpacked; never more than the header's sizes can need."""
    voxels = math.prod(int(n) for n in header["sizes"])
    packed = stream.read()
    if not 0 < voxels <= DEFLATE_RATIO * len(packed):  # no type has less than a byte
        raise ValueError(f"sizes {header['sizes']} expect {voxels} voxels, the file has {len(packed)} bytes of them")
    refuse_beyond_memory(5 * voxels, path)  # and as float32
    if header["encoding"] == "raw":
        payload = packed
    else:
        if header["encoding"] not in ("gzip", "gz"):
            raise UserError(f"{path}: NRRD encoding '{header['encoding']}'. Save it as raw or gzip.")
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
        payload = unpacker.decompress(packed, 8 * voxels + 1)  # no type has more than 8 bytes
        if not unpacker.eof:
            raise ValueError("the compressed data do not end where the header's sizes say")
    if voxels > len(payload):
        raise ValueError(f"sizes {header['sizes']} expect {voxels} voxels, there are {len(payload)} bytes")
    return payload


def _affine(header: dict[str, Any], path: Path) -> tuple[Affine, list[int]]:
    """Voxel to RAS+ millimetres, and which axes of the array are spatial."""
    space = str(header.get("space", "")).lower()
    if space not in _SPACES or "space directions" not in header:
        raise UserError(
            f"{path}: orientation unknown: its space is '{space}' and must be left-posterior-superior, "
            "right-anterior-superior or left-anterior-superior with space directions. Save it again with these."
        )
    directions = np.atleast_2d(np.asarray(header["space directions"], dtype=np.float64))
    spatial = [axis for axis, row in enumerate(directions) if not np.isnan(row).all()]
    if len(spatial) != 3 or directions.shape[1] != 3 or len(directions) > 4:
        raise UserError(f"{path}: a NRRD of {len(spatial)} spatial and {len(directions)} axes in all; need a 3-D scan.")
    units = {unit.lower() for unit in header.get("space units", [])} or {""}
    unit = _MM_PER_UNIT.get(units.pop())
    if unit is None or units:
        raise UserError(f"{path}: space units {header['space units']} are not understood. Save it in mm.")
    affine = np.eye(4)
    affine[:3, :3] = directions[spatial].T
    origin = np.asarray(header.get("space origin", (0, 0, 0)), dtype=np.float64)
    if origin.shape != (3,):
        raise UserError(f"{path}: space origin {origin.tolist()}: expected 3 numbers. Save it again from its source.")
    affine[:3, 3] = origin
    affine = np.diag([*(unit * sign for sign in _SPACES[space]), 1]) @ affine
    check_affine(affine, path)
    return affine, spatial
