"""The literature's data sets as published: small copies of each folder, lists, where masks lie, and crops by masks."""

import csv
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import blosc2
import h5py
import nibabel
import nrrd
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from sscl.core.errors import UserError
from sscl.data.layouts import discover, scans_in
from sscl.data.mask_crop import MaskCrop, crop_to_mask, mask_box
from sscl.data.presets import PRESETS
from sscl.data.published_lists import leak, with_published_lists
from sscl.data.source import Case, Source
from sscl.data.split import Split
from sscl.report.published import published
from sscl.stages.assign import choose
from sscl.stages.dataset import open_dataset
from sscl.stages.evaluate import evaluate
from sscl.stages.predict import predict
from sscl.stages.prepare import prepare
from sscl.stages.record import read_result
from sscl.stages.report import report
from sscl.stages.train import train
from sscl.studies import benchmark
from sscl.studies.job import execute
from sscl.studies.suites import find_suite
from sscl.studies.tables import results, write_tables
from sscl.volumes.files import read_image, write_label
from sscl.volumes.volume import Volume

SHAPE, SPACING = (20, 18, 12), (0.8, 0.8, 1.5)
"""Of the CT scans, in the order of a series: columns run left, rows posterior, slices superior."""


def organ(seed: int) -> NDArray[np.uint8]:
    """In a corner, and longer along each axis than along the one before: no flip or turn of it is itself."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[2 + seed % 2 : 5, 3:9, 1:9] = 1
    mask[2 + seed % 2, 3, 9] = 1
    return mask


def ct(seed: int) -> NDArray[np.int16]:
    """HU: the organ of that seed at 100 to 120, all else at -60 to -40."""
    noise = np.random.default_rng(seed).integers(0, 20, SHAPE)
    return (noise - 60 + 160 * organ(seed)).astype(np.int16)


def series(folder: Path, array: NDArray[np.int16]) -> None:
    """A real CT series in folders of study and series; the files' names and instance numbers run downwards."""
    folder = folder / "1.2.840.1" / "1.2.840.2"
    folder.mkdir(parents=True)
    for k in range(array.shape[2]):
        item = pydicom.Dataset()
        item.file_meta = FileMetaDataset()
        item.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        item.file_meta.MediaStorageSOPClassUID = item.SOPClassUID = CTImageStorage
        item.file_meta.MediaStorageSOPInstanceUID = item.SOPInstanceUID = f"1.2.840.3.{k + 1}"
        item.SeriesInstanceUID, item.Modality, item.InstanceNumber = "1.2.840.2", "CT", array.shape[2] - k
        item.ImagePositionPatient = [-170.0, -150.5, -60 + SPACING[2] * k]
        item.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        item.PixelSpacing = [SPACING[1], SPACING[0]]
        item.Columns, item.Rows, item.SamplesPerPixel = array.shape[0], array.shape[1], 1
        item.PhotometricInterpretation, item.PixelRepresentation = "MONOCHROME2", 1
        item.BitsAllocated, item.BitsStored, item.HighBit = 16, 16, 15
        item.RescaleSlope, item.RescaleIntercept = 1, -1024
        item.PixelData = np.ascontiguousarray(array[:, :, k].T + 1024).astype("<i2").tobytes()
        item["PixelData"].VR = "OW"
        item.save_as(folder / f"1-{array.shape[2] - k:03d}.dcm", enforce_file_format=True)


def put(path: Path, array: NDArray[Any], affine: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


WRONG = np.diag([*SPACING, 1.0])
"""What a mask's header may say: right, anterior, superior from zero. Its array runs left, posterior, superior."""


def pancreas(root: Path, numbers: tuple[int, ...], masks: str = "TCIA_pancreas_labels-02-05-2017") -> Path:
    for number in numbers:
        series(root / f"Pancreas-CT/PANCREAS_{number:04d}", ct(number))
        put(root / masks / f"label{number:04d}.nii.gz", organ(number), WRONG)
    return root


def stored(out: Path) -> dict[str, NDArray[Any]]:
    files = sorted((out / "store").glob("*.b2nd"))
    return {path.name.removesuffix(".b2nd"): blosc2.open(str(path))[:] for path in files}


def bright(image: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray(image[0] > (image.min() + image.max()) / 2)


NATIVE = {"spacing_mm": SPACING}
"""So that prepare resamples nothing and voxels can be compared."""


# NIH Pancreas-CT


@pytest.mark.parametrize("axes", [(1, 1, 1), (-1, 1, 1), (1, 1, -1), (-1, -1, 1)])
def test_a_pancreas_lies_on_its_scan_whatever_its_mask_s_header_says(tmp_path: Path, axes: tuple[int, ...]) -> None:
    source = pancreas(tmp_path / "src", (2, 3))
    for number in (2, 3):
        file = source / f"TCIA_pancreas_labels-02-05-2017/label{number:04d}.nii.gz"
        put(file, organ(number), np.diag([*np.multiply(axes, SPACING), 1.0]))
    prepare(source, tmp_path / "out", preset="pancreas", settings=NATIVE)
    store = stored(tmp_path / "out")
    for case in ("PANCREAS_0002", "PANCREAS_0003"):
        assert store[f"{case}.label"].any()
        np.testing.assert_array_equal(bright(store[f"{case}.image"]), store[f"{case}.label"] == 1)
    # in RAS+, x and y run against the columns and rows of the series
    np.testing.assert_array_equal(store["PANCREAS_0002.label"], organ(2)[::-1, ::-1])


def test_a_header_that_agrees_with_the_scan_is_believed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = pancreas(tmp_path / "src", (2, 3))
    scan = read_image([source / "Pancreas-CT/PANCREAS_0002"], 1)
    file = source / "TCIA_pancreas_labels-02-05-2017/label0002.nii.gz"
    header = scan.affine.copy()
    header[:3, 3] += 0.1  # less than half a voxel
    right = nibabel.Nifti1Image(organ(2), header)
    nibabel.save(right.as_reoriented(np.array([[1, -1], [2, 1], [0, 1]])), file)  # another order of the same axes
    with caplog.at_level(logging.INFO, "sscl"):
        prepare(source, tmp_path / "out", preset="pancreas", settings=NATIVE)
    np.testing.assert_array_equal(stored(tmp_path / "out")["PANCREAS_0002.label"], organ(2)[::-1, ::-1])
    assert re.findall(r"(label\d+).nii.gz: its header \((\w+)\) does not.* run (\w+)", caplog.text) == [
        *[("label0003", "RAS", "LPS")] * 2,  # read for the plan and for the store
    ]


def test_masks_that_cannot_be_the_scan_s_are_refused(tmp_path: Path) -> None:
    source = pancreas(tmp_path / "src", (2, 3))
    file = source / "TCIA_pancreas_labels-02-05-2017/label0002.nii.gz"
    for label, affine in ((organ(2)[:, :, :-1], WRONG), (organ(2).T, WRONG), (organ(2), np.diag([0.8, 0.8, 1.6, 1]))):
        put(file, label, affine)
        with pytest.raises(
            UserError, match=r"label0002.nii.gz: the mask has .*its scan \(20, 18, 12\).*cannot be laid"
        ):
            prepare(source, tmp_path / "out", preset="pancreas", settings=NATIVE)
    assert not (tmp_path / "out").exists()


def test_predictions_are_scored_against_the_mask_where_it_is_laid(tmp_path: Path) -> None:
    source, out = pancreas(tmp_path / "src", (1, 2, 3)), tmp_path / "out"
    prepare(source, out, preset="pancreas", settings=NATIVE, test="last:1", labelled=1)
    assert json.loads((out / "dataset.json").read_text())["mask_axes"] == "LPS"
    (case,) = open_dataset(out).split.test
    scan = read_image(open_dataset(out).image_paths(case), 1)
    truth = organ(int(case[-1]))

    def dice(name: str, mask: NDArray[np.uint8], affine: NDArray[np.float64]) -> Any:
        (tmp_path / name).mkdir()
        write_label(tmp_path / name / f"{case}.nii.gz", mask, Volume(mask[None], affine))
        return evaluate(tmp_path / name, out).scores[0].values["dice"]

    assert dice("perfect", truth, scan.affine) == 1
    assert dice("mirrored", np.ascontiguousarray(truth[:, ::-1]), scan.affine) < 0.5
    with pytest.raises(UserError, match="another position"):
        dice("elsewhere", truth, WRONG)


def test_the_folders_of_pancreas_ct(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = pancreas(tmp_path / "a", (1, 2), masks="labels")
    (source / "labels/label0002.nii.gz").unlink()
    put(source / "labels/label0070.nii.gz", organ(70), WRONG)  # the scan of which the archive withdrew
    found = discover(source)
    assert (found.layout, found.order, found.masked) == (
        "pancreas_ct",
        ("PANCREAS_0001", "PANCREAS_0002"),
        {"PANCREAS_0001"},
    )
    assert "1 masks without a scan are not used: PANCREAS_0070" in caplog.text
    other = tmp_path / "b"
    shutil.copytree(source / "Pancreas-CT", other / "manifest-1599750808610/Pancreas-CT")
    put(other / "label0001.nii.gz", organ(1), WRONG)
    assert discover(other).masked == {"PANCREAS_0001"}
    put(other / "labels/label0001.nii.gz", organ(1), WRONG)
    with pytest.raises(UserError, match=r"labels/label0001.nii.gz: duplicate"):
        discover(other)
    with pytest.raises(UserError, match=r"2 folders PANCREAS_.*no mask.*'labels'"):
        discover(source / "Pancreas-CT")
    shutil.move(source / "labels", source / "Pancreas-CT/labels")
    assert discover(source / "Pancreas-CT").masked == {"PANCREAS_0001"}
    shutil.move(source / "Pancreas-CT/labels", source / "labels")
    assert list(scans_in(source / "Pancreas-CT", 1)) == ["PANCREAS_0001", "PANCREAS_0002"]


# Lists


def found(cases: list[str], **more: Any) -> Source:
    """A source of these cases, each with a mask."""
    named = {case: Case((Path(case),), Path(case)) for case in cases}
    return Source("set", Path(), "folders", ("CT",), None, named, tuple(sorted(cases)), **more)


def published_split(preset: str, source: Source, **options: Any) -> Split:
    given = {"labelled": None, "unlabelled": None, "development": None, "test": None, **options}
    listed = with_published_lists(source, preset, PRESETS[preset].order, PRESETS[preset].test)
    return choose(listed, None, **given)[0]


def numbers(cases: tuple[str, ...]) -> list[int]:
    return [int(case.rsplit("_", 1)[1]) for case in cases]


ALL_82 = [f"PANCREAS_{number:04d}" for number in range(1, 83)]


def test_the_62_20_protocol_of_the_pancreas_and_its_leak() -> None:
    split = published_split("pancreas", found(ALL_82), labelled=12)
    assert numbers(split.labelled) == [57, 18, 62, 31, 20, 17, 32, 79, 61, 64, 70, 19]
    assert len(split.unlabelled) == 50
    assert numbers(split.test) == [50, 59, 37, 60, 40, 74, 4, 46, 8, 54, 5, 73, 1, 39, 6, 67, 25, 51, 21, 9]
    assert sorted((*split.labelled, *split.unlabelled, *split.test)) == ALL_82
    told = leak(split, PRESETS["pancreas"].duplicates)
    assert told
    assert "PANCREAS_0002 (unlabelled), PANCREAS_0025 (test), PANCREAS_0070 (labelled)" in told


def test_the_62_18_protocol_of_the_pancreas_has_no_leak() -> None:
    split = published_split("pancreas-coranet", found(ALL_82), labelled=12)
    assert numbers(split.labelled) == list(range(1, 13))
    assert numbers(split.unlabelled) == [number for number in range(13, 64) if number != 25]
    assert numbers(split.test) == [number for number in range(64, 83) if number != 70]
    assert (len(split.unlabelled), len(split.test)) == (50, 18)
    assert leak(split, PRESETS["pancreas-coranet"].duplicates) is None


def test_duplicates_that_are_all_trained_on_are_no_leak() -> None:
    assert leak(Split(labelled=("a",), unlabelled=("b",), test=("c",)), ("a", "b")) is None
    assert leak(Split(labelled=("a",), development=("b",), test=("c",)), ("a", "b"))


def test_the_list_of_kits19_is_ours_and_fixed() -> None:
    cases = [f"case_{number:05d}" for number in range(300)]
    split = published_split("kits19", found(cases), labelled=16)
    assert numbers(split.labelled) == [12, 80, 33, 5, 188, 83, 116, 122, 90, 154, 45, 156, 52, 190, 96, 86]
    assert numbers(split.test)[-3:] == [117, 47, 172]
    assert (len(split.labelled), len(split.unlabelled), len(split.test)) == (16, 144, 50)
    used = (*split.labelled, *split.unlabelled, *split.test)
    assert sorted(numbers(used)) == list(range(210))  # the challenge's test cases, 210 and on, have no mask


def test_the_user_s_options_and_the_source_s_own_lists_win(caplog: pytest.LogCaptureFixture) -> None:
    split = published_split("pancreas", found(ALL_82), labelled="1:2", test="last:3")
    assert numbers(split.test) == [80, 81, 82]  # positions count in the published order
    assert numbers(split.labelled) == [57, 18]
    own = found(ALL_82, lists={"test": ("PANCREAS_0002",)})
    assert published_split("pancreas", own).test == ("PANCREAS_0002",)
    named = found(["a", "b"])
    with caplog.at_level(logging.INFO, "sscl"):
        assert published_split("pancreas", named).labelled == ("a", "b")
    assert "lists of preset pancreas are not used: no case is called PANCREAS_0057" in caplog.text


def test_lists_and_leak_in_prepare(tmp_path: Path) -> None:
    source = pancreas(tmp_path / "src", (2, 25, 57, 70, 9))
    result = prepare(source, tmp_path / "out", preset="pancreas", labelled=1, settings=NATIVE)
    assert numbers(result.split.labelled) == [57]
    assert numbers(result.split.unlabelled) == [70, 2]
    assert numbers(result.split.test) == [25, 9]
    assert [text for text in result.warnings if "a leak: PANCREAS_0002 (unlabelled), PANCREAS_0025 (test)" in text]
    assert [text for text in result.warnings if "77 of the 82 cases that preset pancreas lists are not here" in text]
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"labelled": ["PANCREAS_0009"]}))
    own = prepare(source, tmp_path / "own", preset="pancreas", split_file=file, settings=NATIVE).split
    assert own.lists() == {"labelled": ("PANCREAS_0009",), "unlabelled": (), "development": (), "test": ()}


# KiTS19


def kits19(root: Path, num_cases: int) -> Path:
    """Its arrays run downwards, then backwards, then to the right: their headers say so."""
    affine = np.array([[0, 0, 0.9, 0], [0, -0.9, 0, 0], [-3.0, 0, 0, 0], [0, 0, 0, 1]])
    for number in range(num_cases):
        label = organ(number)
        label[4, 8, 1:9] *= 2
        put(root / f"case_{number:05d}/imaging.nii.gz", ct(number), affine)
        put(root / f"case_{number:05d}/segmentation.nii.gz", label, affine)
    return root


def test_kits19_as_published(tmp_path: Path) -> None:
    source = kits19(tmp_path / "src", 4)
    (source / "case_00003/segmentation.nii.gz").unlink()
    settings: dict[str, Any] = {"spacing_mm": (0.9, 0.9, 3.0)}
    result = prepare(source, tmp_path / "one", preset="kits19", settings=settings)
    assert result.plan.labels == ("background", "kidney")
    assert result.split.unlabelled == ("case_00003",)
    store = stored(tmp_path / "one")
    assert store["case_00000.label"].shape == (12, 18, 20)
    np.testing.assert_array_equal(bright(store["case_00000.image"]), store["case_00000.label"] == 1)
    settings["labels"] = ("background", "kidney", "tumour")
    prepare(source, tmp_path / "two", preset="kits19", settings=settings)
    assert np.bincount(stored(tmp_path / "two")["case_00000.label"].ravel())[2] == 8
    assert list(scans_in(source, 1)) == [f"case_{number:05d}" for number in range(4)]
    (source / "case_00001/imaging.nii.gz").unlink()
    with pytest.raises(UserError, match=r"case_00001/imaging.nii.gz: is missing beside segmentation.nii.gz"):
        discover(source)


def told_as_not_used(name: str, source: Path, caplog: pytest.LogCaptureFixture, find: Any = discover) -> None:
    """One warning, which says so and holds the name."""
    caplog.clear()
    find(source)
    assert [("not used" in text or "not read" in text) and name in text for text in caplog.messages] == [True]


def test_a_case_whose_file_has_another_name_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kidneys = kits19(tmp_path / "kidneys", 3)
    discover(kidneys)
    assert caplog.messages == []
    (kidneys / "case_00001/segmentation.nii.gz").rename(kidneys / "case_00001/segmentation_.nii.gz")
    told_as_not_used("case_00001", kidneys, caplog)
    (kidneys / "case_00001/imaging.nii.gz").rename(kidneys / "case_00001/imaging.NII.GZ")
    told_as_not_used("case_00001", kidneys, caplog)
    told_as_not_used("case_00001", kidneys, caplog, find=lambda folder: scans_in(folder, 1))
    atria = la_challenge(tmp_path / "atria", 3)
    for name in ("lgemri.nrrd", "laendo.nrrd"):
        (atria / "P1" / name).rename(atria / "P1" / name.upper())
    told_as_not_used("'P1'", atria, caplog)
    patients = pancreas(tmp_path / "pancreas", (1, 2, 3), masks="labels")
    (patients / "labels/label0002.nii.gz").rename(patients / "labels/label2.nii.gz")
    told_as_not_used("label2.nii.gz", patients, caplog)
    (patients / "labels/label2.nii.gz").unlink()
    (patients / "Pancreas-CT/PANCREAS_0002").rename(patients / "Pancreas-CT/Pancreas_0002")
    told_as_not_used("Pancreas_0002", patients, caplog)


# Left atrium


def la_challenge(root: Path, cases: int) -> Path:
    for number in range(cases):
        folder = root / f"P{number}"
        folder.mkdir(parents=True)
        header = {"space directions": np.diag(SPACING), "space": "left-posterior-superior"}
        nrrd.write(str(folder / "lgemri.nrrd"), ct(number), header)
        nrrd.write(str(folder / "laendo.nrrd"), organ(number) * 255, header)
    return root


def test_the_community_s_lists_beside_the_challenge_s_folders(tmp_path: Path) -> None:
    source = la_challenge(tmp_path / "src", 4)
    (source / "train.list").write_text("P2\nP0\nP3\n")
    (source / "test.list").write_text("P1\n")
    split = prepare(source, tmp_path / "out", preset="la", labelled=1, settings=NATIVE).split
    assert (split.labelled, split.unlabelled, split.test) == (("P2",), ("P0", "P3"), ("P1",))


# Crops by the mask


def test_only_presets_called_literature_crop_by_masks() -> None:
    assert {name for name, preset in PRESETS.items() if preset.mask_crop} == {
        name for name in PRESETS if name.endswith("-literature")
    }
    assert PRESETS["la-literature"].mask_crop


def test_a_box_by_hand() -> None:
    inside = np.zeros((20, 20, 20), bool)
    inside[5:8, 10, 2:18] = True
    box = mask_box(inside, MaskCrop(margin=(2, 3, None), at_least=(4, 10, 30)))
    assert box == (slice(3, 10), slice(6, 16), slice(0, 20))  # 3 + 2*2 = 7; 1 + 2*3 = 7, grown to 10; the whole axis
    assert mask_box(inside, MaskCrop(margin=(9, 0, 1), at_least=(1, 1, 1))) == (
        slice(0, 17),
        slice(10, 11),
        slice(1, 19),
    )
    with pytest.raises(UserError, match="empty"):
        mask_box(inside & False, MaskCrop(margin=(1, 1, 1), at_least=(1, 1, 1)))


def test_a_crop_stays_where_it_was_and_can_keep_the_whole_scan_s_zscore() -> None:
    affine = np.diag([-2.0, 1, 3, 1])
    affine[:3, 3] = (10, 20, 30)
    image = Volume(ct(0)[None], affine)
    label = Volume(organ(0)[None], affine)
    crop = MaskCrop(margin=(1, 1, None), at_least=(1, 1, 1))
    cut, mask = crop_to_mask(image, label, crop)
    assert cut.shape == mask.shape == (5, 8, 12)  # the organ is 3 x 6 in x and y
    np.testing.assert_array_equal(cut.array[0], ct(0)[1:6, 2:10])
    np.testing.assert_array_equal(cut.affine @ (0, 0, 0, 1), affine @ (1, 2, 0, 1))
    normal, _ = crop_to_mask(image, label, crop.model_copy(update={"zscore_first": True}))
    whole = ct(0).astype(np.float64)
    np.testing.assert_allclose(normal.array[0], ((whole - whole.mean()) / whole.std())[1:6, 2:10], atol=1e-5)


SMALL = {"patch": (16, 16, 16), "stride": (16, 16, 16), **NATIVE}


def test_la_literature_writes_the_crops_into_the_data_set(tmp_path: Path) -> None:
    source, out = la_challenge(tmp_path / "src", 4), tmp_path / "out"
    result = prepare(source, out, preset="la-literature", labelled=1, test="last:1", settings=SMALL)
    assert [text for text in result.warnings if "opens the masks of unlabelled and test cases" in text]
    facts = json.loads((out / "dataset.json").read_text())
    assert (facts["source"], facts["label_map"]) == ("cropped", {})
    assert facts["cases"]["P3"] == {"image": ["images/P3_0000.nii.gz"], "label": "masks/P3.nii.gz"}
    whole = ct(0)[::-1, ::-1].astype(np.float64)
    image = stored(out)["P0.image"][0]  # 15 more voxels on each side are more than these scans have
    np.testing.assert_allclose(image, (whole - whole.mean()) / whole.std(), atol=2e-3)
    read = json.loads((out / "stage.json").read_text())["inputs"]
    assert {f"P{number}/{name}.nrrd" for number in range(4) for name in ("lgemri", "laendo")} == set(read)
    assert prepare(source, out, preset="la-literature", labelled=1, test="last:1", settings=SMALL).skipped


def test_cropped_scans_are_other_data(tmp_path: Path) -> None:
    """Also where the plan, the split and every file that was read are the same."""
    source, settings = la_challenge(tmp_path / "src", 2), {**SMALL, "scaling": "zscore"}
    digests = set()
    for preset in ("la", "la-literature"):
        digests.add(open_dataset(prepare(source, tmp_path / preset, preset=preset, settings=settings).out).digest)
    assert len(digests) == 2


@pytest.mark.parametrize("preset", ["la-literature", "la", "pancreas"])
def test_from_scans_to_report(tmp_path: Path, preset: str, caplog: pytest.LogCaptureFixture) -> None:
    """Where the mask is laid, and on which scan, is one thing for prepare, predict, evaluate and report."""
    source, out = tmp_path / "src", tmp_path / "out"
    pancreas(source, (2, 3, 1)) if preset == "pancreas" else la_challenge(source, 4)
    options = {"labelled": 1} if preset == "pancreas" else {"labelled": 1, "test": "last:1"}
    prepare(source, out, preset=preset, settings=SMALL, **options)
    if preset == "la-literature":
        shutil.rmtree(source)  # predict and evaluate look at the crops alone,
        out = out.rename(tmp_path / "moved")  # which go along with the data set
    train(out, tmp_path / "run", settings={"width": 2}, iterations=2, threads=1, device="cpu", precision="float32")
    masks = tmp_path / "run/predictions"
    (mask,) = predict(tmp_path / "run", [out], masks, device="cpu")
    (case,) = open_dataset(out).split.test
    scan = read_image(open_dataset(out).image_paths(case), 1)
    inside = scan.array[0] > (scan.array.min() + scan.array.max()) / 2  # the organ is what is bright
    write_label(mask, inside.astype(np.uint8), scan)
    (masks / "stage.json").unlink()  # which says that `predict` wrote another mask
    assert evaluate(masks, out).scores[0].values["dice"] == 1
    page = report([tmp_path / "run"], tmp_path / "report.html").read_text()
    assert "have no picture" not in page
    assert set(re.findall(r"(\d+) wrong voxels", page)) == {"0"}
    predict(tmp_path / "run", open_dataset(out).image_paths(case), tmp_path / "elsewhere", device="cpu")
    assert ("takes intensities as they are" in caplog.text) == (preset == "la-literature")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "cases"), [("table2", (62, 20)), ("table3", (160, 50))])
def test_tables_2_and_3_from_the_published_folders(
    tmp_path: Path, name: str, cases: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row, on as many small scans as the data set has, with its own lists; crops and networks are small."""
    suite, source, out = find_suite(name), tmp_path / "src", tmp_path / "out"
    spacing = SPACING if name == "table2" else (0.9, 0.9, 3.0)
    preset = PRESETS[str(suite.preset)]
    plan = preset.plan | {"patch": (32, 16, 16), "stride": (16, 16, 16), "spacing_mm": spacing}
    monkeypatch.setitem(PRESETS, str(suite.preset), preset.model_copy(update={"plan": plan, "method": {"width": 4}}))
    pancreas(source, tuple(range(1, 83))) if name == "table2" else kits19(source, 210)
    planned = benchmark.plan(suite, source, out, benchmark.Cases(), iterations=2, device="cpu", threads=1)
    for item in planned:
        execute(item.job)
    masks = {"all": 62} | {number: number for number in (12, 16)}
    for item in planned:
        dataset = open_dataset(Path(item.job.dataset))
        assert len(dataset.split.labelled) == masks[item.row.masks]
        assert len(dataset.split.labelled) + len(dataset.split.unlabelled) == cases[0]
        assert len({row["case"] for row in read_result(Path(item.job.record)).rows}) == cases[1]
    write_tables(suite, results(planned), out)
    with (out / f"{name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= len(published(name))
    assert {row["seeds"] for row in rows} == {"1"}


@pytest.mark.parametrize("preset", ["pancreas-literature", "pancreas-coranet-literature"])
def test_the_crops_of_the_pancreas(tmp_path: Path, preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With margins that these small scans have room for; the rest is the preset's."""
    known = PRESETS[preset]
    assert known.mask_crop
    margin = tuple(None if voxels is None else 2 for voxels in known.mask_crop.margin)
    small = known.model_copy(update={"mask_crop": MaskCrop(margin=margin, at_least=(1, 1, 1))})
    monkeypatch.setitem(PRESETS, preset, small)
    source, out = pancreas(tmp_path / "src", (2, 3, 64)), tmp_path / "out"
    prepare(source, out, preset=preset, settings=SMALL, labelled=1)
    (case,) = open_dataset(out).split.labelled
    store = stored(out)
    mask = organ(int(case[-2:]))
    z = 12  # slices 1 to 9 with 2 more on each side are all there are
    x, y = mask.any(axis=(1, 2)).sum() + 4, mask.any(axis=(0, 2)).sum() + 4
    assert store[f"{case}.label"].shape == (x, y, z)
    np.testing.assert_array_equal(bright(store[f"{case}.image"]), store[f"{case}.label"] == 1)
    image = store[f"{case}.image"].astype(np.float64)
    if preset == "pancreas-literature":
        assert image.mean() == pytest.approx(0, abs=1e-2)  # z-scores of the crop
        assert image.std() == pytest.approx(1, abs=1e-2)
    else:
        assert image.min() == pytest.approx(65 / 400, abs=1e-3)  # -60 HU in the window of -125 to 275
        assert image.max() == pytest.approx(244 / 400, abs=2e-3)  # 119 HU


def test_what_a_crop_by_masks_needs(tmp_path: Path) -> None:
    source = la_challenge(tmp_path / "src", 3)
    (source / "P2/laendo.nrrd").unlink()
    with pytest.raises(UserError, match=r"crops every scan to its mask.*'P2' has none"):
        prepare(source, tmp_path / "out", preset="la-literature", labelled=1, settings=SMALL)
    prepare(source, tmp_path / "default", preset="la", labelled=1, settings=SMALL)
    (tmp_path / "h5/P0").mkdir(parents=True)
    with h5py.File(tmp_path / "h5/P0/mri_norm2.h5", "w") as file:
        file["image"], file["label"] = ct(0).astype(np.float32), organ(0)
    with pytest.raises(UserError, match=r"cropped already.*--preset la\."):
        prepare(tmp_path / "h5", tmp_path / "out", preset="la-literature")


def test_an_empty_mask_has_no_box(tmp_path: Path) -> None:
    source = la_challenge(tmp_path / "src", 3)
    header = {"space directions": np.diag(SPACING), "space": "left-posterior-superior"}
    nrrd.write(str(source / "P2/laendo.nrrd"), organ(0) * 0, header)
    with pytest.raises(UserError, match=r"P2/laendo.nrrd: the mask is empty"):
        prepare(source, tmp_path / "out", preset="la-literature", labelled=1, settings=SMALL)


@pytest.mark.data
def test_the_community_s_files_have_the_crop_of_our_preset(data_dir: Path) -> None:
    """In x and y: the mask's box, widened to 112, and 9 to 19 voxels on each side, where our preset has 15."""
    crop = PRESETS["la-literature"].mask_crop
    assert crop
    files = sorted((data_dir / "la").rglob("mri_norm2.h5"))
    assert files
    for path in files:
        with h5py.File(path) as file:
            label = file["label"][:] > 0
        wide = np.pad(label, ((60, 60), (60, 60), (0, 0)))
        ours = mask_box(wide, crop)
        assert wide[ours].shape[2] == label.shape[2]
        for axis in (0, 1):
            theirs = slice(60, 60 + label.shape[axis])
            assert abs(ours[axis].start - theirs.start) <= 6
            assert abs(ours[axis].stop - theirs.stop) <= 6
