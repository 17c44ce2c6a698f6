"""The plan of a data set: everything that training and prediction must do alike. `DATASET/plan.json`."""

import math
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from sscl.core.config import Config

Spacing = tuple[PositiveFloat, PositiveFloat, PositiveFloat]
Shape = tuple[PositiveInt, PositiveInt, PositiveInt]

IGNORE = -1
"""The value in every label array of voxels that no loss counts (nnU-Net's `ignore` label)."""


class Intensity(Config):
    """How stored values become network input. First the window, if any, then the scaling."""

    window: tuple[float, float] | None = None
    """Clip to these values (CT: Hounsfield units)."""
    scaling: Literal["zscore", "unit", "none"] = "zscore"
    """`zscore`: each volume to mean 0, standard deviation 1. `unit`: the window to 0..1. `none`: values as they are."""


class Plan(Config):
    """Resampling, intensities, patch and windows of one data set. Axes are x, y, z of RAS+ throughout."""

    channels: tuple[str, ...] = Field(min_length=1)
    """Names of the image channels, in order."""
    labels: tuple[str, ...] = Field(min_length=2, max_length=127)
    """Names of the classes; their index is the label value; the first is the background. Stored as int8."""
    ignore_label: int | None = None
    """The value of nnU-Net's `ignore` label in mask files, if the data set has one."""
    spacing_mm: Spacing
    """Voxel size that every volume is resampled to."""
    intensity: Intensity = Intensity()
    patch: Shape
    """Training crop and prediction window, voxels, each divisible by 16."""
    stride: Shape
    """Steps between prediction windows, voxels."""
    weighting: Literal["average", "gaussian"] = "average"
    """How overlapping windows are averaged."""
    rotate: bool = True
    """Random turns in the x-y plane: quarter turns, or, where voxels are not square there, half turns."""
    flip: bool | Literal["x", "y"] = True
    """Mirror half of the crops: along x or y, along the one that is named, or none."""
    foreground_share: float = Field(default=0.0, ge=0, le=1)
    """Part of the labelled crops that is centred on a random foreground voxel; the others lie anywhere."""
    spacing_if_missing_mm: Spacing | None = None
    """Voxel size of files that hold none (`mri_norm2.h5`)."""

    @field_validator("labels")
    @classmethod
    def _are_told_apart(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        """Scores go by these names."""
        if len(set(labels)) < len(labels):
            raise ValueError("a name of its own for every class")
        if any(name.lower() == "background" for name in labels[1:]):
            raise ValueError("the background first, because its value is 0")
        return labels

    @property
    def num_classes(self) -> int:
        """Classes with the background (the paper's C + 1)."""
        return len(self.labels)

    @property
    def square_voxels(self) -> bool:
        """Whether voxels are as long in x as in y, as far as headers' float32 tells."""
        return math.isclose(self.spacing_mm[0], self.spacing_mm[1], rel_tol=1e-4)
