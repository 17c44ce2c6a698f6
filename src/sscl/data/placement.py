"""Masks that do not lie where the others do: mirrored, or shifted against their scan. A suspicion, never more.

Both statistics are robust: they compare a mask with the median of all and its usual spread, so that organs that vary
raise no alarm. Masks that are all wrong in the same way agree with each other: that cannot be seen here.
How often they are right and wrong on real masks: docs/reliability.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FEWEST = 4
"""Masks that a comparison needs."""
_BLOCKS = 12
_AXES = ("x (right-left)", "y (anterior-posterior)", "z (superior-inferior)")
_MIRRORED_GAIN, _MIRRORED_SPREADS, _TELLING_SPREADS, _GAIN_SPREAD = 0.05, 4.0, 2.0, 0.05
_SHIFTED_SPREADS, _PLACE_SPREAD = 5.0, 0.03
_SAMPLE = 20_000  # voxels for percentiles
_FINE = 96  # of an axis with twice as many voxels every other is left out

Places = NDArray[np.float64]


@dataclass(frozen=True)
class Place:
    """Where a mask lies in its scan; lengths are parts of the field of view."""

    blocks: NDArray[np.float32]
    """The share of foreground in each of 12 x 12 x 12 blocks of the field of view."""
    from_middle: NDArray[np.float64]
    """The foreground's centre, from the middle of the field of view; x, y, z."""
    from_content: NDArray[np.float64]
    """The same from the centre of the scan's intensities: a scan that is cut off elsewhere does not move it."""


def place(image: NDArray[np.floating], foreground: NDArray[np.bool_]) -> Place | None:
    """One channel and its mask, both (x, y, z) in RAS+; None where the mask is empty or everywhere."""
    coarse = tuple(slice(None, None, max(1, length // _FINE)) for length in foreground.shape)
    image, inside = image[coarse], foreground[coarse].astype(np.float32)
    if not 0 < inside.mean() < 1:
        return None
    dark, bright = np.percentile(image.reshape(-1)[:: max(1, image.size // _SAMPLE)], (5, 99))
    content = np.clip(image, dark, bright) - dark
    if not content.any():
        return None
    centre = _centre(inside)
    return Place(_blocks(inside).astype(np.float32), centre, centre - _centre(content))


def misplaced(places: Mapping[str, Place]) -> dict[str, str]:
    """What is suspicious, by case."""
    if len(places) < FEWEST:
        return {}
    found = _shifted(places)
    return found | _mirrored(places)


def _mirrored(places: Mapping[str, Place]) -> dict[str, str]:
    """Mirrored along one axis, the mask agrees with the mean of the others much better than as it is, where mirroring
    makes that agreement worse for most: along an axis that the organ looks alike on both ends of, nothing is told.
    """
    blocks = np.stack([place.blocks for place in places.values()]).astype(np.float64)
    total, found = blocks.sum(0), {}
    as_is = np.empty(len(blocks))
    turned = np.empty((len(blocks), 3))
    for k, own in enumerate(blocks):
        others = _unit(total - own)
        as_is[k] = (_unit(own) * others).sum()
        turned[k] = [(_unit(np.flip(own, axis)) * others).sum() for axis in range(3)]
    gain = turned - as_is[:, None]
    usual, spread = np.median(gain, axis=0), _spread(gain, _GAIN_SPREAD)
    alarm = (gain > _MIRRORED_GAIN) & (gain > usual + _MIRRORED_SPREADS * spread) & (-usual > _TELLING_SPREADS * spread)
    for k, case in enumerate(places):
        if alarm[k].any():
            axis = int(np.where(alarm[k], gain[k], -np.inf).argmax())
            found[case] = (
                f"the mask looks mirrored along {_AXES[axis]}: turned round it would agree with the other masks' mean "
                f"to {turned[k, axis]:.2f} (correlation), as it is to {as_is[k]:.2f}. Look at it on its scan."
            )
    return found


def _shifted(places: Mapping[str, Place]) -> dict[str, str]:
    """The mask's centre is far from the usual one, seen from the middle of the scan and from its content."""
    from_middle, from_content = (
        np.stack([getattr(place, name) for place in places.values()]) for name in ("from_middle", "from_content")
    )
    distances, found = [], {}
    for centres in (from_middle, from_content):
        distances.append((centres - np.median(centres, axis=0)) / _spread(centres, _PLACE_SPREAD))
    far = np.minimum(np.abs(distances[0]), np.abs(distances[1])) * (np.sign(distances[0]) == np.sign(distances[1]))
    for k, case in enumerate(places):
        axis = int(far[k].argmax())
        if far[k, axis] > _SHIFTED_SPREADS:
            away = from_middle[k, axis] - np.median(from_middle[:, axis])
            found[case] = (
                f"the mask looks shifted: its centre lies {abs(away):.0%} of the scan's length along {_AXES[axis]} "
                f"from where the other masks' are, {far[k, axis]:.0f} times the usual spread. Look at it on its scan."
            )
    return found


def _spread(values: Places, least: float) -> Places:
    """A standard deviation for each column that single outliers do not move; of few values it is not trusted to be
    small, nor smaller than the columns' median.
    """
    deviation = 1.4826 * np.median(np.abs(values - np.median(values, axis=0)), axis=0)
    return np.maximum(np.maximum(deviation, np.median(deviation)), least) * (1 + 2 / len(values))


def _centre(weights: NDArray[np.floating]) -> NDArray[np.float64]:
    """The centre of gravity, from the middle, as parts of the length."""
    parts = []
    for axis, length in enumerate(weights.shape):
        profile = weights.sum(axis=tuple(other for other in range(3) if other != axis), dtype=np.float64)
        middles = (np.arange(length) + 0.5) / length - 0.5
        parts.append(float((profile * middles).sum() / profile.sum()))
    return np.array(parts)


def _blocks(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Means over 12 blocks along each axis; a voxel on a border counts by its parts."""
    for axis, length in enumerate(values.shape):
        borders, voxels = np.linspace(0, length, _BLOCKS + 1), np.arange(length)
        part = np.minimum(borders[1:, None], voxels + 1) - np.maximum(borders[:-1, None], voxels)
        weights = np.clip(part, 0, None) * (_BLOCKS / length)
        values = np.moveaxis(np.tensordot(weights, values, (1, axis)), 0, axis)
    return values


def _unit(values: Places) -> Places:
    """Mean 0, length 1: the product of two is their correlation."""
    values = values - values.mean()
    return values / max(float(np.linalg.norm(values)), 1e-12)
