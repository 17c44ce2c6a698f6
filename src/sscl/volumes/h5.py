"""The left-atrium benchmark's `mri_norm2.h5`: datasets `image` and `label`, no spacing, no orientation."""

from pathlib import Path

import h5py
import numpy as np

from sscl.core.errors import UserError
from sscl.core.memory import refuse_beyond_memory
from sscl.volumes.volume import Volume


def read_h5(path: Path, dataset: str, spacing_mm: tuple[float, float, float] | None) -> Volume:
    """One data set of the file, axes x, y, z as stored, on a grid of the given spacing.

    Raises:
        UserError: no spacing given, no such data set, damaged, or data that lie in another file.
    """
    if spacing_mm is None:
        raise UserError(
            f"{path}: an h5 file holds no voxel size. Prepare with a preset or with --set spacing_if_missing_mm=X,Y,Z."
        )
    try:
        with h5py.File(path, "r") as file:
            stored = file[dataset] if isinstance(file.get(dataset, getlink=True), h5py.HardLink) else None
            if not isinstance(stored, h5py.Dataset) or stored.is_virtual or stored.external:
                raise UserError(f"{path}: no data set '{dataset}' of its own. Found: {', '.join(file) or 'nothing'}.")
            if stored.ndim != 3 or stored.dtype.kind not in "biuf":
                raise UserError(f"{path}: '{dataset}' has shape {stored.shape}, {stored.dtype}; need 3-D numbers.")
            if stored.nbytes > 1100 * path.stat().st_size:
                raise UserError(f"{path}: '{dataset}' of shape {stored.shape} cannot fit the file. Get it again.")
            refuse_beyond_memory(stored.nbytes + 4 * stored.size, path)  # and as float32
            array = stored[:]
    except (OSError, RuntimeError, KeyError) as error:
        raise UserError(f"{path}: truncated or damaged HDF5 file ({error}). Get the file again.") from None
    return Volume(array[None], np.diag([*spacing_mm, 1.0]))
