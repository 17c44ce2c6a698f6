"""The case store: preprocessed volumes on disk, compressed in blocks, so that a crop reads only what it needs."""

import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import blosc2
import numpy as np
from numpy.typing import NDArray

from sscl.core.errors import UserError
from sscl.core.files import read_object, sha256, write_atomic, write_json

BLOCK, CHUNK = 32, 128
DIGESTS = "sha256.json"
"""File to SHA-256, for all files of the store: blosc2 itself gives the bytes of a damaged file without a word."""

Stored: TypeAlias = NDArray[np.generic] | blosc2.NDArray
"""An array in memory, or one on disk that is read where it is sliced."""

logger = logging.getLogger("sscl")


def write_case(
    folder: Path, case_id: str, image: NDArray[np.float32], label: NDArray[np.int8] | None
) -> dict[str, str]:
    """Write one case: image (channels, x, y, z) as float16, label (x, y, z) as int8 if there is one.

    Returns:
        The files' digests by name, for `write_digests`.

    Raises:
        UserError: intensities that float16 cannot hold.
    """
    largest, most = max(float(image.max()), -float(image.min())), float(np.finfo(np.float16).max)
    if largest > most:
        raise UserError(
            f"intensities up to {largest:.4g} after preprocessing, and the store holds at most {most:.0f}. Use "
            "--set scaling=zscore, or a window."
        )
    arrays: dict[str, NDArray[np.generic]] = {f"{case_id}.image.b2nd": image.astype(np.float16)}
    if label is not None:
        arrays[f"{case_id}.label.b2nd"] = label
    return {name: _write(folder / name, array) for name, array in arrays.items()}


def write_digests(folder: Path, digests: Mapping[str, str]) -> None:
    """The last file of a store."""
    write_json(folder / DIGESTS, dict(digests))


class CaseStore:
    """Reads cases of a prepared data set; keeps small sets in memory, because decompression costs more than copying.

    Each file is compared with its digest before it is first used.
    """

    def __init__(self, folder: Path, memory_bytes: int = 2_000_000_000) -> None:
        self._folder = folder
        self._free = memory_bytes
        self._kept: dict[str, NDArray[np.generic]] = {}
        self._verified: set[str] = set()

    def image(self, case_id: str) -> Stored:
        """(channels, x, y, z), float16; slicing it reads from disk or memory."""
        return self._open(f"{case_id}.image.b2nd")

    def label(self, case_id: str) -> Stored:
        """(x, y, z), int8, IGNORE where no loss may look."""
        return self._open(f"{case_id}.label.b2nd")

    def verify(self) -> None:
        """Raises UserError for a file that is missing or damaged."""
        for name in self._promised or ():
            if not (self._folder / name).is_file():
                raise UserError(f"{self._folder / name}: is missing. Prepare the data set again.")
            self._verify(name)

    def share_memory(self, processes: int) -> None:
        """Use only this one's part of the memory, where several processes have such a store."""
        self._free //= processes

    def _open(self, name: str) -> Stored:
        if name not in self._kept:
            path = self._folder / name
            try:
                self._verify(name)
                stored = blosc2.open(str(path), mode="r")  # runs no code that a file may hold, from 4.14 on
            except UserError:
                raise
            except Exception as error:  # whatever blosc2 meets in damaged bytes
                raise UserError(f"{path}: missing or damaged ({error}). Prepare the data set again.") from None
            if not isinstance(stored, blosc2.NDArray):
                raise UserError(f"{path}: damaged: it holds no array. Prepare the data set again.")
            size = int(np.prod(stored.shape)) * stored.dtype.itemsize
            if size > self._free:
                return stored
            self._free -= size
            self._kept[name] = stored[:]
        return self._kept[name]

    def _verify(self, name: str) -> None:
        if name in self._verified:
            return
        path = self._folder / name
        if self._promised is not None and self._promised.get(name) != sha256(path):
            raise UserError(f"{path}: missing or damaged (its digest is another). Prepare the data set again.")
        self._verified.add(name)

    @cached_property
    def _promised(self) -> Mapping[str, str] | None:
        path = self._folder / DIGESTS
        if path.is_file():
            return read_object(path)
        logger.warning("%s: the store has no digests: an earlier version made it, and damage would go unnoticed.", path)
        return None


def _write(path: Path, array: NDArray[np.generic]) -> str:
    """blosc2 makes the bytes and does not write them itself: on a full disk it may fail without a word."""
    leading = (1,) * (array.ndim - 3)
    frame = blosc2.asarray(
        np.ascontiguousarray(array),
        chunks=leading + tuple(min(CHUNK, n) for n in array.shape[-3:]),  # without it, `blocks` has no effect
        blocks=leading + tuple(min(BLOCK, n) for n in array.shape[-3:]),
        cparams=blosc2.CParams(codec=blosc2.Codec.LZ4, clevel=5, filters=[blosc2.Filter.SHUFFLE], nthreads=1),
    ).to_cframe()
    return write_atomic(path, lambda file: file.write(frame))
