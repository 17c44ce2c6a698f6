"""The plan of a data set without a preset: voxel size, intensities, patch and stride from the labelled scans alone."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sscl.core.errors import UserError, unknown
from sscl.core.plan import Plan
from sscl.volumes.volume import Volume

MULTIPLE = 16
"""Four halvings in the networks."""
LARGEST = 128
"""No axis of a patch is planned longer."""
BYTES_PER_VOXEL = 10_000
"""Memory of one training step for each voxel of the patch: float32 activations and their gradients of SSCL at width 16,
about 2.5 kB a voxel and crop, four crops a batch."""

_FOREGROUND = 10_000
"""Voxels of each mask's foreground that the CT window looks at."""
_INTENSITY = ("window", "scaling")
_SETTINGS = (*Plan.model_fields, *_INTENSITY, "memory_gb")


@dataclass(frozen=True)
class Fingerprint:
    """What the plan needs to know of a labelled case."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    foreground: NDArray[np.float32]
    """Some of the intensities inside the organs."""


def fingerprint(image: Volume, label: Volume, ignore_label: int | None = None) -> Fingerprint:
    """Measure one case; image and mask on one RAS grid."""
    inside = (label.array[0] > 0) & (label.array[0] != (ignore_label or 0))
    values = image.array[:, inside].reshape(-1)
    step = max(1, len(values) // _FOREGROUND)
    return Fingerprint(image.shape, image.spacing_mm, values[::step].astype(np.float32))


def make_plan(
    channels: Sequence[str],
    labels: Sequence[str],
    ignore_label: int | None,
    cases: Sequence[Fingerprint],
    fixed: Mapping[str, Any],
    memory_gb: float,
) -> Plan:
    """What `fixed` (preset, then the user's settings) leaves open is planned from the labelled cases.

    - spacing: the median of each axis;
    - intensity: channels called CT: a window from the 0.5th to the 99.5th percentile inside the organs, then z-scores;
      any other: z-scores of each volume;
    - patch: see `plan_patch`; stride: half the patch;
    - a third of the labelled crops is centred on an organ (nnU-Net's share), because most crops of a large scan show
      none. Presets state their own share;
    - where classes tell left from right, no turns, and mirror images along y only (docs/decisions/0012).

    Raises:
        UserError: a value of `fixed` that cannot be used.
    """
    values: dict[str, Any] = {
        "channels": tuple(channels),
        "labels": tuple(labels),
        "ignore_label": ignore_label,
        **fixed,
    }
    values.setdefault("spacing_mm", _median([case.spacing_mm for case in cases]))
    values["intensity"] = {**_intensity(channels, cases), **fixed.get("intensity", {})}
    if "patch" not in values:
        sizes = [np.multiply(case.shape, case.spacing_mm) / values["spacing_mm"] for case in cases]
        values["patch"] = plan_patch(_median(sizes), values["spacing_mm"], memory_gb)
    values.setdefault("foreground_share", 1 / 3)
    if tells_left_from_right(labels):
        values.setdefault("rotate", False)
        values.setdefault("flip", "y")
    x, y, z = _patch(values["patch"])
    values.setdefault("stride", (x // 2, y // 2, z // 2))
    plan = Plan.read(values, "plan")
    if any(step > size for step, size in zip(plan.stride, plan.patch, strict=True)):
        raise UserError(
            f"plan: stride {plan.stride} is longer than the patch {plan.patch}, so voxels would be "
            "left out. Shorten it."
        )
    return plan


def plan_patch(shape: Sequence[float], spacing_mm: Sequence[float], memory_gb: float) -> tuple[int, int, int]:
    """The smallest patch that covers the median scan, divisible by 16, as far as memory goes.

    An axis is rounded up, unless it is at most 1/16 longer than a multiple of 16: then a second window at prediction
    costs less than padding in every training step (50 voxels: 48, not 64). No axis is longer than 128. While the patch
    has more than `memory_gb` / BYTES_PER_VOXEL voxels, the axis that is longest in millimetres gives 16 voxels.

    Args:
        shape: median size of the labelled scans at the plan's voxel size.
        spacing_mm: the plan's voxel size.
    """
    patch = [min(LARGEST, MULTIPLE * max(1, math.ceil(size / (1 + 1 / MULTIPLE) / MULTIPLE))) for size in shape]
    most = max(memory_gb * 1e9 / BYTES_PER_VOXEL, MULTIPLE**3)
    while math.prod(patch) > most:
        longest = max(
            (axis for axis in range(3) if patch[axis] > MULTIPLE), key=lambda axis: patch[axis] * spacing_mm[axis]
        )
        patch[longest] -= MULTIPLE
    return patch[0], patch[1], patch[2]


def tells_left_from_right(labels: Sequence[str]) -> bool:
    """Whether the names of two classes differ in their side alone: "left kidney" and "right kidney", "lung_L" and
    "lung_R".
    """
    names = [tuple(re.findall("[a-z]+", re.sub("([a-z])([A-Z])", r"\1 \2", name).lower())) for name in labels]
    return any(
        tuple(right if word == left else word for word in name) in names
        for left, right in (("left", "right"), ("l", "r"))
        for name in names
        if left in name
    )


def read_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`--set` values as fields of the plan: `window` and `scaling` belong to `intensity`; `memory_gb` stays as it is.

    Raises:
        UserError: an unknown name, or a value of the wrong kind.
    """
    fields: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in _SETTINGS:
            raise unknown("plan: setting", key, _SETTINGS)
        if key == "intensity" and not isinstance(value, Mapping):
            raise UserError(f"plan: intensity = {value!r}: set {' and '.join(_INTENSITY)} instead.")
        if key == "intensity" or key in _INTENSITY:
            inner = value if key == "intensity" else {key: value}
            fields["intensity"] = {**fields.get("intensity", {}), **inner}
        elif key in ("channels", "labels") and isinstance(value, str):
            fields[key] = (value,)
        else:
            fields[key] = value
    _check_kinds(fields)
    return fields


def _check_kinds(fields: Mapping[str, Any]) -> None:
    """Each value by itself, before it meets the scans; the patch has a rule of its own."""
    memory_gb = fields.get("memory_gb", 1)
    if isinstance(memory_gb, bool) or not isinstance(memory_gb, int | float) or not memory_gb > 0:
        raise UserError(f"plan: memory_gb = {memory_gb!r}: expected a number above 0, for instance 8.")
    whole = {"channels": ("a",), "labels": ("a", "b"), "spacing_mm": (1, 1, 1), "stride": (1, 1, 1)}
    alone = {key: value for key, value in fields.items() if key not in ("memory_gb", "patch")}
    window = Plan.read({**whole, "patch": (MULTIPLE,) * 3, **alone}, "plan").intensity.window
    if window and not window[0] < window[1]:
        low, high = window
        raise UserError(f"plan: window = {low:g},{high:g}: expected the lower value first, for instance -125,275.")


def _patch(patch: Any) -> tuple[int, int, int]:
    whole = isinstance(patch, tuple) and len(patch) == 3 and all(isinstance(size, int) for size in patch)
    if not whole or any(size < MULTIPLE or size % MULTIPLE for size in patch):
        raise UserError(
            f"plan: patch = {patch}: expected three whole numbers divisible by {MULTIPLE}, for instance 96,96,96."
        )
    return patch[0], patch[1], patch[2]


def _median(rows: Sequence[Any]) -> tuple[float, float, float]:
    x, y, z = (round(float(value), 6) for value in np.median(np.array(rows), axis=0))
    return x, y, z


def _intensity(channels: Sequence[str], cases: Sequence[Fingerprint]) -> dict[str, Any]:
    inside = np.concatenate([case.foreground for case in cases])
    if not inside.size or any(name.strip().upper() != "CT" for name in channels):
        return {"scaling": "zscore"}
    low, high = np.percentile(inside, (0.5, 99.5))
    return {"window": (round(float(low), 3), round(float(high), 3)), "scaling": "zscore"}
