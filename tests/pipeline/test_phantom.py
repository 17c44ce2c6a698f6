"""The virtual patients: frozen, visible, not to be had by a threshold, test masks out of training's way."""

import json

import nibabel
import numpy as np
import pytest
from scipy.ndimage import label

from sscl.data import phantom


@pytest.fixture(scope="module")
def patients():
    return [phantom.draw(number) for number in range(1, phantom.NUM_PATIENTS + 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantom")
    phantom.write_phantom(out)
    return out


def best_threshold_dice(patient):
    """Dice of `image >= t` for the best t of all, counted by sorting the voxels once."""
    order = np.argsort(patient.image, axis=None)[::-1]
    hits = np.cumsum(patient.mask.ravel()[order])
    return (2 * hits / (np.arange(1, hits.size + 1) + patient.mask.sum())).max()


def test_frozen():
    assert phantom.digest() == phantom.DIGEST


def test_no_threshold_finds_the_organ(patients):
    scores = [best_threshold_dice(patient) for patient in patients]
    assert max(scores) < 0.6
    assert np.mean(scores) == pytest.approx(0.34, abs=0.01)  # the number in the module's docstring


def test_organ_is_one_solid_piece_inside_the_scan(patients):
    for patient in patients:
        assert patient.image.shape == patient.mask.shape == phantom.SHAPE
        assert label(patient.mask)[1] == 1
        inside = patient.mask[1:-1, 1:-1, 1:-1].sum()
        assert inside == patient.mask.sum()
        assert 1000 < inside < 6000


def test_organ_is_brighter_than_what_surrounds_it_mostly(patients):
    for patient in patients:
        organ, rest = patient.image[patient.mask == 1], patient.image[patient.mask == 0]
        assert np.median(organ) > 1.4 * np.median(rest)


def test_patients_and_scanners_differ(patients):
    volumes = [patient.mask.sum() for patient in patients]
    centres = np.array([np.argwhere(patient.mask).mean(axis=0) for patient in patients])
    levels = [np.median(patient.image[patient.mask == 1]) for patient in patients]
    assert max(volumes) > 2 * min(volumes)
    assert max(levels) > 3 * min(levels)
    assert (np.ptp(centres, axis=0) > 5).all()


def test_folders_hold_no_mask_they_should_not(folder):
    split = json.loads((folder / "split.json").read_text())
    names = {
        kind: {path.name.split(".")[0] for path in (folder / kind).iterdir()}
        for kind in ("images", "masks", "test_masks")
    }
    assert [len(split[key]) for key in ("labelled", "unlabelled", "development", "test")] == [4, 12, 0, 8]
    assert names["masks"] == set(split["labelled"])
    assert names["test_masks"] == set(split["test"])
    assert names["images"] == set(split["labelled"] + split["unlabelled"] + split["test"])
    assert len(names["images"]) == 24


def test_files_hold_the_drawn_voxels(folder):
    image = nibabel.load(folder / "images/patient_17.nii.gz")
    mask = nibabel.load(folder / "test_masks/patient_17.nii.gz")
    patient = phantom.draw(17)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), patient.image)
    np.testing.assert_array_equal(np.asanyarray(mask.dataobj), patient.mask)
    assert image.header.get_zooms() == mask.header.get_zooms() == (1.5, 1.5, 1.5)
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")


@pytest.mark.parametrize("number", [0, 25])
def test_there_is_no_other_patient(number):
    with pytest.raises(ValueError, match="1 to 24"):
        phantom.draw(number)
