"""What a scan and its mask must be, beyond what reading one file tells, before anything is trained on them.

A new rule is one function and one entry in a table.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sscl.core.errors import UserError
from sscl.volumes.geometry import same_grid
from sscl.volumes.volume import Volume

_SAMPLE = 100_000
"""Voxels looked at for a rough range."""


@dataclass(frozen=True)
class Finding:
    """What is wrong with a file, why that matters or how to mend it."""

    message: str
    fatal: bool = True


@dataclass(frozen=True)
class Pair:
    """A scan and its mask, both in RAS+, and what the data set declares."""

    image: Volume
    label: Volume
    labels: Sequence[str] | None
    ignore_label: int | None

    @property
    def values(self) -> tuple[int, ...]:
        """The values that the mask holds, without `ignore`."""
        return tuple(int(value) for value in np.unique(self.label.array) if value != self.ignore_label)


def check_image(image: Volume, where: str) -> list[str]:
    """Apply IMAGE_RULES; returns the warnings, each naming `where`.

    Raises:
        UserError: the first rule that the image breaks.
    """
    return _judge((rule(image) for rule in IMAGE_RULES), where)


def check_pair(pair: Pair, where: str) -> list[str]:
    """Apply PAIR_RULES; as `check_image`."""
    return _judge((rule(pair) for rule in PAIR_RULES), where)


def check_masks(values: Collection[tuple[int, ...]], labels: Sequence[str], where: str) -> list[str]:
    """All labelled masks together: some class must be there.

    Raises:
        UserError: every mask is empty.
    """
    present = set().union(*values)
    missing = [name for value, name in enumerate(labels) if value and value not in present]
    if len(missing) == len(labels) - 1:
        raise UserError(
            f"{where}: no foreground in any labelled mask: all are empty. Label the organ in at least one scan."
        )
    return [f"{where}: class '{name}' is in none of the labelled masks, so it cannot be learned." for name in missing]


def check_assumed_size(
    shapes: Mapping[str, tuple[int, int, int]], spacing_mm: Sequence[float], longest_xy: tuple[int, int]
) -> list[str]:
    """A warning where files without a voxel size have another number of voxels than such files with `spacing_mm` have.

    shapes: of the scans that hold no voxel size, by file. longest_xy: see `sscl.data.presets.Preset`.
    """
    fewest, most = longest_xy
    for file, shape in shapes.items():
        if fewest <= max(shape[:2]) <= most:
            continue
        small, factor, guess = (True, 2.0, "half") if max(shape[:2]) < fewest else (False, 0.5, "full")
        limit = f"fewer than {fewest}" if small else f"more than {most}"
        other = ",".join(f"{factor * size:g}" for size in spacing_mm)
        return [
            f"{file}: {shape[0]} x {shape[1]} voxels in x and y, {limit}: it is probably of {guess} resolution, then "
            f"add --set spacing_if_missing_mm={other}."
        ]
    return []


def labels_from_values(values: Collection[tuple[int, ...]], where: str) -> tuple[str, ...]:
    """Class names where nothing declares them: the masks' values, which must be 0, 1, 2, ...

    Raises:
        UserError: a gap, for instance 0 and 255.
    """
    present = sorted(set().union({0}, *values))
    if present == [0, 255]:
        raise UserError(f"{where}: the masks hold 0 and 255, as pictures do. Replace 255 by 1.")
    if present != list(range(len(present))):
        shown = ", ".join(str(value) for value in present[:8]) + (", ..." if len(present) > 8 else "")
        raise UserError(
            f"{where}: the masks hold the values {shown}; expected 0, 1, 2, ... without a gap. Renumber them."
        )
    if len(present) == 1:
        raise UserError(
            f"{where}: no foreground in any labelled mask: all are empty. Label the organ in at least one scan."
        )
    return ("background", *(f"label_{value}" for value in present[1:]))


def _judge(findings: Iterable[Finding | None], where: str) -> list[str]:
    warnings = []
    for finding in findings:
        if finding and finding.fatal:
            raise UserError(f"{where}: {finding.message}")
        if finding:
            warnings.append(f"{where}: {finding.message}")
    return warnings


# Rules for one scan


def _no_outlier(image: Volume) -> Finding | None:
    """One absurd voxel stretches the scaling until the organ's contrast is gone."""
    for channel in image.array:
        sample = channel.reshape(-1)[:: max(1, channel.size // _SAMPLE)].astype(np.float64)
        low, middle, high = np.percentile(sample, (0.5, 50, 99.5))
        extreme = max((float(channel.min()), float(channel.max())), key=lambda value: abs(value - middle))
        if abs(extreme - middle) > 1000 * max(high - low, 1e-12):
            return Finding(
                f"a voxel of {extreme:.4g} is an outlier: 99 % lie in the range {low:.4g} to {high:.4g}. "
                "Check the intensities.",
                fatal=False,
            )
    return None


# Rules for a scan with its mask


def _on_one_grid(pair: Pair) -> Finding | None:
    image, label = pair.image, pair.label
    if image.shape != label.shape:
        return Finding(
            f"the mask's shape is {_shape(label)}, the scan's {_shape(image)}. Resample the mask onto the scan."
        )
    if same_grid(image, label):
        return None
    axes = "spacing, origin or direction"
    if not np.allclose(image.spacing_mm, label.spacing_mm, rtol=1e-3):
        axes = f"spacing ({_mm(label)}, the scan's is {_mm(image)})"
    elif np.allclose(image.affine[:3, :3], label.affine[:3, :3], atol=1e-3):
        axes = f"origin ({np.linalg.norm(image.affine[:3, 3] - label.affine[:3, 3]):.3g} mm apart)"
    elif np.linalg.norm(image.affine[:3, 3] - label.affine[:3, 3]) < 1e-3:
        axes = "direction"
    return Finding(
        f"the geometry (affine) of mask and scan differs: {axes}. "
        "Resample the mask onto the scan, or correct its header."
    )


def _declared_values(pair: Pair) -> Finding | None:
    if pair.labels is None:
        return None
    strange = [value for value in pair.values if not 0 <= value < len(pair.labels)]
    if not strange:
        return None
    if set(pair.values) <= {0, 255}:
        return Finding("the mask holds 0 and 255, as pictures do; labels declares 0 and 1. Replace 255 by 1.")
    declared = ", ".join(f"{value} {name}" for value, name in enumerate(pair.labels))
    shown = ", ".join(str(value) for value in strange[:5]) + (", ..." if len(strange) > 5 else "")
    return Finding(
        f"the mask holds the label value {shown}, but the data set declares {declared}. Declare it or correct the mask."
    )


def _few_values(pair: Pair) -> Finding | None:
    if pair.labels is None and max(pair.values, default=0) > 127 and set(pair.values) - {0, 255}:
        return Finding(f"{len(pair.values)} label values up to {max(pair.values)}: is this the scan and not its mask?")
    return None


def _some_foreground(pair: Pair) -> Finding | None:
    if not any(pair.values):
        return Finding("the mask is empty: background only.", fatal=False)
    if 0 not in pair.values:
        return Finding("the mask has no background: every voxel is foreground.", fatal=False)
    return None


def _shape(volume: Volume) -> str:
    return "x".join(str(size) for size in volume.shape)


def _mm(volume: Volume) -> str:
    return "x".join(f"{size:.4g}" for size in volume.spacing_mm) + " mm"


IMAGE_RULES: tuple[Callable[[Volume], Finding | None], ...] = (_no_outlier,)
PAIR_RULES: tuple[Callable[[Pair], Finding | None], ...] = (
    _on_one_grid,
    _declared_values,
    _few_values,
    _some_foreground,
)
