"""`check`: everything that is wrong in one list; copies, patients and misplaced masks; nothing read twice."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
from numpy.typing import NDArray

from sscl import cli
from sscl.core.errors import UserError
from sscl.data.check_set import check_patients
from sscl.data.placement import FEWEST, Place, misplaced, place
from sscl.stages import check as stage
from sscl.stages import folder
from sscl.stages.check import CheckResult, check
from sscl.stages.prepare import prepare

SHAPE = (20, 18, 16)
GARBAGE = b"no volume"


def scan(seed: int) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(-1000, 1000, SHAPE).astype(np.int16)


def mask(seed: int) -> NDArray[np.uint8]:
    """An egg that lies off the middle on every axis and is longer along each than along the next."""
    rng = np.random.default_rng(seed)
    grid, centre = np.indices(SHAPE), np.array([6, 11, 6]) + rng.uniform(-0.5, 0.5, 3)
    radii = np.array([5, 4, 3]) * rng.uniform(0.9, 1.1, 3)
    return (sum(((grid[k] - centre[k]) / radii[k]) ** 2 for k in range(3)) < 1).astype(np.uint8)


def put(path: Path, array: NDArray[Any], affine: NDArray[Any] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)


def nnunet(root: Path, masks: int = 4, scans: int = 6, names: Callable[[int], str] = "c{}".format, **over: Any) -> Path:
    for number in range(scans):
        put(root / f"imagesTr/{names(number)}_0000.nii.gz", scan(number))
        if number < masks:
            put(root / f"labelsTr/{names(number)}.nii.gz", mask(number))
    facts = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "organ": 1}}
    (root / "dataset.json").write_text(json.dumps({**facts, **over}))
    return root


def messages(result: CheckResult, fatal: bool) -> list[str]:
    return [finding.message for finding in result.findings if finding.fatal == fatal]


def told(words: str, result: CheckResult, fatal: bool = False) -> None:
    """One finding of this kind, with these words."""
    found = messages(result, fatal)
    assert len([message for message in found if re.search(words, message)]) == 1, found


# One list


def test_nothing_is_found_where_nothing_is_wrong(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    result = check(source)
    assert (result.findings, result.errors) == ((), 0)
    assert result.cases == {"labelled": 4, "unlabelled": 2, "development": 0, "test": 0}
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_long_check_tells_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = nnunet(tmp_path / "src")
    for silent, told in ((60.0, []), (0.0, [f"read {done} of 6 cases" for done in range(6)])):
        monkeypatch.setattr(folder, "SILENT_SECONDS", silent)
        caplog.clear()
        with caplog.at_level("INFO", "sscl"):
            check(source)
        assert [message for message in caplog.messages if message.startswith("read")] == told


def test_all_that_is_wrong_is_told_at_once_and_prepare_stops_at_the_same(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src", numTraining=5)
    (source / "imagesTr/c5_0000.nii.gz").write_bytes(GARBAGE)
    put(source / "labelsTr/c1.nii.gz", mask(1) * 3)
    put(source / "labelsTr/c2.nii.gz", mask(2)[1:])
    put(source / "labelsTr/c3.nii.gz", mask(3) * 0)
    result = check(source)
    told(r"c5_0000\.nii\.gz: not a single-file NIfTI", result, fatal=True)
    told(r"c1\.nii\.gz: .*label value 3", result, fatal=True)
    told(r"c2\.nii\.gz: .*shape is 19x18x16", result, fatal=True)
    told(r"dataset\.json: numTraining promises 5", result, fatal=True)
    told(r"c3\.nii\.gz: the mask is empty", result)
    told("c3", result)
    (source / "dataset.json").write_text((source / "dataset.json").read_text().replace('"numTraining": 5', '"a": 0'))
    with pytest.raises(UserError) as error:
        prepare(source, tmp_path / "out")
    assert list(error.value.args) == messages(check(source), fatal=True)
    assert not (tmp_path / "out").exists()


def test_every_mistake_of_a_kind_is_told(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src")
    for name in ("x", "y"):
        put(source / f"labelsTr/{name}.nii.gz", mask(0))
    assert len(messages(check(source), fatal=True)) == 2
    for name in ("imagesTr/x.mha", "imagesTr/y.npy"):
        (source / name).write_bytes(GARBAGE)
    told(r"y\.npy: may hold pickled objects", check(source), fatal=True)
    told(r"x\.mha: is not a volume of a known kind", check(source), fatal=True)


def test_a_split_that_cannot_be_does_not_hide_the_files(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src")
    (source / "labelsTr/c1.nii.gz").write_bytes(GARBAGE)
    result = check(source, test="first:99")
    told("--test first:99", result, fatal=True)
    told(r"c1\.nii\.gz: not a single-file", result, fatal=True)


def test_masks_of_test_cases_are_opened_and_those_of_unlabelled_ones_are_not(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src", masks=6)
    for case in ("c3", "c5"):
        (source / f"labelsTr/{case}.nii.gz").write_bytes(GARBAGE)
    result = check(source, labelled=2, unlabelled=2, test="last:2")
    assert [re.findall(r"c\d\.nii", message) for message in messages(result, fatal=True)] == [["c5.nii"]]
    prepare(source, tmp_path / "out", labelled=2, unlabelled=2, test="last:2")  # which leaves both closed


def test_the_command_tells_by_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = nnunet(tmp_path / "src")
    put(source / "labelsTr/c3.nii.gz", mask(3) * 0)
    assert cli.main(["check", str(source)]) == 0
    assert re.search(r"warning  .*c3\.nii\.gz: the mask is empty", capsys.readouterr().out)
    (source / "imagesTr/c5_0000.nii.gz").write_bytes(GARBAGE)
    assert cli.main(["check", str(source), "--json"]) == 2
    out = json.loads(capsys.readouterr().out)
    assert (out["errors"], [finding["level"] for finding in out["findings"]]) == (1, ["error", "warning"])


# Nothing twice


def test_what_did_not_change_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = nnunet(tmp_path / "src"), tmp_path / "check.json"
    put(source / "labelsTr/c3.nii.gz", mask(3) * 0)
    (source / "imagesTr/c4_0000.nii.gz").write_bytes((source / "imagesTr/c0_0000.nii.gz").read_bytes())
    first = check(source, out)
    told("identical to case 'c0'", first, fatal=True)
    read: list[str] = []
    image_of = stage.image_of
    monkeypatch.setattr(
        stage, "image_of", lambda found, case, spacing: [read.append(case), image_of(found, case, spacing)][1]
    )
    again = check(source, out)
    assert (read, again.unchanged, again.findings) == ([], 6, first.findings)
    put(source / "imagesTr/c4_0000.nii.gz", scan(4))
    assert messages(check(source, out), fatal=True) == []
    assert read == ["c4"]
    put(source / "labelsTr/c1.nii.gz", mask(1) * 2)
    told("label value 2", check(source, out), fatal=True)
    assert read == ["c4", "c1"]
    check(source, out, settings={"labels": ("background", "organ", "other")})  # other labels, other findings
    assert len(read) == 8
    content = json.loads(out.read_text())
    content["known"] = {key: {"findings": 3} for key in content["known"]}
    out.write_text(json.dumps(content))
    assert check(source, out).unchanged == 0


def test_a_file_of_others_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(UserError, match=r"mine\.json: is not the result of `sscl check`"):
        check(nnunet(tmp_path / "src"), tmp_path / "mine.json")


# Copies


def as_float(path: Path, array: NDArray[Any]) -> None:
    put(path, array.astype(np.float64))


def as_plain_file(path: Path, array: NDArray[Any]) -> None:
    path.unlink()
    put(path.with_suffix(""), array)


def as_other_axes(path: Path, array: NDArray[Any]) -> None:
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)).as_reoriented(np.array([[2, -1], [0, 1], [1, -1]])), path)


def as_nrrd(path: Path, array: NDArray[Any]) -> None:
    path.unlink()
    nrrd.write(str(path).replace(".nii.gz", ".nrrd"), array, {"space": "RAS", "space directions": np.eye(3)})


@pytest.mark.parametrize("save", [put, as_float, as_plain_file, as_other_axes, as_nrrd])
def test_a_copy_that_was_saved_anew_is_a_leak(tmp_path: Path, save: Callable[[Path, NDArray[Any]], None]) -> None:
    source = nnunet(tmp_path / "src")
    save(source / "imagesTr/c5_0000.nii.gz", scan(1))
    words = r"c5_0000\.(nii|nrrd).*identical to case 'c1'.*'test' and 'labelled' is a leak"
    told(words, check(source, test="last:1"), fatal=True)
    with pytest.raises(UserError, match=words):
        prepare(source, tmp_path / "out", test="last:1")


def test_a_copy_within_a_list_or_with_other_intensities_is_suspicious(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src")
    put(source / "imagesTr/c5_0000.nii.gz", scan(4))
    low, high = np.percentile(scan(1), (0.5, 99.5))
    put(source / "imagesTr/c3_0000.nii.gz", (255 * np.clip((scan(1) - low) / (high - low), 0, 1)).astype(np.uint8))
    result = check(source)
    told("c5_0000.* identical to case 'c4': a duplicate within 'unlabelled'", result)
    told("'c3': nearly the same scan as case 'c1' .correlation (0.99|1.00)", result)
    assert len(result.findings) == 2


def test_one_file_for_two_channels(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src", channel_names={"0": "T1", "1": "T2"})
    for number in range(6):
        put(source / f"imagesTr/c{number}_0001.nii.gz", scan(10 + number))
    assert check(source).findings == ()
    put(source / "imagesTr/c1_0001.nii.gz", scan(1))
    put(source / "imagesTr/c3_0001.nii.gz", scan(12))
    result = check(source, tmp_path / "check.json")
    told("'c1': its channel T2 is identical to channel T1 of case 'c1'", result)
    told("'c3': its channel T2 is identical to channel T2 of case 'c2'", result)
    assert check(source, tmp_path / "check.json").findings == result.findings
    assert len(result.findings) == 2


def test_a_value_that_only_a_test_mask_has(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src", masks=6)
    folders = {"images": Path("imagesTr"), "labels": Path("labelsTr"), "test": "last:2"}
    assert check(source, **folders, labelled=2).findings == ()
    put(source / "labelsTr/c5.nii.gz", mask(5) * 255)
    told(r"c5\.nii\.gz: the mask holds the label value 255, which no", check(source, **folders, labelled=2), fatal=True)


def test_one_mask_for_two_scans(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src")
    put(source / "labelsTr/c3.nii.gz", mask(1).astype(np.float32))
    told("'c3': its mask is identical to that of case 'c1'", check(source))


# Masks in the place of scans


def test_a_mask_in_the_place_of_its_scan(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src")
    put(source / "imagesTr/c1_0000.nii.gz", mask(1).astype(np.float32))
    result = check(source)
    told(r"labelsTr/c1\.nii\.gz: mask and scan hold the same voxels", result, fatal=True)
    assert result.errors == 1


def test_a_mask_among_the_scans_is_suspicious(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src")
    put(source / "imagesTr/c4_0000.nii.gz", mask(1) * 255)
    put(source / "imagesTr/c5_0000.nii.gz", scan(5) % 20)
    result = check(source)
    told(r"c4_0000\.nii\.gz: looks like a mask: its only values are 0, 255", result)
    assert len(result.findings) == 1


def test_a_test_case_s_mask_that_no_scan_is_called_as(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src")
    put(source / "imagesTs/t_0000.nii.gz", scan(9))
    put(source / "labelsTs/t_0000.nii.gz", mask(9))
    told(r"labelsTs: masks without a scan in imagesTs are not used: 't_0000'", check(source))


def test_one_folder_is_not_both(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src")
    result = check(source, images=Path("labelsTr"), labels=source / "labelsTr/../labelsTr")
    told("every scan would be its own mask", result, fatal=True)


# Patients


def test_one_patient_in_training_and_test_by_name(tmp_path: Path) -> None:
    names = ["sub-01_ses-1", "sub-02", "sub-02_ses-2", "patient003_frame01", "patient0031", "patient003_frame12"]
    source = nnunet(tmp_path / "src", masks=6, names=lambda number: names[number])
    assert check(source, labelled=4).findings == ()
    result = check(source, labelled=1, development="2:2", test="last:1")
    told("'patient003_frame01' .'development'. and case 'patient003_frame12' .'unlabelled'. are of one patient", result)
    told("'sub-02_ses-2' .'test'. and case 'sub-02' .'unlabelled'. are of one patient", result)
    assert len(result.findings) == 2  # patient0031 is another one


def test_one_patient_by_the_series_own_tag_which_is_not_repeated() -> None:
    lists = {"labelled": ["a", "b"], "unlabelled": ["c"], "development": [], "test": ["d"]}
    found = list(check_patients(lists, {"a": "Doe 17", "b": "X", "c": "Doe 17", "d": "Doe 17"}))
    assert [("'d'" in finding.message, "'a'" in finding.message) for finding in found] == [(True, True)]
    assert "17" not in found[0].message
    anonymised = dict.fromkeys("abcd", "ANON")
    assert list(check_patients(lists, anonymised)) == []


# Where masks lie


def places(number: int, change: Callable[[NDArray[Any]], NDArray[Any]] = lambda array: array) -> dict[str, Place]:
    """Masks of `number` scans, the first of them changed."""
    masks = {f"c{seed}": mask(seed) > 0 for seed in range(number)}
    masks["c0"] = change(masks["c0"])
    found = {case: place(scan(3).astype(np.float32), array) for case, array in masks.items()}
    return {case: one for case, one in found.items() if one}


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mirrored_mask_is_suspicious(axis: int) -> None:
    found = misplaced(places(8, lambda array: np.flip(array, axis)))
    assert list(found) == ["c0"]
    assert f"mirrored along {'xyz'[axis]} " in found["c0"]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shifted_mask_is_suspicious(axis: int) -> None:
    far = SHAPE[axis] // 3 * (-1 if axis == 1 else 1)
    found = misplaced(places(8, lambda array: np.roll(array, far, axis)))
    assert list(found) == ["c0"]
    assert f"along {'xyz'[axis]} " in found["c0"]


def test_masks_that_agree_raise_no_suspicion() -> None:
    assert misplaced(places(8)) == {}
    assert misplaced(places(8, lambda array: np.roll(array, 1, 0))) == {}
    assert misplaced(places(FEWEST - 1, lambda array: np.flip(array, 0))) == {}


def test_an_organ_that_is_alike_on_both_ends_tells_nothing() -> None:
    """Balls in the middle, of other sizes: mirrored, they are themselves."""
    grid = np.indices(SHAPE)
    distance = sum((grid[k] - (SHAPE[k] - 1) / 2) ** 2 for k in range(3))
    balls = {f"c{radius}": place(scan(radius).astype(np.float32), distance < radius**2) for radius in range(2, 8)}
    assert misplaced({case: one for case, one in balls.items() if one}) == {}


def test_a_mirrored_mask_is_told_with_its_file(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src", masks=6)
    put(source / "labelsTr/c2.nii.gz", np.ascontiguousarray(mask(2)[::-1]))
    told(r"labelsTr/c2\.nii\.gz: the mask looks mirrored along x", check(source))
    assert any("mirrored" in warning for warning in prepare(source, tmp_path / "out").warnings)


# Odd ones


def test_an_odd_size_and_an_odd_unit(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src")
    put(source / "imagesTr/c5_0000.nii.gz", np.pad(scan(5), ((0, 0), (0, 3), (0, 0)), mode="edge"))
    put(source / "imagesTr/c4_0000.nii.gz", scan(4), np.diag([0.001, 0.001, 0.001, 1]))
    result = check(source)
    told("'c5': an odd size: shape 20x21x16, where 5 of 6 scans have 20x18 voxels in x and y", result)
    told("'c4': an odd voxel size: 0.001x0.001x0.001 mm", result)
    told(r"c4_0000\.nii\.gz: the scan is 0.02 mm long", result)


def test_scans_that_all_differ_are_not_odd(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src", masks=0)
    for number in range(6):
        put(source / f"imagesTr/c{number}_0000.nii.gz", scan(number)[number:, 2 * number :, number:])
    assert [message for message in messages(check(source), fatal=False) if "odd" in message] == []


def test_ct_without_hounsfield_units(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src", channel_names={"0": "CT"})
    assert check(source).findings == ()
    for number in range(6):
        put(source / f"imagesTr/c{number}_0000.nii.gz", scan(number) + np.int16(1000))
        if number == 3:
            told("channel CT: no value under 0, which others have, in 'c0', 'c1', 'c2' and 1 more,", check(source))
    told("channel CT: no scan has a value under 0", check(source))


def test_a_window_in_hounsfield_units_for_mr(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src")
    told("preset pancreas clips values to -125 to 275.*'MRI'", check(source, preset="pancreas"))
    assert check(source, preset="pancreas", settings={"window": (-500, 500)}).findings == ()
    assert check(source, preset="pancreas", settings={"channels": ("CT",)}).findings == ()
    assert check(source, preset="pancreas", images=Path("imagesTr"), labels=Path("labelsTr")).findings == ()


def test_names_that_some_disks_take_for_one(tmp_path: Path) -> None:
    names = ["case", "CASE", "e\u0301", "\u00e9", "d", "f"]
    result = check(nnunet(tmp_path / "src", names=lambda number: names[number]))
    assert len([message for message in messages(result, fatal=False) if "differ only" in message]) == 2
