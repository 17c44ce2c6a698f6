"""`prepare`: layouts as they are found, splits, checks, plans, and a folder that is whole or not there."""

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import blosc2
import h5py
import nibabel
import nrrd
import numpy as np
import pytest
from numpy.typing import NDArray

from sscl.core.errors import UserError
from sscl.data.layouts import scans_in
from sscl.data.planning import Fingerprint, make_plan, plan_patch
from sscl.data.presets import PRESETS
from sscl.data.split import read_lists, split_from_lists, split_from_options
from sscl.stages.dataset import open_dataset
from sscl.stages.evaluate import evaluate
from sscl.stages.prepare import prepare

SHAPE = (12, 10, 8)
GARBAGE = b"this is no volume"


def scan(seed: int) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(0, 1000, SHAPE).astype(np.int16)


def mask(seed: int, classes: int = 1) -> NDArray[np.uint8]:
    label = np.zeros(SHAPE, np.uint8)
    for value in range(1, classes + 1):
        label[2 + 3 * value : 5 + 3 * value, 3:7, 2 + seed % 4 : 6] = value
    return label


def put(path: Path, array: NDArray[Any], affine: NDArray[Any] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)


def nnunet(root: Path, *, masks: int = 4, scans: int = 6, later: int = 0, classes: int = 1, **over: Any) -> Path:
    for number in range(scans):
        put(root / f"imagesTr/c{number}_0000.nii.gz", scan(number))
        if number < masks:
            put(root / f"labelsTr/c{number}.nii.gz", mask(number, classes))
    for number in range(later):
        put(root / f"imagesTs/t{number}_0000.nii.gz", scan(100 + number))
    labels = {"background": 0} | {f"organ{value}": value for value in range(1, classes + 1)}
    facts = {"name": "made", "channel_names": {"0": "MRI"}, "labels": labels, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps({**facts, **over}))
    return root


def la_benchmark(root: Path, number: int, order: list[int] | None = None) -> Path:
    folder = root / "2018LA_Seg_Training Set"
    for index in range(number):
        (folder / f"P{index:02d}").mkdir(parents=True)
        with h5py.File(folder / f"P{index:02d}/mri_norm2.h5", "w") as file:
            file["image"] = scan(index).astype(np.float32)
            file["label"] = mask(index)
    if order:
        (folder / "train.list").write_text("\n".join(f"P{index:02d}" for index in order) + "\n")
    return root


def stored(out: Path) -> dict[str, NDArray[Any]]:
    files = sorted((out / "store").glob("*.b2nd"))
    return {path.name.removesuffix(".b2nd"): blosc2.open(str(path))[:] for path in files}


def lists(out: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads((out / "split.json").read_text())
    return found


def refused(words: str, source: Path, **options: Any) -> None:
    """Refused with these words, and nothing left behind."""
    out = source.parent / "refused"
    before = sorted(source.parent.iterdir())
    with pytest.raises(UserError, match=words):
        prepare(source, out, **options)
    assert sorted(source.parent.iterdir()) == before


# Layouts


def test_nnunet_folder_scans_without_masks_are_unlabelled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, out = nnunet(tmp_path / "src"), tmp_path / "out"
    with caplog.at_level(logging.INFO, "sscl"):
        result = prepare(source, out)
    assert "4 labelled, 2 unlabelled (no mask needed), 0 development, 0 test, 0 unused" in caplog.text
    assert "labelled: c0, c1, c2, c3" in caplog.messages
    assert lists(out) == {
        "labelled": ["c0", "c1", "c2", "c3"],
        "unlabelled": ["c4", "c5"],
        "development": [],
        "test": [],
    }
    facts = json.loads((out / "dataset.json").read_text())
    assert facts["labels"] == ["background", "organ1"]
    assert facts["channels"] == ["MRI"]
    assert facts["cases"]["c4"] == {"image": ["imagesTr/c4_0000.nii.gz"], "label": None}
    assert facts["cases"]["c0"]["label"] == "labelsTr/c0.nii.gz"
    assert not result.skipped
    store = stored(out)
    assert set(store) == {f"c{number}.image" for number in range(6)} | {f"c{number}.label" for number in range(4)}
    expected = scan(5).astype(np.float64)
    np.testing.assert_allclose(store["c5.image"][0], (expected - expected.mean()) / expected.std(), atol=2e-3)
    np.testing.assert_array_equal(store["c1.label"], mask(1))


def test_opens_with_what_the_later_stages_use(tmp_path: Path) -> None:
    prepare(nnunet(tmp_path / "src"), tmp_path / "out", preset="kits19", settings={"spacing_mm": (1, 1, 1)})
    data = open_dataset(tmp_path / "out")
    assert data.preset == "kits19"
    assert data.image_paths("c0") == [tmp_path / "src/imagesTr/c0_0000.nii.gz"]


def test_masks_of_unlabelled_and_held_out_cases_stay_closed(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src", masks=6)
    for closed in ("labelsTr/c2", "labelsTr/c3", "labelsTr/c4", "labelsTr/c5"):
        (source / f"{closed}.nii.gz").write_bytes(GARBAGE)
    prepare(source, tmp_path / "out", labelled=2, unlabelled=2, development="5:5", test="last:1")
    assert "c2.image" in stored(tmp_path / "out")
    assert "c2.label" not in stored(tmp_path / "out")
    inputs = json.loads((tmp_path / "out/stage.json").read_text())["inputs"]
    assert sorted(inputs) == ["dataset.json"] + [f"imagesTr/c{number}_0000.nii.gz" for number in range(4)] + [
        "labelsTr/c0.nii.gz",
        "labelsTr/c1.nii.gz",
    ]


def test_images_ts_only_when_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = nnunet(tmp_path / "src", masks=3, scans=3, later=2)
    prepare(source, tmp_path / "without")
    assert lists(tmp_path / "without")["unlabelled"] == []
    assert "--unlabelled imagesTs" in caplog.text
    prepare(source, tmp_path / "with", unlabelled="imagesTs")
    assert lists(tmp_path / "with")["unlabelled"] == ["t0", "t1"]
    refused("no scans in imagesTs", nnunet(tmp_path / "none"), unlabelled="imagesTs")


def test_decathlon_names_and_four_dimensional_channels(tmp_path: Path) -> None:
    source = tmp_path / "src"
    for number in range(3):
        put(source / f"imagesTr/case_{number:04d}.nii.gz", np.stack([scan(number), scan(50 + number)], axis=-1))
    put(source / "labelsTr/case_0001.nii.gz", mask(1, 2))
    facts = {"modality": {"0": "T1", "1": "T2"}, "labels": {"0": "background", "1": "front", "2": "back"}, "name": "d"}
    (source / "dataset.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(facts, indent=1).replace("\n", "\r\n").encode())
    result = prepare(source, tmp_path / "out")
    assert result.plan.channels == ("T1", "T2")
    assert result.plan.labels == ("background", "front", "back")
    assert result.split.labelled == ("case_0001",)
    assert result.split.unlabelled == ("case_0000", "case_0002")
    assert stored(tmp_path / "out")["case_0002.image"].shape == (2, *SHAPE)


def test_four_dimensional_files_only_where_channels_are_declared(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src")
    put(source / "imagesTr/c1_0000.nii.gz", np.stack([scan(1), scan(2)], axis=-1))
    refused("c1_0000.*2 channels", source)
    put(source / "imagesTr/c1_0000.nii.gz", scan(1)[..., None])
    prepare(source, tmp_path / "out")


def test_two_folders_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tmp_path / "src"
    for number in range(3):
        put(source / f"images/s{number}.nii.gz", scan(number))
    put(source / "images/.DS_Store.nii", scan(9))
    (source / "images/Thumbs.db").write_bytes(b"x")
    (source / "images/notes.txt").write_text("notes")
    put(source / "masks/s1.nii", mask(1, 2))
    (source / "splits_final.json").write_text("[]")
    with caplog.at_level(logging.INFO, "sscl"):
        result = prepare(source, tmp_path / "out")
    assert f"{source / 'splits_final.json'} is used only where --split names it." in caplog.messages
    assert result.split.labelled == ("s1",)
    assert result.split.unlabelled == ("s0", "s2")
    assert result.plan.labels == ("background", "label_1", "label_2")
    named = prepare(
        source,
        tmp_path / "named",
        images=Path("images"),
        labels=source / "masks",
        settings={"labels": ("background", "kidney", "tumour"), "channels": "CT"},
    )
    assert named.plan.labels == ("background", "kidney", "tumour")
    inside = scan(1)[mask(1, 2) > 0]
    assert named.plan.intensity.window == pytest.approx(np.percentile(inside, (0.5, 99.5)), abs=1e-3)


def test_two_folders_with_channel_suffix(tmp_path: Path) -> None:
    for number in range(2):
        for channel in range(2):
            put(tmp_path / f"src/images/s{number}_{channel:04d}.nii.gz", scan(10 * number + channel))
    put(tmp_path / "src/labels/s0.nii.gz", mask(0))
    result = prepare(tmp_path / "src", tmp_path / "out")
    assert result.split.unlabelled == ("s1",)
    assert len(result.plan.channels) == 2
    (tmp_path / "src/labels/s0.nii.gz").rename(tmp_path / "src/labels/s0_0000.nii.gz")
    told = prepare(tmp_path / "src", tmp_path / "scans").warnings
    assert "s0_0000 and s0_0001 are taken for two scans" in told[0]
    (tmp_path / "src/labels/s0_0000.nii.gz").rename(tmp_path / "src/labels/s0.nii.gz")
    (tmp_path / "src/images/s1_0001.nii.gz").unlink()
    refused("s1.*has 1 channel", tmp_path / "src")


def test_la_benchmark_keeps_the_order_of_its_list(tmp_path: Path) -> None:
    source = la_benchmark(tmp_path / "src", 5, order=[3, 1, 4, 0])
    with h5py.File(source / "2018LA_Seg_Training Set/P04/mri_norm2.h5", "a") as file:
        del file["label"]  # an unlabelled case needs none
    result = prepare(source, tmp_path / "out", preset="la-quick", labelled=2, unlabelled=1, test="4:4")
    assert result.split.labelled == ("P03", "P01")
    assert result.split.unlabelled == ("P04",)
    assert result.split.test == ("P00",)
    assert result.plan.labels == ("background", "left_atrium")
    assert result.plan.patch == (48, 48, 32)
    assert stored(tmp_path / "out")["P03.label"].shape == (8, 7, 5)  # 12x10x8 at 1.25 mm, on 1.875 mm
    case = json.loads((tmp_path / "out/dataset.json").read_text())["cases"]["P03"]
    assert case["image"] == [case["label"]] == ["2018LA_Seg_Training Set/P03/mri_norm2.h5"]


def test_la_benchmark_test_list_is_held_out(tmp_path: Path) -> None:
    source = la_benchmark(tmp_path / "src", 5, order=[2, 1, 0])
    (source / "test.list").write_text("P04\r\nP03\r\n")
    result = prepare(source, tmp_path / "out", preset="la-quick", labelled=1)
    assert result.split.test == ("P04", "P03")
    assert result.split.unlabelled == ("P01", "P00")
    (source / "test.list").write_text("P01\n")
    refused("P01.*both train.list and test.list", source, preset="la-quick")
    (source / "test.list").write_text("P77\n")
    refused("test.list: case 'P77'", source, preset="la-quick")


def test_files_without_voxel_size_need_one(tmp_path: Path) -> None:
    refused("mri_norm2.h5.*spacing", la_benchmark(tmp_path / "src", 2))


def test_an_assumed_voxel_size_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = la_benchmark(tmp_path / "src", 2)
    with caplog.at_level(logging.INFO, "sscl"):
        prepare(source, tmp_path / "preset", preset="la-quick")
        prepare(source, tmp_path / "own", preset="la-quick", settings={"spacing_if_missing_mm": (1, 1, 2)})
        prepare(nnunet(tmp_path / "nifti"), tmp_path / "nifti_out", preset="la-quick")
    told = [record.message for record in caplog.records if "no voxel size" in record.message]
    assert told == [
        "mri_norm2.h5 holds no voxel size: taken as 1.25 x 1.25 x 1.25 mm (preset la-quick)",
        "mri_norm2.h5 holds no voxel size: taken as 1 x 1 x 2 mm (--set spacing_if_missing_mm)",
    ]


@pytest.mark.parametrize(
    ("preset", "shape", "words"),
    [
        ("la-quick", (122, 71, 4), None),
        ("la-quick", (100, 131, 4), "100 x 131 .*more than 130.*full resolution.*missing_mm=0.625,0.625,0.625"),
        ("la", (111, 90, 4), "111 x 90 .*fewer than 112.*half resolution.*missing_mm=1.25,1.25,1.25"),
        ("la", (112, 90, 4), None),
    ],
)
def test_a_voxel_size_that_the_files_belie(
    tmp_path: Path, preset: str, shape: tuple[int, int, int], words: str | None
) -> None:
    source = la_benchmark(tmp_path / "src", 2)
    for file in source.rglob("*.h5"):
        with h5py.File(file, "w") as made:
            made["image"] = np.random.default_rng(len(str(file))).normal(size=shape).astype(np.float32)
            made["label"] = np.indices(shape)[0].astype(np.uint8) % 2
    warnings = [text for text in prepare(source, tmp_path / "out", preset=preset).warnings if "resolution" in text]
    assert len(warnings) == (1 if words else 0)
    assert not words or re.search(f"mri_norm2.h5: {words}", warnings[0])
    own = prepare(source, tmp_path / "own", preset=preset, settings={"spacing_if_missing_mm": (1, 1, 1)})
    assert not [text for text in own.warnings if "resolution" in text]


def test_the_mask_beside_an_unlabelled_scan_is_not_even_hashed(tmp_path: Path) -> None:
    """Another mask in the same file changes nothing; another image does, and so does a labelled case's mask."""
    source, out = la_benchmark(tmp_path / "src", 3, order=[0, 1, 2]), tmp_path / "out"

    def change(case: str, part: str, array: NDArray[Any]) -> None:
        with h5py.File(source / f"2018LA_Seg_Training Set/{case}/mri_norm2.h5", "a") as file:
            del file[part]
            file[part] = array

    prepare(source, out, preset="la-quick", labelled=1)
    inputs = json.loads((out / "stage.json").read_text())["inputs"]
    assert sorted(name.rsplit("/", 1)[-1] for name in inputs) == [
        *["mri_norm2.h5:image"] * 3,
        "mri_norm2.h5:label",
        "train.list",
    ]
    change("P01", "label", mask(1) * 0)
    assert prepare(source, out, preset="la-quick", labelled=1).skipped
    change("P00", "label", mask(1))
    with pytest.raises(UserError, match="other files"):
        prepare(source, out, preset="la-quick", labelled=1)
    change("P00", "label", mask(0))
    change("P01", "image", scan(7).astype(np.float32))
    with pytest.raises(UserError, match="other files"):
        prepare(source, out, preset="la-quick", labelled=1)


def test_a_copy_is_found_beside_whatever_mask(tmp_path: Path) -> None:
    source = la_benchmark(tmp_path / "src", 3)
    with h5py.File(source / "2018LA_Seg_Training Set/P02/mri_norm2.h5", "a") as file:
        file["image"][:] = scan(0)
    refused("P02.*identical to case 'P00'.*leak", source, preset="la-quick", labelled=1)


def test_kits19_counts_the_tumour_as_kidney(tmp_path: Path) -> None:
    """Evaluation reads the reference masks through the same map."""
    source = nnunet(tmp_path / "src", classes=2)
    settings = {"spacing_mm": (1, 1, 1)}
    plan = prepare(source, tmp_path / "out", preset="kits19", settings=settings).plan
    assert plan.labels == ("background", "kidney")
    np.testing.assert_array_equal(stored(tmp_path / "out")["c1.label"], np.minimum(mask(1, 2), 1))
    facts = json.loads((tmp_path / "out/dataset.json").read_text())
    assert (facts["labels"], facts["label_map"]) == (["background", "kidney"], {"2": 1})
    for case in ("c0", "c1"):
        put(tmp_path / f"predicted/{case}.nii.gz", np.minimum(mask(int(case[1]), 2), 1))
    scores = evaluate(tmp_path / "predicted", tmp_path / "out", split="labelled").scores
    assert [score.values["dice"] for score in scores if score.case in ("c0", "c1")] == [1, 1]
    settings["labels"] = ("background", "kidney", "tumour")  # both, as the user wants
    prepare(source, tmp_path / "apart", preset="kits19", settings=settings)
    np.testing.assert_array_equal(stored(tmp_path / "apart")["c1.label"], mask(1, 2))


def test_la_challenge_255_is_the_atrium(tmp_path: Path) -> None:
    source = tmp_path / "src"
    for number in range(3):
        (source / f"P{number}").mkdir(parents=True)
        nrrd.write(
            str(source / f"P{number}/lgemri.nrrd"), scan(number), {"space directions": np.eye(3), "space": "RAS"}
        )
        nrrd.write(
            str(source / f"P{number}/laendo.nrrd"), mask(number) * 255, {"space directions": np.eye(3), "space": "RAS"}
        )
    prepare(source, tmp_path / "all")
    np.testing.assert_array_equal(stored(tmp_path / "all")["P2.label"], mask(2))
    assert json.loads((tmp_path / "all/dataset.json").read_text())["label_map"] == {"255": 1}
    (source / "P1/laendo.nrrd").unlink()
    refused("P1: the label .laendo.nrrd. is missing", source)
    prepare(source, tmp_path / "one", labelled=1)
    assert lists(tmp_path / "one")["unlabelled"] == ["P1", "P2"]
    refused("missing for 'P1'.*labelled", source, labelled=2)


def test_the_labelled_cases_are_named_in_the_order_of_the_list(
    tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sscl")
    monkeypatch.setattr("sscl.stages.assign.NAMED", 2)
    prepare(la_benchmark(tmp_path / "src", 5, order=[3, 1, 4, 0]), tmp_path / "out", preset="la", labelled=3)
    assert "labelled: P03, P01, ... (3)" in caplog.messages


def test_unknown_folder_names_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    refused("no known layout.*imagesTr.*mri_norm2.h5.*--images", tmp_path / "src")
    refused("is not a folder", tmp_path / "nowhere")


def test_scans_to_predict_on(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src", scans=2)
    assert list(scans_in(source / "imagesTr", 1)) == ["c0", "c1"]
    assert list(scans_in(source / "imagesTr/c1_0000.nii.gz", 1)) == ["c1"]
    put(source / "imagesTr/c2_0001.nii.gz", scan(2))
    assert list(scans_in(source / "imagesTr", 1)) == ["c0_0000", "c1_0000", "c2_0001"]
    folder = la_benchmark(tmp_path / "la", 2) / "2018LA_Seg_Training Set"
    assert list(scans_in(folder, 1)) == ["P00", "P01"]
    whole = rf"is a whole data set.*{source / 'imagesTs'} or {source / 'imagesTr'}"
    (source / "imagesTs").mkdir()
    with pytest.raises(UserError, match=whole):
        scans_in(source, 1)
    (tmp_path / "void").mkdir()
    with pytest.raises(UserError, match="no scan"):
        scans_in(tmp_path / "void", 1)


def test_a_scan_in_its_patient_s_folder_is_called_as_prepare_calls_it(tmp_path: Path, monkeypatch: Any) -> None:
    folder = la_benchmark(tmp_path / "la", 2) / "2018LA_Seg_Training Set"
    file = folder / "P01/mri_norm2.h5"
    assert scans_in(file, 1) == scans_in(folder / "P01", 1) == {"P01": (file,)}
    monkeypatch.chdir(folder / "P01")
    assert list(scans_in(Path("mri_norm2.h5"), 1)) == list(scans_in(Path(), 1)) == ["P01"]
    (folder / "P02").mkdir()
    (folder / "P02/mri_norm2.h5").symlink_to(file)
    assert list(scans_in(folder / "P02/mri_norm2.h5", 1)) == ["P02"]
    challenge = tmp_path / "challenge/P3"
    challenge.mkdir(parents=True)
    for name in ("lgemri.nrrd", "laendo.nrrd"):
        (challenge / name).touch()
    assert scans_in(challenge, 1) == {"P3": (challenge / "lgemri.nrrd",)}
    (challenge / "other.nii.gz").touch()
    assert list(scans_in(challenge, 1)) == ["laendo", "lgemri", "other"]  # whatever lies there: none is passed over


# What dataset.json may say


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"background": 0, "whole": [1, 2], "core": 2}, "'whole'.*regions are not supported"),
        ({"background": 0, "a": 2}, "without a gap"),
        ({"background": 0, "a": 1, "b": 1}, "'a' and 'b' have one value"),
        ({"0": "background", "1": "a", "2": "a"}, "two labels are called 'a'"),
        ({"a": 0, "background": 1}, "'background' is 1, but the background is always 0"),
        ({"background": 0, "a": "one"}, "'a' is 'one'"),
        ({"background": 0, "a": "\u00b2"}, "'a' is '\u00b2'"),
        ({f"c{value}": value for value in range(128)}, "128 labels; at most 127"),
        ({}, "labels is missing"),
    ],
)
def test_labels_that_cannot_be_used(tmp_path: Path, labels: Mapping[str, Any], words: str) -> None:
    refused(words, nnunet(tmp_path / "src", labels=labels))


def test_ignore_label_is_kept_apart(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src", classes=2, labels={"background": 0, "organ": 1, "ignore": 2})
    label = mask(0)
    label[0] = 2
    put(source / "labelsTr/c0.nii.gz", label)
    result = prepare(source, tmp_path / "out")
    assert result.plan.labels == ("background", "organ")
    assert result.plan.ignore_label == 2
    kept = stored(tmp_path / "out")["c0.label"]
    assert (kept[0] == -1).all()
    np.testing.assert_array_equal(kept[1:], mask(0)[1:])


def test_damaged_json_names_its_line(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src")
    (source / "dataset.json").write_text('{"labels": {},\n}')
    refused("dataset.json.*line 2", source)


# Names


def test_names_that_contradict_each_other(tmp_path: Path) -> None:
    def changed(name: str) -> Path:
        return nnunet(tmp_path / name / "src")

    source = changed("twin")
    put(source / "imagesTr/c1_0000.nii", scan(1))
    refused("duplicate.*c1", source)
    source = changed("orphan")
    put(source / "labelsTr/c9.nii.gz", mask(0))
    refused("labelsTr/c9.nii.gz: a mask without an image", source)
    source = changed("accents")
    (source / "labelsTr/c1.nii.gz").rename(source / "labelsTr/e\u0301.nii.gz")
    (source / "imagesTr/c1_0000.nii.gz").rename(source / "imagesTr/\u00e9_0000.nii.gz")
    refused("If '\u00e9' is its scan, give both one name. They look alike, but accents", source)
    source = changed("suffix")
    (source / "imagesTr/c1_0000.nii.gz").rename(source / "imagesTr/c1.nii.gz")
    refused("imagesTr/c1.nii.gz.*c1_0000", source)
    source = changed("gap")
    put(source / "imagesTr/c1_0002.nii.gz", scan(1))
    refused("'c1' has the channels _0000, _0002", source)
    source = changed("link")
    (source / "imagesTr/c8_0000.nii.gz").symlink_to("gone")
    refused("c8_0000.nii.gz.*link", source)
    source = changed("folder")
    (source / "imagesTr/c8_0000.nii.gz").mkdir()
    refused("c8_0000.nii.gz.*folder", source)
    source = changed("kind")
    (source / "imagesTr/c8_0000.mha").write_bytes(b"x")
    refused("c8_0000.mha.*known kind", source)
    source = changed("sign")
    (source / "imagesTr/c1_0000.nii.gz").rename(source / "imagesTr/c\n1_0000.nii.gz")
    refused(r"imagesTr: the name 'c\\n1_0000.nii.gz' holds control characters", source)
    source = changed("bytes")
    (source / "imagesTr/c1_0000.nii.gz").rename(source / "imagesTr" / os.fsdecode(b"c\xe9_0000.nii.gz"))
    refused(r"imagesTr: the name 'c\\udce9_0000.nii.gz' holds .*bytes that are no text", source)
    source = changed("empty")
    shutil.rmtree(source / "imagesTr")
    (source / "imagesTr").mkdir()
    refused("imagesTr: the folder is empty", source)


# Promised masks


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    put(tmp_path / f"src/images/{'y' * 229}.nii.gz", scan(0))
    put(tmp_path / f"src/labels/{'y' * 229}.nii.gz", mask(0))
    prepare(tmp_path / "src", tmp_path / "out")
    put(tmp_path / f"src/images/{'y' * 230}.nii.gz", scan(1))
    refused("case 'y{230}': the name has 230 bytes.*Rename its files", tmp_path / "src")


def test_num_training_promises_masks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = nnunet(tmp_path / "src", masks=4, scans=5, numTraining=5)
    refused("numTraining promises 5 masks, 4 are there.*'c4'", source)
    prepare(source, tmp_path / "out", labelled=2)
    assert "numTraining promises 5" in caplog.text
    refused("numTraining is 7, but imagesTr holds 6", nnunet(tmp_path / "b" / "src", numTraining=7), labelled=2)
    prepare(nnunet(tmp_path / "c" / "src", numTraining=4), tmp_path / "c" / "out")


def test_pairs_that_dataset_json_states(tmp_path: Path) -> None:
    def warnings(**stated: Any) -> tuple[str, ...]:
        nnunet(source, scans=4, **stated)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        return tuple(text for text in prepare(source, tmp_path / "out").warnings if "dataset.json" in text)

    def pair(image: int, label: int) -> dict[str, str]:
        return {"image": f"./imagesTr/c{image}.nii.gz", "label": f"./labelsTr/c{label}.nii.gz"}

    source = tmp_path / "src"
    assert warnings(training=[pair(number, number) for number in range(4)]) == ()
    (more,) = warnings(training=[pair(0, 0), pair(1, 1), pair(3, 3)])
    assert "does not list 'c2'" in more
    (gone,) = warnings(training=[pair(number, number) for number in range(5)])
    assert "not there: 'c4'" in gone
    dataset = {"a": {"images": ["imagesTr/c1_0000.nii.gz"], "label": "labelsTr\\c2.nii.gz"}}
    refused("the mask of 'c1_0000' is 'c2' there, but 'c1' by its name", nnunet(source, dataset=dataset))
    assert warnings(training=[3, {"image": {}, "label": 1}, {"images": []}], dataset=[]) == ()


def test_number_of_labelled_promises_masks(tmp_path: Path) -> None:
    refused("4 of the cases left have a mask", nnunet(tmp_path / "src"), labelled=5)
    refused("missing for 'c4'.*as labelled", nnunet(tmp_path / "src"), labelled="1:5")
    refused("missing for 'c4', 'c5'.*as development", nnunet(tmp_path / "src"), labelled=2, development="last:2")
    prepare(nnunet(tmp_path / "src"), tmp_path / "out", labelled=2, test="last:2")  # to be predicted only
    refused("no labelled case", nnunet(tmp_path / "b" / "src", masks=0))


def test_split_file_promises_masks(tmp_path: Path) -> None:
    source, file = nnunet(tmp_path / "src"), tmp_path / "split.json"
    file.write_text(json.dumps({"labelled": ["c0"], "development": ["c5"]}))
    refused("missing for 'c5'.*development", source, split_file=file)
    file.write_text(json.dumps({"labelled": ["c3", "c0"], "unlabelled": ["c1", "c5"], "development": ["c2"]}))
    (source / "labelsTr/c1.nii.gz").write_bytes(GARBAGE)
    prepare(source, tmp_path / "out", split_file=file)
    assert lists(tmp_path / "out") == json.loads(file.read_text()) | {"test": []}
    refused("Leave out --test", source, split_file=file, test="last:1")


def test_nnunet_splits_beside_the_scans(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = nnunet(tmp_path / "src", masks=5, later=1)
    folds = [{"train": ["c0", "c1"], "val": ["c2"]}, {"train": ["c3"], "val": ["c0"]}]
    (source / "splits_final.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(folds).encode())
    prepare(source, tmp_path / "out")
    assert lists(tmp_path / "out") == {
        "labelled": ["c0", "c1"],
        "unlabelled": ["c5"],
        "development": ["c2"],
        "test": [],
    }
    prepare(source, tmp_path / "own", labelled=1)
    assert "splits_final.json is not used" in caplog.text
    assert lists(tmp_path / "own")["development"] == []
    folds[0]["unlabelled"] = ["t0"]
    (source / "splits_final.json").write_text(json.dumps(folds))
    prepare(source, tmp_path / "later")
    assert lists(tmp_path / "later")["unlabelled"] == ["t0"]


# Splits


ORDER = [f"p{number}" for number in range(1, 196)]


def test_the_splits_of_the_literature() -> None:
    la = split_from_options(ORDER[:80], ORDER, ORDER, labelled=8, unlabelled=42, development="51:60", test="61:80")
    assert la.labelled == tuple(ORDER[:8])
    assert la.unlabelled == tuple(ORDER[8:50])
    assert la.development == tuple(ORDER[50:60])
    assert la.test == tuple(ORDER[60:80])
    hippocampus = split_from_options(
        ORDER, ORDER, ORDER, labelled=8, unlabelled="9:130", development="131:150", test="last:45"
    )
    assert hippocampus.unlabelled == tuple(ORDER[8:130])
    assert hippocampus.test == tuple(ORDER[150:])


def test_numbers_count_what_ranges_leave() -> None:
    split = split_from_options(ORDER[:6], ORDER, ORDER[:5], labelled=2, test="first:2")
    assert split.labelled == ("p3", "p4")
    assert split.unlabelled == ("p5", "p6")
    split = split_from_options(ORDER[:6], ORDER, ORDER[:5], test="5:5")
    assert split.labelled == ("p1", "p2", "p3", "p4")
    assert split.unlabelled == ("p6",)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"test": "8"}, "--test 8: expected.*last:8"),
        ({"test": "imagesTs"}, "--test imagesTs: expected"),
        ({"test": "0:3"}, "positions 1 to 6"),
        ({"test": "last:7"}, "there are 6 cases"),
        ({"test": "4:3"}, "positions 1 to 6"),
        ({"labelled": 7}, "6 of the cases left have a mask"),
        ({"labelled": -1}, "cases are left"),
        ({"labelled": 0}, "no labelled case"),
        ({"test": "3:5", "development": "first:3"}, "'p3' is in both.*leak"),
    ],
)
def test_splits_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        split_from_options(ORDER[:6], ORDER[:6], ORDER[:6], **options)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"labelled": ["p1", "p9"]}, "'p9'.*unknown"),
        ({"labelled": ["p1"], "test": ["p1"]}, "'p1' is in both 'labelled' and 'test'"),
        ({"labelled": ["p1", "p1"]}, "twice in 'labelled'"),
        ({"labeled": ["p1"]}, "Did you mean 'labelled'"),
        ({"labelled": "p1"}, "must be a list"),
        ([{"train": ["p1"], "valid": []}], "'valid' is unknown. Did you mean 'val'"),
        ("p1", "expected an object"),
    ],
)
def test_split_files_that_cannot_be(tmp_path: Path, content: Any, words: str) -> None:
    file = tmp_path / "split.json"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=words):
        split_from_lists(read_lists(file), ORDER[:6], ORDER[:6], ORDER[:6], str(file))


# Scans and masks


def shifted(distance: float) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[0, 3] = distance
    return affine


@pytest.mark.parametrize(
    ("label", "affine", "words"),
    [
        (mask(1)[:, :, :-1], np.eye(4), "c1.nii.gz.*shape is 12x10x7, the scan's 12x10x8"),
        (mask(1), shifted(10), "c1.nii.gz.*origin .10 mm apart"),
        (mask(1), np.diag([1.0, 1, 2, 1]), "c1.nii.gz.*spacing .1x1x2 mm"),
        (mask(1) * 4, np.eye(4), "c1.nii.gz.*value 4.*declares 0 background, 1 organ1"),
        (mask(1) * 255, np.eye(4), "c1.nii.gz.*0 and 255.*Replace 255 by 1"),
        (mask(1) * np.float32(0.5), np.eye(4), "c1.nii.gz.*not integers"),
        (scan(1), np.eye(4), "c1.nii.gz.*label value"),
    ],
)
def test_masks_that_do_not_fit(tmp_path: Path, label: NDArray[Any], affine: NDArray[Any], words: str) -> None:
    source = nnunet(tmp_path / "src")
    put(source / "labelsTr/c1.nii.gz", label, affine)
    refused(words, source)


def test_one_physical_grid_in_another_axis_order_is_the_same(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src")
    turned = nibabel.load(source / "labelsTr/c1.nii.gz").as_reoriented(np.array([[2, 1], [0, -1], [1, -1]]))
    nibabel.save(turned, source / "labelsTr/c1.nii.gz")
    prepare(source, tmp_path / "out")
    np.testing.assert_array_equal(stored(tmp_path / "out")["c1.label"], mask(1))


def test_undeclared_values(tmp_path: Path) -> None:
    for value, words in ((255, "0 and 255.*Replace 255"), (3, "values 0, 3; expected 0, 1, 2"), (0, "all are empty")):
        source = tmp_path / str(value) / "src"
        put(source / "images/a.nii.gz", scan(1))
        put(source / "labels/a.nii.gz", mask(1) * np.uint8(value))
        refused(words, source)


def test_empty_masks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = nnunet(tmp_path / "src", classes=2)
    put(source / "labelsTr/c1.nii.gz", mask(1) * 0)
    result = prepare(source, tmp_path / "out")
    assert [warning for warning in result.warnings if "c1.nii.gz: the mask is empty" in warning]
    for number in range(4):
        put(source / f"labelsTr/c{number}.nii.gz", mask(number))
    result = prepare(source, tmp_path / "one")
    assert [warning for warning in result.warnings if "'organ2' is in none" in warning]
    assert json.loads((tmp_path / "one/stage.json").read_text())["warnings"] == list(result.warnings)
    for number in range(4):
        put(source / f"labelsTr/c{number}.nii.gz", mask(number) * 0)
    refused("labelsTr: no foreground in any labelled mask", source)


def test_scans_that_hold_nothing(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src")
    put(source / "imagesTr/c5_0000.nii.gz", np.full(SHAPE, 7, np.int16))
    refused("c5_0000.nii.gz.*constant", source)
    bad = scan(5).astype(np.float32)
    bad[1, 2, 3] = np.nan
    put(source / "imagesTr/c5_0000.nii.gz", bad)
    refused("c5_0000.nii.gz.*NaN", source)
    bad[1, 2, 3] = 1e30
    put(source / "imagesTr/c5_0000.nii.gz", bad)
    result = prepare(source, tmp_path / "out")
    assert ["outlier" in warning for warning in result.warnings] == [True]


@pytest.mark.parametrize("settings", [{}, {"spacing_mm": (0.001, 0.001, 0.001)}])
def test_scans_that_memory_cannot_hold(tmp_path: Path, settings: dict[str, Any]) -> None:
    source = nnunet(tmp_path / "src")
    for path in ("imagesTr/c3_0000", "labelsTr/c3"):
        put(source / f"{path}.nii.gz", scan(3) if "images" in path else mask(3), np.diag([1000.0, 1000, 1000, 1]))
    refused(rf"{'c0' if settings else 'c3'}_0000.nii.gz: resampled from .*GB of memory", source, settings=settings)


def test_one_file_in_two_lists_is_a_leak(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src", masks=6)
    shutil.copy(source / "imagesTr/c5_0000.nii.gz", source / "imagesTr/c1_0000.nii.gz")
    refused("c5_0000.nii.gz: identical to case 'c1'.*'test' and 'unlabelled'", source, labelled=1, test="last:1")
    result = prepare(source, tmp_path / "out")
    assert [
        warning for warning in result.warnings if "identical to case 'c1': a duplicate within 'labelled'" in warning
    ]


# Plans


def case(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], *inside: float) -> Fingerprint:
    return Fingerprint(shape, spacing_mm, np.array(inside, np.float32))


def test_plan_patch_covers_the_median_scan() -> None:
    assert plan_patch((35, 50, 36), (1, 1, 1), 10) == (48, 48, 48)  # 50 is within 1/16 of 48
    assert plan_patch((35, 52, 36), (1, 1, 1), 10) == (48, 64, 48)
    assert plan_patch((5, 16, 17), (1, 1, 1), 10) == (16, 16, 16)
    assert plan_patch((512, 512, 30), (0.8, 0.8, 5), 10) == (128, 128, 32)
    assert plan_patch((512, 512, 512), (1, 1, 1), 1000) == (128, 128, 128)


def test_plan_patch_fits_the_memory() -> None:
    for memory_gb in (0.001, 0.1, 1, 5):
        patch = plan_patch((400, 300, 60), (0.7, 0.7, 3), memory_gb)
        assert all(size % 16 == 0 and size >= 16 for size in patch)
        assert np.prod(patch) <= max(memory_gb * 1e5, 16**3)
    assert plan_patch((128, 128, 128), (1, 1, 2), 15) == (128, 128, 80)  # the longest axis in mm gives first


def test_plan_from_labelled_cases() -> None:
    cases = [case((30, 30, 20), (1, 1, 2)), case((40, 40, 30), (2, 2, 4)), case((20, 20, 10), (1, 1.5, 3))]
    plan = make_plan(["MRI"], ["background", "a"], None, cases, {}, 10)
    assert plan.spacing_mm == (1, 1.5, 3)
    # sizes in voxels of 1x1.5x3 mm: 30x20x13.3, 80x53.3x40, 20x20x10
    assert plan.patch == (32, 32, 16)
    assert plan.stride == (16, 16, 8)
    assert plan.intensity.window is None
    assert plan.foreground_share == pytest.approx(1 / 3)
    plan = make_plan(["ct"], ["background", "a"], None, [case((30, 30, 20), (1, 1, 1), *range(201))], {}, 10)
    assert plan.intensity.window == (1, 199)


@pytest.mark.parametrize(
    ("classes", "sides"),
    [
        (["left_kidney", "right_kidney", "spleen"], True),
        (["RightLung", "LeftLung"], True),
        (["hippocampus-L", "hippocampus-R"], True),
        (["kidney_left"], False),
        (["left atrium", "right ventricle"], False),
        (["kidney 1", "kidney 2"], False),
        (["Anterior", "Posterior"], False),
    ],
)
def test_where_names_tell_left_from_right_crops_are_not_mirrored_so(classes: list[str], sides: bool) -> None:
    plan = make_plan(["MRI"], ["background", *classes], None, [case((30, 30, 20), (1, 1, 2))], {}, 10)
    assert (plan.rotate, plan.flip) == ((False, "y") if sides else (True, True))
    fixed = make_plan(["MRI"], plan.labels, None, [case((30, 30, 20), (1, 1, 2))], {"flip": True, "rotate": True}, 10)
    assert (fixed.flip, fixed.rotate) == (True, True)


def test_that_a_mirror_exchanges_left_and_right_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = nnunet(tmp_path / "src", classes=2, labels={"background": 0, "left": 1, "right": 2})
    with caplog.at_level("INFO", "sscl"):
        assert prepare(source, tmp_path / "out").warnings == ()
    assert "not mirrored along x: class names tell left from right" in caplog.text
    (told,) = prepare(source, tmp_path / "both", settings={"flip": True}).warnings
    assert "exchanges left and right, and class names tell them apart (left, right)" in told


def test_a_window_that_is_made_for_other_intensities_is_told(tmp_path: Path) -> None:
    """In Hounsfield units, on scans whose intensities go to 1000."""
    preset = {"preset": "pancreas", "settings": {"spacing_mm": (1, 1, 1), "patch": (16, 16, 16)}}

    def told(source: Path, out: Path) -> list[str]:
        return [text for text in prepare(source, out, **preset).warnings if text.startswith("the window")]

    (text,) = told(nnunet(tmp_path / "src"), tmp_path / "out")
    assert re.match(r"the window from -125 to 275 clips 7\d % of the voxels in the labelled organs.*\(MRI\)", text)
    other = nnunet(tmp_path / "other")
    for file in (other / "imagesTr").iterdir():
        put(file, np.asarray(nibabel.load(file).dataobj) // 3 - 100)
    assert told(other, tmp_path / "fits") == []


def test_a_class_that_resampling_leaves_nothing_of_is_told(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src", classes=2)
    small = mask(3)
    small[8, 4:6, 4] = 2
    for path, array in (("imagesTr/c3_0000", scan(3)), ("labelsTr/c3", small)):
        put(source / f"{path}.nii.gz", array, np.diag([0.3, 0.3, 0.3, 1]))
    (told,) = (text for text in prepare(source, tmp_path / "out").warnings if "too small" in text)
    assert re.search(r"c3.nii.gz: class 'organ2' .* its 2 voxels of 0.3x0.3x0.3 mm become 0 of 1x1x1 mm", told)
    assert set(np.unique(stored(tmp_path / "out")["c3.label"])) == {0, 1}


def test_every_value_can_be_set(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src")
    settings = {"patch": (32, 16, 16), "window": (0, 500), "spacing_mm": (1, 1, 2), "flip": False, "memory_gb": 1}
    plan = prepare(source, tmp_path / "out", preset="pancreas", settings=settings).plan
    assert plan.patch == (32, 16, 16)
    assert plan.stride == (16, 16, 16)
    assert plan.intensity.window == (0, 500)
    assert plan.intensity.scaling == "zscore"
    assert plan.spacing_mm == (1, 1, 2)
    assert not plan.flip
    assert not plan.rotate
    assert plan.foreground_share == 0  # the preset's, as its protocol has it
    plan = prepare(source, tmp_path / "auto", settings={"patch": (32, 16, 64)}).plan
    assert plan.stride == (16, 8, 32)
    assert plan.foreground_share == pytest.approx(1 / 3)  # a patch of one's own does not change where organs lie
    assert prepare(source, tmp_path / "none", settings={"foreground_share": 0.0}).plan.foreground_share == 0
    refused("setting 'strid'.*Did you mean 'stride'", source, settings={"strid": (1, 1, 1)})
    refused("patch.*divisible by 16", source, settings={"patch": (40, 40, 40)})
    refused("patch.*divisible by 16", source, settings={"patch": 48})
    refused("window = 275,-125: expected the lower value first", source, settings={"window": (275, -125)})
    refused("plan: spacing_mm = 'abc'", source, settings={"spacing_mm": "abc"})
    refused("plan: labels.*a name of its own", source, settings={"labels": ("background", "a", "a")})
    refused("plan: labels.*the background first", source, settings={"labels": ("a", "background")})
    refused("plan: memory_gb = 'lots'", source, settings={"memory_gb": "lots"})
    refused("stride.*longer than the patch", source, settings={"patch": (32, 32, 32), "stride": (33, 16, 16)})
    refused("plan: spacing_mm", source, settings={"spacing_mm": (0, 1, 1), "patch": (32, 32, 32)})
    refused("preset 'la-quik' is unknown. Did you mean 'la-quick'", source, preset="la-quik")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_make_plans(name: str) -> None:
    cases = [case((100, 100, 60), (1, 1, 1), 1, 2, 3)]
    plan = make_plan(["CT"], ["background", "a"], None, cases, PRESETS[name].plan, 10)
    assert all(size % 16 == 0 for size in plan.patch)
    assert plan.foreground_share == 0


def test_plan_looks_at_labelled_cases_only(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src", masks=2)
    for number in range(2, 6):
        put(source / f"imagesTr/c{number}_0000.nii.gz", scan(number), np.diag([3.0, 3, 3, 1]))
    assert prepare(source, tmp_path / "out").plan.spacing_mm == (1, 1, 1)


# The folder


def test_a_second_time_changes_nothing(tmp_path: Path) -> None:
    source, out = nnunet(tmp_path / "src"), tmp_path / "out"
    first = prepare(source, out, labelled=2)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    second = prepare(source, out, labelled=2)
    assert second.skipped
    assert (second.plan, second.split, second.warnings) == (first.plan, first.split, first.warnings)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(UserError, match="other settings"):
        prepare(source, out, labelled=1)
    put(source / "imagesTr/c3_0000.nii.gz", scan(77))
    with pytest.raises(UserError, match="other files"):
        prepare(source, out, labelled=2)
    put(source / "imagesTr/c3_0000.nii.gz", scan(3))
    (out / "store/c3.image.b2nd").unlink()
    with pytest.raises(UserError, match="'c3' is gone"):
        prepare(source, out, labelled=2)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.json")}.items() <= before.items()


def test_nothing_of_others_is_overwritten(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src")
    with pytest.raises(UserError, match="lies in the source folder"):
        prepare(source, source / "out")
    folders = {"images": source / "imagesTr", "labels": source / "labelsTr"}
    with pytest.raises(UserError, match=r"lies in the source folder .*labelsTr"):
        prepare(tmp_path / "void", source / "labelsTr/out", **folders)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for scans, out in ((tmp_path / "loop", tmp_path / "out"), (source, tmp_path / "loop/out")):
        with pytest.raises(UserError, match=r"loop.*: a link that leads to itself"):
            prepare(scans, out)
    (tmp_path / "mine").mkdir()
    prepare(source, tmp_path / "mine")  # an empty folder may be there
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("x")
    with pytest.raises(UserError, match="not empty and not a prepared"):
        prepare(source, tmp_path / "full")
    with pytest.raises(UserError, match="is a file"):
        prepare(source, tmp_path / "full/thesis.txt")
    refused("mine: is a prepared data set. Train on it", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_a_late_failure_leaves_nothing(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src")
    (source / "imagesTr/c5_0000.nii.gz").write_bytes(GARBAGE)  # the last one that is stored
    refused("c5_0000.nii.gz", source)


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    source = nnunet(tmp_path / "src")
    monkeypatch.setattr("sscl.stages.prepare.write_case", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [source]


def test_the_source_is_left_untouched(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src")
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in [source, *source.rglob("*")]}
    prepare(source, tmp_path / "out")
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in [source, *source.rglob("*")]} == before


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    source = nnunet(tmp_path / "src")
    monkeypatch.setattr("sscl.stages.prepare.write_case", full)
    refused("refused: cannot be written: No space left on device", source)
