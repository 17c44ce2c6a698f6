"""Random pairs of masks: what must hold for every pair, every distance by search of all pairs, and MedPy's numbers.

`make soak` takes all pairs, `make test` the first few hundred. A failure names its pair: `random_pair(1234)` makes it
again.
"""

import math
import os

import numpy as np
import pytest
from medpy.metric import binary as medpy
from scipy import ndimage

from sscl.metrics import table

SOAK = "SSCL_SOAK" in os.environ
PAIRS = range(10_000 if SOAK else 200)
PAIRS_FOR_MEDPY = 5_000 if SOAK else 100

VOXEL, MM = tuple(table.VOXEL_DISTANCES), tuple(table.MM_DISTANCES)
pytestmark = pytest.mark.soak


def _empty(rng, shape):
    return np.zeros(shape, bool)


def _full(rng, shape):
    return np.ones(shape, bool)


def _voxel(rng, shape):
    mask = np.zeros(shape, bool)
    mask[tuple(rng.integers(shape))] = True
    return mask


def _plate(rng, shape):
    """One voxel thick, from edge to edge."""
    axis = rng.integers(3)
    mask = np.zeros(shape, bool)
    np.moveaxis(mask, axis, 0)[rng.integers(shape[axis])] = True
    return mask


def _box(rng, shape):
    ends = [np.sort(rng.choice(length + 1, 2, replace=False)) for length in shape]
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*end) for end in ends)] = True
    return mask


def _noise(rng, shape):
    return rng.random(shape) < rng.uniform(0.02, 0.98)


def _blobs(rng, shape):
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0.5, 2.5))
    return smooth > np.quantile(smooth, rng.uniform(0.3, 0.95))


KINDS = (_empty, _full, _voxel, _plate, _box, _noise, _blobs, _blobs, _blobs)


def random_pair(number):
    """Prediction, reference and spacing. Every second prediction is its reference, moved or with voxels flipped."""
    rng = np.random.default_rng(number)
    shape = tuple(rng.choice((1, 2, 3, 5, 8, 12), 3, p=(0.08, 0.12, 0.15, 0.25, 0.25, 0.15)))
    reference = KINDS[rng.integers(len(KINDS))](rng, shape)
    match rng.integers(4):
        case 0:
            prediction = np.roll(reference, rng.integers(-2, 3, 3), (0, 1, 2))
        case 1:
            prediction = reference ^ (rng.random(shape) < 0.05)
        case _:
            prediction = KINDS[rng.integers(len(KINDS))](rng, shape)
    spacing = (1.0,) * 3 if rng.random() < 0.2 else tuple(rng.uniform(0.3, 6, 3))
    return prediction, reference, spacing


def measured(prediction, reference, spacing, tolerance_mm=2.0):
    """All measures, as the table has them; the tolerance is left out of the name of the NSD."""
    labels = prediction.astype(np.uint8), reference.astype(np.uint8)
    (score,) = table.score_case("a", *labels, spacing, {1: "organ"}, tolerance_mm=tolerance_mm)
    return {("nsd" if name.startswith("nsd") else name): value for name, value in score.values.items()}


def _require_equal(found, expected, number):
    """To 1e-9; not applicable only where it is expected, and no NaN."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        equal = found[name] is None if value is None else math.isclose(found[name], value, rel_tol=1e-9, abs_tol=1e-9)
        assert equal, f"random_pair({number}): {name} is {found[name]}, expected {value}"


def test_the_pairs_are_of_every_kind():
    """A generator that made none of them would prove nothing."""
    seen = dict.fromkeys(("empty", "one empty", "full", "voxel", "flat", "at the edge", "equal", "apart"), 0)
    for prediction, reference, _ in map(random_pair, range(300)):
        seen["empty"] += not (prediction.any() or reference.any())
        seen["one empty"] += prediction.any() != reference.any()
        seen["full"] += prediction.all() or reference.all()
        seen["voxel"] += 1 in (prediction.sum(), reference.sum())
        seen["flat"] += 1 in reference.shape
        seen["at the edge"] += prediction[0].any() and not prediction.all()
        seen["equal"] += prediction.any() and np.array_equal(prediction, reference)
        seen["apart"] += prediction.any() and reference.any() and not (prediction & reference).any()
    assert min(seen.values()) >= 3, seen


# What changes the pair and must change nothing else


def swapped(prediction, reference, spacing, rng):
    """Both directions count alike, but in the directed ASD."""
    found, other = measured(prediction, reference, spacing), measured(reference, prediction, spacing)
    return {**found, "asd_medpy_voxel": 0}, {**other, "asd_medpy_voxel": 0}


def _margins(shape, rng):
    """Background on either side of every axis; an axis of length 1 is no axis, and stays so."""
    return [(0, 0) if length == 1 else tuple(rng.integers(0, 4, 2)) for length in shape]


def padded(prediction, reference, spacing, rng):
    margins = _margins(reference.shape, rng)
    return (
        measured(prediction, reference, spacing),
        measured(np.pad(prediction, margins), np.pad(reference, margins), spacing),
    )


def translated(prediction, reference, spacing, rng):
    """Two places in one larger volume."""
    margins = _margins(reference.shape, rng)
    return tuple(
        measured(np.pad(prediction, place), np.pad(reference, place), spacing)
        for place in (margins, [(high, low) for low, high in margins])
    )


def axes_permuted(prediction, reference, spacing, rng):
    order = rng.permutation(3)
    turned = measured(prediction.transpose(order), reference.transpose(order), [spacing[axis] for axis in order])
    return measured(prediction, reference, spacing), turned


def axes_reversed(prediction, reference, spacing, rng):
    turned = [mask[::-1, :, ::-1] for mask in (prediction, reference)]
    return measured(prediction, reference, spacing), measured(*turned, spacing)


def scaled(prediction, reference, spacing, rng):
    """In millimetres all grows with the spacing, the tolerance too; in voxels nothing does."""
    factor, tolerance_mm = rng.uniform(0.1, 10), 3 * spacing[0]  # a tolerance that some distances meet but for rounding
    found = measured(prediction, reference, spacing, tolerance_mm)
    other = measured(prediction, reference, [factor * step for step in spacing], factor * tolerance_mm)
    return {name: factor * value if name in MM and value is not None else value for name, value in found.items()}, other


@pytest.mark.parametrize("change", [swapped, padded, translated, axes_permuted, axes_reversed, scaled])
def test_what_changes_no_measure(change):
    for number in PAIRS:
        one, other = change(*random_pair(number), np.random.default_rng((number, 1)))
        _require_equal(other, one, number)


def test_dice_and_jaccard_say_the_same():
    for number in PAIRS:
        found = measured(*random_pair(number))
        if found["jaccard"] is not None:
            _require_equal(found, {**found, "dice": 2 * found["jaccard"] / (1 + found["jaccard"])}, number)


# What every measure is, by its definition


def _border(mask):
    """Indices of the voxels of which one face has no other voxel of the mask behind it."""
    within = np.pad(mask, 1)
    inside = tuple(slice(1, -1) for _ in mask.shape)
    behind = [np.roll(within, step, axis)[inside] for axis in range(mask.ndim) for step in (1, -1)]
    return np.argwhere(mask & ~np.logical_and.reduce(behind))


def _percentile_95(distances):
    """Linear between the two nearest ranks."""
    ordered = sorted(distances)
    rank = 0.95 * (len(ordered) - 1)
    low = math.floor(rank)
    return ordered[low] + (rank - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])


def by_definition(prediction, reference, spacing, tolerance_mm=2.0):
    """As `measured`, without distance transforms: from every border voxel to every one of the other mask."""
    p, r, both = int(prediction.sum()), int(reference.sum()), int((prediction & reference).sum())
    names = ("dice", "jaccard", *VOXEL, *MM, "nsd")
    if p == r == 0:
        return dict.fromkeys(names)
    if p == 0 or r == 0:
        return {**dict.fromkeys(names, 0), **dict.fromkeys((*VOXEL, *MM), math.inf)}
    flat = tuple(axis for axis, length in enumerate(reference.shape) if length == 1)[: reference.ndim - 1]
    borders = [_border(mask.squeeze(flat)) for mask in (prediction, reference)]
    steps = np.array([step for axis, step in enumerate(spacing) if axis not in flat])
    apart = borders[0][:, None] - borders[1][None]
    voxel, mm = (np.sqrt(((apart * unit) ** 2).sum(-1)) for unit in (1, steps))
    (voxel_p, voxel_r), (mm_p, mm_r) = ((all_.min(1), all_.min(0)) for all_ in (voxel, mm))
    both_ways = [*mm_p, *mm_r]
    return {
        "dice": 2 * both / (p + r),
        "jaccard": both / (p + r - both),
        "hd95_medpy_voxel": _percentile_95([*voxel_p, *voxel_r]),
        "asd_medpy_voxel": sum(voxel_p) / len(voxel_p),
        "hd95_standard_mm": max(_percentile_95(mm_p), _percentile_95(mm_r)),
        "assd_standard_mm": sum(both_ways) / len(both_ways),
        "nsd": sum(distance <= tolerance_mm + 1e-6 for distance in both_ways) / len(both_ways),
    }


def test_every_measure_is_what_its_definition_says():
    for number in PAIRS:
        pair = *random_pair(number), (0, 1, 2, 40)[number % 4]  # tolerances of the NSD, mm
        _require_equal(measured(*pair), by_definition(*pair), number)


def test_medpy_has_the_same_numbers():
    """On pairs of which no mask is empty: MedPy has no number there. Flat axes go first (see the table's rule)."""
    number = compared = 0
    while compared < PAIRS_FOR_MEDPY:
        prediction, reference, spacing = random_pair(number)
        if prediction.any() and reference.any():
            found = measured(prediction, reference, spacing)
            flat = tuple(axis for axis, length in enumerate(reference.shape) if length == 1)[:2]
            masks = prediction.squeeze(flat), reference.squeeze(flat)
            steps = [step for axis, step in enumerate(spacing) if axis not in flat]
            theirs = {
                "dice": medpy.dc(*masks),
                "jaccard": medpy.jc(*masks),
                "hd95_medpy_voxel": medpy.hd95(*masks),
                "asd_medpy_voxel": medpy.asd(*masks),
                "assd_standard_mm": medpy.assd(*masks, voxelspacing=steps),
            }
            _require_equal({name: found[name] for name in theirs}, theirs, number)
            compared += 1
        number += 1
