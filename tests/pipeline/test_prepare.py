"""`prepare`: layouts as they are found, splits, checks, plans, and a folder that is whole or not there."""

import json
import logging
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
from sscl.data.layouts import discover, scans_in
from sscl.data.planning import Fingerprint, make_plan, plan_patch
from sscl.data.presets import PRESETS
from sscl.data.split import read_lists, split_from_lists, split_from_options
from sscl.stages.dataset import open_dataset
from sscl.stages.prepare import prepare

SHAPE = (12, 10, 8)
MIB = 2**20
GARBAGE = b"this is no volume"


def scan(seed: int) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(0, 1000, SHAPE).astype(np.int16)


def mask(seed: int, classes: int = 1) -> NDArray[np.uint8]:
    label = np.zeros(SHAPE, np.uint8)
    for value in range(1, classes + 1):
        label[2 + 3 * value : 5 + 3 * value, 3:7, 2 + seed % 2 : 6] = value
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
    return {path.name.removesuffix(".b2nd"): blosc2.open(str(path))[:] for path in sorted((out / "store").iterdir())}


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
    assert lists(out) == {"labelled": ["c0", "c1", "c2", "c3"], "unlabelled": ["c4", "c5"], "development": [], "test": []}
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


def test_masks_of_unlabelled_and_scans_of_held_out_cases_stay_closed(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "src", masks=6)
    for closed in ("labelsTr/c2", "labelsTr/c3", "labelsTr/c4", "labelsTr/c5", "imagesTr/c4_0000", "imagesTr/c5_0000"):
        (source / f"{closed}.nii.gz").write_bytes(GARBAGE + closed.encode())
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


def test_two_folders_by_name(tmp_path: Path) -> None:
    source = tmp_path / "src"
    for number in range(3):
        put(source / f"images/s{number}.nii.gz", scan(number))
    put(source / "images/.DS_Store.nii", scan(9))
    (source / "images/Thumbs.db").write_bytes(b"x")
    (source / "images/notes.txt").write_text("notes")
    put(source / "masks/s1.nii", mask(1, 2))
    result = prepare(source, tmp_path / "out")
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


def test_la_challenge_255_is_the_atrium(tmp_path: Path) -> None:
    source = tmp_path / "src"
    for number in range(3):
        (source / f"P{number}").mkdir(parents=True)
        nrrd.write(str(source / f"P{number}/lgemri.nrrd"), scan(number), {"space directions": np.eye(3), "space": "RAS"})
        nrrd.write(str(source / f"P{number}/laendo.nrrd"), mask(number) * 255, {"space directions": np.eye(3), "space": "RAS"})
    prepare(source, tmp_path / "all")
    np.testing.assert_array_equal(stored(tmp_path / "all")["P2.label"], mask(2))
    assert json.loads((tmp_path / "all/dataset.json").read_text())["label_map"] == {"255": 1}
    (source / "P1/laendo.nrrd").unlink()
    refused("P1: the label .laendo.nrrd. is missing", source)
    prepare(source, tmp_path / "one", labelled=1)
    assert lists(tmp_path / "one")["unlabelled"] == ["P1", "P2"]
    refused("missing for 'P1'.*labelled", source, labelled=2)


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
    assert list(scans_in(folder / "P01/mri_norm2.h5", 1)) == ["P01"]
    with pytest.raises(UserError, match="no scan"):
        scans_in(tmp_path / "la" / "..", 1) if not list(tmp_path.glob("*.nii")) and _empty(tmp_path / "void") else None


def _empty(folder: Path) -> bool:
    folder.mkdir()
    scans_in(folder, 1)
    return True
