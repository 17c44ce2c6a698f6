"""The noun of this layer: an array and where it lies in the patient."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Volume:
    """A 3-D image of one or several channels.

    array: (channels, x, y, z), axes in array order.
    affine: 4x4, maps (x, y, z, 1) voxel indices to millimetres, RAS+.
    header: what is needed to write a mask back on this grid with the scan's own header (a NIfTI header or None).
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]
    header: Any = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along x, y, z."""
        x, y, z = self.array.shape[1:]
        return x, y, z

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along each array axis, millimetres."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)
