"""What a scan and its mask must be, beyond what reading one file tells, before anything is trained on them.

A new rule is one function and one entry in a table. What all cases together must be: check_set.py.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from sscl.volumes.geometry import same_grid
from sscl.volumes.volume import Volume

_SAMPLE = 100_000
"""Voxels looked at for a rough range."""
_VALUES_OF_MASKS = 16
"""A scan with no more values than this, all whole, is taken for a mask. The real scan with the fewest had 65 (left
atrium, 8 bits); a mask of 15 organs has 16.
"""


@dataclass(frozen=True)
class Finding:
    """What is wrong with a file, why that matters or how to mend it. Not fatal: a warning."""

    message: str
    fatal: bool = True


@dataclass(frozen=True)
class Pair:
    """A scan and its mask, both in RAS+, and what the data set declares."""

    image: Volume
    label: Volume
    labels: Sequence[str] | None
    ignore_label: int | None

    @cached_property
    def values(self) -> tuple[int, ...]:
        """The values that the mask holds, without `ignore`."""
        return tuple(int(value) for value in np.unique(self.label.array) if value != self.ignore_label)


def check_image(image: Volume, where: str) -> list[Finding]:
    """What IMAGE_RULES find, each message beginning with `where`."""
    return _at(where, (rule(image) for rule in IMAGE_RULES))


def check_pair(pair: Pair, where: str) -> list[Finding]:
    """What PAIR_RULES find."""
    return _at(where, (rule(pair) for rule in PAIR_RULES))


def _at(where: str, findings: Iterable[Finding | None]) -> list[Finding]:
    return [replace(finding, message=f"{where}: {finding.message}") for finding in findings if finding]


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


def _plausible_size(image: Volume) -> Finding | None:
    """Metres or micrometres taken for millimetres."""
    longest = max(n * size for n, size in zip(image.shape, image.spacing_mm, strict=True))
    if 5 < longest < 3000:
        return None
    return Finding(f"the scan is {longest:.4g} mm long: is the unit of its voxel size right?", fatal=False)


def _no_mask(image: Volume) -> Finding | None:
    """A mask lies where a scan should. One channel among others may be one: a region that somebody drew."""
    values: set[float] = set()
    for plane in image.array.reshape(-1, *image.array.shape[-2:]):  # of a scan, the first few tell
        values.update(np.unique(plane[~np.isin(plane, sorted(values))]).tolist())  # without sorting what is known
        if len(values) > _VALUES_OF_MASKS:
            return None
    if not all(value.is_integer() for value in values):
        return None
    shown = ", ".join(f"{value:g}" for value in sorted(values))
    return Finding(f"looks like a mask: its only values are {shown}. If it is one, put the scan there.", fatal=False)


# Rules for a scan with its mask


def _not_its_own_mask(pair: Pair) -> Finding | None:
    label = pair.label.array[0]
    if not any(np.array_equal(channel, label) for channel in pair.image.array):
        return None
    return Finding(
        "mask and scan hold the same voxels: one was copied over the other, and what is to be found would be given. "
        "Get the scan again, or take the case away."
    )


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


IMAGE_RULES: tuple[Callable[[Volume], Finding | None], ...] = (_no_outlier, _plausible_size, _no_mask)
PAIR_RULES: tuple[Callable[[Pair], Finding | None], ...] = (
    _not_its_own_mask,
    _on_one_grid,
    _declared_values,
    _few_values,
    _some_foreground,
)
