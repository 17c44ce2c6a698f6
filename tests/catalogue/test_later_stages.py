"""The catalogue where it concerns `predict`, `evaluate` and `train`, and its hostile files."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_inputs import CANARY, CATALOGUE, IMAGE, LABEL, LABELLED, make, nifti, put, slices, sound, volume, with_header
from harness import Expected, complaints, contents, run, unprivileged

from sscl.stages.model import export
from sscl.stages.prepare import prepare
from sscl.stages.train import train
from sscl.volumes.files import read_label, write_label
from sscl.volumes.geometry import to_ras

OTHER = "imagesTr/scan0_0000.nii.gz"
SETTINGS = {"patch": (32, 32, 16), "stride": (32, 32, 16)}

PREDICTED = [  # one image is bad: it is told, and the other one predicted all the same
    "F01", "F02", "F06", "F07", "F09", "F10", "G07", "G11", "G12", "G13", "G18", "G22", "G26", "V01", "V02", "V03",
    "V04", "F04", "G09", "V05", "G10", "G19", "F17", "G21", "G27", "N09", "V10",
]  # fmt: skip
WHOLE_FOLDER = ["F14", "F18", "N04"]
"""Which scans there are is not clear: nothing is predicted."""
EVALUATED = ["G01", "G04", "G05", "G06", "L02", "L03", "L04", "L10", "L13", "L17", "L06", "L08", "G03", "G17", "L15"]


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small V-Net, trained for 2 iterations on the sound set. Read only."""
    root = tmp_path_factory.mktemp("later")
    sound(root / "set")
    prepare(root / "set", root / "data", settings=SETTINGS)
    trained(root / "data", root / "run")
    return root / "run"


def trained(dataset: Path, out: Path) -> Path:
    train(dataset, out, method="vnet", settings={"width": 2}, iterations=2, threads=1, device="cpu")
    return out


@pytest.fixture(scope="session")
def model(run_folder: Path) -> Path:
    return export(run_folder, run_folder.parent / "model")


@pytest.fixture(scope="session")
def sound_masks(model: Path) -> Path:
    out = model.parent / "masks"
    assert run(out, "predict", model, *(model.parent / "set" / name for name in (OTHER, IMAGE)), "-o", out).code == 0
    return out


@pytest.mark.parametrize("name", PREDICTED)
def test_predict(tmp_path: Path, name: str, model: Path, sound_masks: Path) -> None:
    entry, out = CATALOGUE[name], tmp_path / "masks"
    root = make(entry, tmp_path / name)
    outcome = run(root, "predict", model, root / OTHER, root / IMAGE, "-o", out)
    assert complaints(Expected(entry.must, entry.files, entry.words), outcome) == []
    assert (out / "scan0.nii.gz").exists()
    assert (out / "scan3.nii.gz").exists() == (outcome.code == 0)
    if entry.must == "same":
        for case in ("scan0", "scan3"):
            mine, theirs = (to_ras(read_label(folder / f"{case}.nii.gz")) for folder in (out, sound_masks))
            np.testing.assert_array_equal(mine.array, theirs.array)
            np.testing.assert_allclose(mine.affine, theirs.affine)


@pytest.mark.parametrize("edit", [(108, "<f", 348.0), (344, "4s", b"n+1x"), (252, "<2h", (0, 9))])
def test_a_header_that_no_mask_can_have_stops_one_scan(tmp_path: Path, edit: tuple[int, str, Any], model: Path) -> None:
    out, bad = tmp_path / "masks", tmp_path / "scan3.nii.gz"
    put(bad, with_header(volume(3)[0], edit))
    outcome = run(tmp_path, "predict", model, bad, model.parent / "set" / OTHER, "-o", out)
    assert complaints(Expected("refuse", ("scan3.nii.gz",), ("header", "sform_code")), outcome) == []
    assert ((out / "scan0.nii.gz").exists(), (out / "scan3.nii.gz").exists()) == (True, False)


@pytest.mark.parametrize("name", WHOLE_FOLDER)
def test_predict_a_folder(tmp_path: Path, name: str, model: Path) -> None:
    entry = CATALOGUE[name]
    root = make(entry, tmp_path / name)
    outcome = run(root, "predict", model, root / "imagesTr", "-o", tmp_path / "masks")
    assert complaints(Expected(entry.must, entry.files, entry.words), outcome) == []


@pytest.mark.parametrize("name", EVALUATED)
def test_evaluate(tmp_path: Path, name: str) -> None:
    """The masks are the reference; what is scored are the sound masks."""
    entry = CATALOGUE[name]
    root = make(entry, tmp_path / name)
    for seed, case in enumerate(LABELLED):
        put(tmp_path / f"predicted/{case}.nii.gz", nifti(volume(seed)[1]))
    outcome = run(root, "evaluate", tmp_path / "predicted", root / "labelsTr", "-o", tmp_path / "scores")
    must = "work" if entry.must == "warn" else entry.must  # an empty mask has a score of its own: no warning
    words = {"L03": ("[4]",)}.get(name, (*entry.words, "position", "voxel size", "[55", "values"))
    assert complaints(Expected(must, entry.files, words), outcome) == []
    assert (tmp_path / "scores/scores.csv").exists() == (outcome.code == 0)
    if entry.must == "same":
        dice = [line.split(",") for line in (tmp_path / "scores/scores.csv").read_text().splitlines()]
        column = dice[0].index("dice")
        assert [float(row[column]) for row in dice[1:]] == [1.0] * len(LABELLED)


def test_evaluate_does_not_lose_a_mask(tmp_path: Path) -> None:
    root = make(CATALOGUE["D00"], tmp_path / "set")
    (root / "masks").mkdir()
    (root / "masks/a.nii.gz").symlink_to("nothing.nii.gz")
    put(tmp_path / "predicted/a.nii.gz", nifti(volume(0)[1]))
    outcome = run(root, "evaluate", tmp_path / "predicted", root / "masks")
    assert complaints(Expected("refuse", ("masks/a.nii.gz",), ("link",)), outcome) == []


def test_evaluate_reads_a_mask_that_is_a_dicom_series(tmp_path: Path) -> None:
    slices(tmp_path / "masks/a", volume(0)[1].astype(np.int16) + 1024, "1.2.9")
    truth = read_label(tmp_path / "masks/a")
    (tmp_path / "predicted").mkdir()
    write_label(tmp_path / "predicted/a.nii.gz", truth.array[0], truth)
    outcome = run(tmp_path, "evaluate", tmp_path / "predicted", tmp_path / "masks", "-o", tmp_path / "scores")
    assert outcome.code == 0
    (row,) = (tmp_path / "scores/scores.csv").read_text().splitlines()[1:]
    assert row.startswith("a,1,ok,1.0,")


def test_train_reads_the_same_from_an_awkward_set(tmp_path: Path, run_folder: Path) -> None:
    """Three scans stored in other axis orders: the weights are equal, bit for bit."""
    prepare(make(CATALOGUE["G27"], tmp_path / "set"), tmp_path / "data", settings=SETTINGS)
    mine = export(trained(tmp_path / "data", tmp_path / "run"), tmp_path / "model")
    theirs = export(run_folder, tmp_path / "other")
    assert (mine / "weights.safetensors").read_bytes() == (theirs / "weights.safetensors").read_bytes()


# Hostile files


def canary(root: Path) -> bool:
    return any(path.name == CANARY for path in root.rglob("*"))


def test_a_checkpoint_of_someone_else_is_not_run(tmp_path: Path, run_folder: Path) -> None:
    """By itself, and in the place of a run's own, with a digest that fits."""
    root = make(CATALOGUE["X01"], tmp_path / "X01")
    refused = Expected("refuse", ("model.pt",), CATALOGUE["X01"].words)
    for command in (("info",), ("predict", run_folder.parent / "set/imagesTr", "-o", tmp_path / "masks")):
        name, *rest = command
        assert complaints(refused, run(root, name, root / "model.pt", *rest)) == []
    other = shutil.copytree(run_folder, tmp_path / "run")
    newest = max((other / "checkpoints").glob("*.pt"))
    shutil.copy(root / "model.pt", newest)
    manifest = json.loads(newest.with_suffix(".json").read_text())
    manifest["sha256"] = hashlib.sha256(newest.read_bytes()).hexdigest()
    newest.with_suffix(".json").write_text(json.dumps(manifest))
    outcome = run(root, "export", other, "-o", tmp_path / "model")
    assert complaints(Expected("refuse", (newest.name,), ("unsafe",)), outcome) == []
    assert not (tmp_path / "model").exists()
    assert not canary(tmp_path)


def test_an_archive_is_not_unpacked(tmp_path: Path, run_folder: Path) -> None:
    root = make(CATALOGUE["X02"], tmp_path / "X02")
    outcome = run(root, "predict", root / "model.zip", run_folder.parent / "set/imagesTr", "-o", tmp_path / "masks")
    assert complaints(Expected("refuse", ("model.zip",), CATALOGUE["X02"].words), outcome) == []
    assert not canary(tmp_path)


def test_settings_run_no_code(tmp_path: Path, run_folder: Path) -> None:
    """As a suite, and as the recipe of a run."""
    root = make(CATALOGUE["X04"], tmp_path / "X04")
    refused = Expected("refuse", ("config.yaml",), CATALOGUE["X04"].words)
    assert complaints(refused, run(root, "benchmark", root / "config.yaml", root, "-o", tmp_path / "out")) == []
    other = shutil.copytree(run_folder, tmp_path / "run")
    shutil.copy(root / "config.yaml", other / "recipe.yaml")
    outcome = run(root, "predict", other, "-o", tmp_path / "masks")
    assert complaints(Expected("refuse", ("recipe.yaml",), ("YAML",)), outcome) == []
    assert not canary(tmp_path)


def test_arrays_of_objects_are_not_opened(tmp_path: Path, model: Path) -> None:
    """As a scan to predict on, among the scans of a set, and in the place of a stored one."""
    root = make(CATALOGUE["X05"], tmp_path / "X05")
    refused = Expected("refuse", ("scan3.npy",), CATALOGUE["X05"].words)
    for inputs in (root, root / "scan3.npy"):
        assert complaints(refused, run(root, "predict", model, inputs, "-o", tmp_path / "masks")) == []
    for command in (("check", root), ("prepare", root, "-o", tmp_path / "out")):
        outcome = run(root, *command, "--images", root, "--labels", root)
        assert complaints(refused, outcome) == []
    data = shutil.copytree(model.parent / "data", tmp_path / "data")
    shutil.copy(root / "scan3.npy", data / "store/scan3.image.b2nd")
    outcome = run(
        root, "train", data, "-o", tmp_path / "run", "--method", "vnet", "--iterations", "2", "--set", "width=2"
    )
    assert complaints(Expected("refuse", ("scan3.image.b2nd",), ("damaged",)), outcome) == []
    assert not canary(tmp_path)


@pytest.mark.parametrize("closed", ["", "run", "run/checkpoints"])
def test_a_run_folder_that_cannot_be_written_is_refused_before_a_step(run_folder: Path, closed: str) -> None:
    """To be made, there, closed for checkpoints alone; with --minutes the first steps are those that are timed."""
    recipe = (run_folder / "recipe.yaml").read_text()
    with unprivileged() as folder:
        user = os.geteuid()
        os.seteuid(os.getuid())  # root copies what nobody else can read
        shutil.copytree(run_folder.parent / "data", folder / "data")
        os.seteuid(user)
        place = folder / "runs"
        (place / closed).mkdir(parents=True)
        if closed == "run/checkpoints":
            (place / "run/recipe.yaml").write_text(recipe)
        (place / closed).chmod(0o555)
        before = contents(place)
        outcome = run(folder, "train", folder / "data", "-o", place / "run", "--minutes", "1", "--method", "vnet")
        assert complaints(Expected("refuse", ("runs",), ("nothing can be written there",)), outcome) == []
        assert "timing" not in outcome.text
        assert contents(place) == before
        (place / closed).chmod(0o755)


def test_a_changed_byte_of_the_store_stops_training(tmp_path: Path, run_folder: Path) -> None:
    data = shutil.copytree(run_folder.parent / "data", tmp_path / "data")
    for path in (data / "store").glob("*.label.b2nd"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    outcome = run(
        data, "train", data, "-o", tmp_path / "run", "--method", "vnet", "--iterations", "2", "--set", "width=2"
    )
    assert complaints(Expected("refuse", (".label.b2nd",), ("digest",)), outcome) == []


@pytest.mark.slow  # every stage
def test_a_name_like_html_is_text_in_the_report(tmp_path: Path, model: Path) -> None:
    name = "scan<img src=x onerror=alert(1)>"
    root = make(CATALOGUE["X06"], tmp_path / "X06")
    assert name in {path.name.split("_0000")[0] for path in (root / "imagesTr").iterdir()}
    prepare(root, tmp_path / "data", settings=SETTINGS)
    trained(tmp_path / "data", tmp_path / "run")
    predicted = tmp_path / "run/predictions"
    assert run(root, "predict", tmp_path / "run", "--split", "labelled").code == 0
    assert run(root, "evaluate", predicted, tmp_path / "data", "--split", "labelled").code == 0
    assert run(root, "report", tmp_path / "run", "-o", tmp_path / "report.html").code == 0
    page = (tmp_path / "report.html").read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page


def test_files_of_labels_are_never_scans_of_the_prediction(tmp_path: Path, model: Path) -> None:
    """`predict` into the folder of the scans is refused before anything is written (P08)."""
    root = make(CATALOGUE["G15"], tmp_path / "set")
    outcome = run(root, "predict", model, root / IMAGE, "-o", root / "imagesTr")
    assert complaints(Expected("refuse", ("imagesTr",), ("overwrite",)), outcome) == []
    assert (root / LABEL).exists()
