"""Resampling keeps things where they are in the patient; intensities by hand."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sscl.core.errors import UserError
from sscl.core.plan import IGNORE, Plan
from sscl.data.preprocess import on_grid, preprocess, resample_label, resampled, restore, target_size
from sscl.volumes.volume import Volume


def plan(spacing: tuple[float, float, float], **fields: Any) -> Plan:
    values = {"channels": ("MRI",), "labels": ("background", "a", "b"), "patch": (16, 16, 16), "stride": (8, 8, 8)}
    return Plan(**{**values, "spacing_mm": spacing, **fields})


def volume(array: NDArray[Any], spacing: tuple[float, float, float]) -> Volume:
    return Volume(array if array.ndim == 4 else array[None], np.diag([*spacing, 1.0]))


def distances(shape: tuple[int, ...], spacing: tuple[float, ...], centre: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each voxel to a point, mm; the origin is the corner of the field of view, half a voxel before voxel 0."""
    places = [(index + 0.5) * step for index, step in zip(np.indices(shape), spacing, strict=True)]
    return np.sqrt(sum((place - c) ** 2 for place, c in zip(places, centre, strict=True)))


def centre_of_mass(array: NDArray[Any], spacing: tuple[float, ...]) -> NDArray[np.float64]:
    weights = array / array.sum()
    return np.array([((i + 0.5) * s * weights).sum() for i, s in zip(np.indices(array.shape), spacing, strict=True)])


SHAPE, SPACING, CENTRE = (40, 36, 20), (1.0, 1.2, 2.0), np.array([19.3, 22.1, 18.4])


@pytest.mark.parametrize("target", [(0.7, 0.9, 1.1), (1.9, 1.9, 1.9), (1.0, 1.2, 3.1)])
def test_a_blob_stays_at_its_place_in_millimetres(target: tuple[float, float, float]) -> None:
    blob = np.exp(-0.5 * (distances(SHAPE, SPACING, CENTRE) / 4) ** 2).astype(np.float32)
    scaling = {"window": (0.0, 1.0), "scaling": "unit"}
    (found,) = preprocess(volume(blob, SPACING), plan(target, intensity=scaling))
    assert found.shape == target_size(SHAPE, SPACING, target)
    # the new grid is whole voxels, centred on the old field of view
    shift = (np.array(found.shape) * target - np.array(SHAPE) * SPACING) / 2
    moved = np.abs(centre_of_mass(found, target) - shift - centre_of_mass(blob, SPACING))
    assert (moved < 0.1 * np.minimum(target, SPACING)).all()


def test_equal_spacing_changes_nothing() -> None:
    array = np.random.default_rng(0).normal(size=(2, 7, 6, 5)).astype(np.float32)
    found = preprocess(volume(array, (1, 1, 2)), plan((1.00005, 1, 2), channels=("a", "b")))
    for one, two in zip(found, array, strict=True):
        np.testing.assert_allclose(one, (two - two.mean()) / two.std(), atol=1e-6)
    label = np.random.default_rng(0).integers(0, 3, (7, 6, 5)).astype(np.int16)
    np.testing.assert_array_equal(resample_label(volume(label, (1, 1, 2)), plan((1, 1, 2))), label)
    maps = np.random.default_rng(0).random((3, 7, 6, 5)).astype(np.float32)
    np.testing.assert_array_equal(restore(maps, volume(array, (1, 1, 2)), plan((1, 1, 2))), maps.argmax(0))


def test_size_is_the_field_of_view_in_whole_voxels() -> None:
    assert target_size((40, 36, 20), (1.0, 1.2, 2.0), (2.0, 2.0, 2.0)) == (20, 22, 20)
    assert target_size((3, 3, 3), (0.1, 1, 1), (2.0, 2.0, 2.0)) == (1, 2, 2)


@pytest.mark.parametrize("target", [(0.7, 0.9, 1.1), (1.6, 1.6, 1.6)])
def test_a_mask_survives_the_way_to_another_spacing_and_back(target: tuple[float, float, float]) -> None:
    distance = distances(SHAPE, SPACING, CENTRE)
    label = np.where(distance < 6, 2, np.where(distance < 13, 1, 0)).astype(np.int16)
    scan = volume(label, SPACING)
    there = resample_label(scan, plan(target))
    one_hot = np.stack([there == value for value in range(3)]).astype(np.float32)
    back = restore(one_hot, scan, plan(target))
    assert back.shape == SHAPE
    for value in (1, 2):
        overlap = 2 * ((back == value) & (label == value)).sum() / ((back == value).sum() + (label == value).sum())
        assert overlap > 0.9
    # no class lies between two others: 0 next to 2 never makes a 1
    jump = np.where(distance < 9, 2, 0).astype(np.int16)
    assert set(np.unique(resample_label(volume(jump, SPACING), plan(target)))) == {0, 2}


def test_volume_of_a_mask_is_kept() -> None:
    label = (distances(SHAPE, SPACING, CENTRE) < 10).astype(np.int16)
    there = resample_label(volume(label, SPACING), plan((1.7, 1.7, 1.7)))
    assert there.sum() * 1.7**3 == pytest.approx(label.sum() * np.prod(SPACING), rel=0.03)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 2.0, 2.0)])
def test_the_ignore_label_becomes_ignore(spacing: tuple[float, float, float]) -> None:
    label = np.zeros((8, 8, 8), np.int16)
    label[4:], label[:, 4:] = 1, 9
    found = resample_label(volume(label, (1, 1, 1)), plan(spacing, ignore_label=9))
    half = found.shape[0] // 2
    assert (found[:half, :half] == 0).all()
    assert (found[half:, :half] == 1).all()
    assert (found[:, half:] == IGNORE).all()


def test_probabilities_on_the_scans_grid_add_up_to_one() -> None:
    rng = np.random.default_rng(0)
    p = rng.random((3, 12, 14, 11)).astype(np.float32)
    p /= p.sum(0)
    scan = volume(np.zeros((9, 10, 20), np.float32), (1.3, 1.4, 0.55))
    maps = np.stack(list(on_grid(p, scan, plan((1, 1, 1)))))
    assert maps.shape == (3, 9, 10, 20)
    np.testing.assert_allclose(maps.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(restore(p, scan, plan((1, 1, 1))), maps.argmax(0))


def test_scaling_by_hand() -> None:
    array = np.array([-300.0, -100.0, 0.0, 100.0], np.float32).reshape(2, 2, 1)
    scan = volume(array, (1, 1, 1))

    def values(**intensity: Any) -> list[float]:
        return [round(float(v), 4) for v in preprocess(scan, plan((1, 1, 1), intensity=intensity)).ravel()]

    assert values(window=(-200.0, 200.0), scaling="unit") == [0.0, 0.25, 0.5, 0.75]
    assert values(scaling="unit") == [0.0, 0.5, 0.75, 1.0]
    # mean -75, variance (225^2 + 25^2 + 75^2 + 175^2) / 4 = 21875
    assert values() == pytest.approx([v / 21875**0.5 for v in (-225, -25, 75, 175)], abs=1e-4)
    # clipped to -100, -100, 0, 50: mean -37.5, variance (2 * 62.5^2 + 37.5^2 + 87.5^2) / 4 = 4218.75
    assert values(window=(-100.0, 50.0)) == pytest.approx(
        [v / 4218.75**0.5 for v in (-62.5, -62.5, 37.5, 87.5)], abs=1e-4
    )


@pytest.mark.parametrize("value", [0.0, 0.1, 137.0, -1000.7])
@pytest.mark.parametrize("scaling", ["zscore", "unit"])
def test_an_image_of_one_value_is_refused(value: float, scaling: str) -> None:
    scan = volume(np.full((20, 20, 20), value, np.float32), (1, 1, 1))
    with pytest.raises(UserError, match="every voxel has the same value"):
        preprocess(scan, plan((1, 1, 1), intensity={"scaling": scaling}))


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (1000.0, "from 1000x1000x1000 mm to the plan's 1x1x1 mm it has 8000x7000x6000 voxels, which take 2688.0 GB"),
        (0.001, "from 0.001x0.001x0.001 mm to the plan's 1x1x1 mm it has 1x1x1 voxels"),
    ],
)
def test_metres_or_micrometres_taken_for_millimetres_are_refused(size: float, words: str) -> None:
    array = np.random.default_rng(0).integers(0, 2, (8, 7, 6)).astype(np.float32)
    for way in (preprocess, resampled, resample_label):
        with pytest.raises(UserError, match=rf"{words}.*Is its voxel size in the right unit\?"):
            way(volume(array, (size, size, size)), plan((1, 1, 1)))


@pytest.mark.parametrize("target", [(0.7, 0.9, 1.1), (1.9, 1.9, 1.9), (1.0, 1.2, 3.1), SPACING])
def test_a_resampled_scan_says_where_it_lies(target: tuple[float, float, float]) -> None:
    """The blob's centre by the new affine is where the old one has it, and its values are not normalised."""
    blob = 100 * np.exp(-0.5 * (distances(SHAPE, SPACING, CENTRE) / 4) ** 2).astype(np.float32)
    turned = np.array([[0, -1, 0, 5], [1, 0, 0, -7], [0, 0, 1, 9], [0, 0, 0, 1.0]])
    scan = Volume(blob[None], turned @ np.diag([*SPACING, 1.0]))
    found = resampled(scan, plan(target))
    np.testing.assert_allclose(found.spacing_mm, target, rtol=1e-6)
    assert 80 < found.array.max() <= 100
    places = []
    for one in (scan, found):
        weights = one.array[0] / one.array[0].sum()
        voxel = [(index * weights).sum() for index in np.indices(one.shape)]
        places.append(one.affine @ (*voxel, 1))
    np.testing.assert_allclose(places[0], places[1], atol=0.05)


def test_values_can_stay_as_they_are() -> None:
    array = np.random.default_rng(0).normal(300, 50, SHAPE).astype(np.float32)
    kept = preprocess(volume(array, SPACING), plan(SPACING, intensity={"window": (250.0, 350.0), "scaling": "none"}))
    np.testing.assert_array_equal(kept[0], np.clip(array, 250, 350))
