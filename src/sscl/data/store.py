"""The case store: preprocessed volumes on disk, compressed in blocks, so that a crop reads only what it needs."""

from pathlib import Path
from typing import TypeAlias

import blosc2
import numpy as np
from numpy.typing import NDArray

from sscl.core.errors import UserError

BLOCK = 32
Stored: TypeAlias = NDArray[np.generic] | blosc2.NDArray
"""An array in memory, or one on disk that is read where it is sliced."""


def write_case(folder: Path, case_id: str, image: NDArray[np.float32], label: NDArray[np.int8] | None) -> None:
    """Write one case: image (channels, x, y, z) as float16, label (x, y, z) as int8 if there is one."""
    _write(folder / f"{case_id}.image.b2nd", image.astype(np.float16))
    if label is not None:
        _write(folder / f"{case_id}.label.b2nd", label)


class CaseStore:
    """Reads cases of a prepared data set; keeps small sets in memory, because decompression costs more than copying."""

    def __init__(self, folder: Path, memory_bytes: int = 2_000_000_000) -> None:
        self._folder = folder
        self._free = memory_bytes
        self._kept: dict[str, NDArray[np.generic]] = {}

    def image(self, case_id: str) -> Stored:
        """(channels, x, y, z), float16; slicing it reads from disk or memory."""
        return self._open(f"{case_id}.image.b2nd")

    def label(self, case_id: str) -> Stored:
        """(x, y, z), int8, IGNORE where no loss may look."""
        return self._open(f"{case_id}.label.b2nd")

    def share_memory(self, processes: int) -> None:
        """Use only this one's part of the memory, where several processes have such a store."""
        self._free //= processes

    def _open(self, name: str) -> Stored:
        if name not in self._kept:
            path = self._folder / name
            try:
                stored = blosc2.open(str(path), mode="r")
            except (RuntimeError, OSError) as error:
                raise UserError(f"{path}: missing or damaged ({error}). Prepare the data set again.") from None
            size = int(np.prod(stored.shape)) * stored.dtype.itemsize
            if size > self._free:
                return stored
            self._free -= size
            self._kept[name] = stored[:]
        return self._kept[name]


def _write(path: Path, array: NDArray[np.generic]) -> None:
    blocks = (1,) * (array.ndim - 3) + tuple(min(BLOCK, n) for n in array.shape[-3:])
    blosc2.asarray(
        np.ascontiguousarray(array),
        urlpath=str(path),
        mode="w",
        blocks=blocks,
        cparams=blosc2.CParams(codec=blosc2.Codec.LZ4, clevel=5, filters=[blosc2.Filter.SHUFFLE], nthreads=1),
    )
