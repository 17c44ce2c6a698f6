"""`evaluate` on folders: what is scored, what is refused, and what is written."""

import csv
import json
import logging
import math
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest

from sscl.core.errors import UserError
from sscl.core.plan import Plan
from sscl.stages.evaluate import evaluate

SHAPE = (12, 10, 8)
AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])


def _mask(low=2, high=6, value=1):
    mask = np.zeros(SHAPE, np.uint8)
    mask[low:high, 3:7, 2:5] = value
    return mask


def _write(folder: Path, case: str, mask: np.ndarray, affine: np.ndarray = AFFINE, ending: str = ".nii.gz") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{case}{ending}"
    nibabel.save(nibabel.Nifti1Image(mask, affine), path)
    return path


@pytest.fixture
def folders(tmp_path):
    """Two cases: `a` predicted exactly, `b` one voxel (1 mm) too far along x."""
    prediction, reference = tmp_path / "prediction", tmp_path / "reference"
    for case in ("a", "b"):
        _write(reference, case, _mask())
    _write(prediction, "a", _mask())
    _write(prediction, "b", _mask(3, 7))
    return prediction, reference


def _rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_two_folders(folders):
    prediction, reference = folders
    result = evaluate(prediction, reference)
    a, b = _rows(prediction / "scores" / "scores.csv")
    assert (a["case"], a["class"], a["status"], a["dice"], a["hd95_medpy_voxel"]) == ("a", "1", "ok", "1.0", "0.0")
    assert (b["case"], b["dice"], b["hd95_standard_mm"]) == ("b", "0.75", "1.0")
    assert float(b["volume_reference_ml"]) == pytest.approx(4 * 4 * 3 * 3 / 1000)
    assert b["spacing_mm"] == "1x1x3"
    line = _rows(prediction / "scores" / "summary.csv")[0]
    assert (line["measure"], line["n"], line["mean"], line["failed"]) == ("dice", "2", "0.875", "0")
    assert (prediction / "scores" / "definitions.txt").read_text() == result.definitions + "\n"
    stage = json.loads((prediction / "scores" / "stage.json").read_text())
    assert stage["stage"] == "evaluate"
    assert stage["config"] == {"split": "test", "tolerance_mm": 2.0, "spacing_mm": None}
    assert len(stage["inputs"]) == 4
    # a second run does not take its own results for predictions
    assert evaluate(prediction, reference).scores == result.scores


def test_a_case_without_prediction_is_missing_and_costs(folders, caplog):
    prediction, reference = folders
    before = {line.measure: line for line in evaluate(prediction, reference).summary}
    (prediction / "b.nii.gz").unlink()
    with caplog.at_level(logging.WARNING, "sscl"):
        result = evaluate(prediction, reference)
    assert "b: no prediction" in caplog.text
    assert [(score.case, score.status) for score in result.scores] == [("a", "ok"), ("b", "missing")]
    assert result.scores[1].values["hd95_standard_mm"] == math.inf
    after = {line.measure: line for line in result.summary}
    assert after["dice"].mean == 0.5 < before["dice"].mean
    assert after["hd95_standard_mm"].mean == math.inf
    assert after["hd95_standard_mm"].mean_failed_as_diagonal == pytest.approx(math.hypot(12, 10, 24) / 2)
    assert (after["dice"].failed, after["dice"].missing) == (1, 1)


def test_a_prediction_without_reference_is_refused_by_name(folders):
    prediction, reference = folders
    _write(prediction, "c", _mask())
    with pytest.raises(UserError, match=r"c\.nii\.gz: a prediction without a reference"):
        evaluate(prediction, reference)
    assert not (prediction / "scores").exists()


@pytest.mark.parametrize("shape", [(12, 10, 1), (1, 12, 10, 8), (8, 10, 12)])
def test_another_shape_is_refused(folders, shape):
    """MedPy would broadcast the first, and give a Dice above 1."""
    prediction, reference = folders
    path = _write(prediction, "a", np.ones(shape, np.uint8))
    with pytest.raises(UserError, match=path.name):
        evaluate(prediction, reference)


@pytest.mark.parametrize("change", ["spacing", "flip", "shift"])
def test_another_affine_is_refused(folders, change):
    prediction, reference = folders
    affine = AFFINE.copy()
    if change == "spacing":
        affine[2, 2] = 1
    elif change == "flip":
        affine[0, 0] = -1
    else:
        affine[0, 3] = 0.01
    _write(prediction, "a", _mask(), affine)
    with pytest.raises(UserError, match=r"a\.nii\.gz: equal shape, but another position"):
        evaluate(prediction, reference)


def test_rounding_of_the_affine_is_no_other_grid(folders):
    prediction, reference = folders
    affine = AFFINE.copy()
    affine[0, 3] = 0.0005
    _write(prediction, "a", _mask(), affine)
    assert evaluate(prediction, reference).scores[0].values["dice"] == 1


def test_a_value_that_is_not_declared_is_refused(folders):
    prediction, reference = folders
    _write(prediction, "a", _mask(value=2))
    with pytest.raises(UserError, match=r"a\.nii\.gz: label values \[2\] are not declared"):
        evaluate(prediction, reference)


def test_labels_of_the_prediction_name_the_classes(folders):
    """Without them a class that no reference contains would not be known."""
    prediction, reference = folders
    _write(prediction, "a", _mask(value=2))
    (prediction / "stage.json").write_text(json.dumps({"stage": "predict", "labels": ["background", "left", "right"]}))
    scores = evaluate(prediction, reference).scores
    assert [(score.case, score.label, score.status) for score in scores] == [
        *(("a", "left", "failed"), ("a", "right", "failed")),
        *(("b", "left", "ok"), ("b", "right", "not_applicable")),
    ]


@pytest.mark.parametrize("name", ["prediction/stage.json", "prediction/scores/stage.json", "dataset.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_damaged_json_is_named(folders, name, content):
    prediction, reference = folders
    reference = reference.rename(reference.parent / "labelsTr")
    path = reference.parent / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path.name}: is not"):
        evaluate(prediction, reference)


def test_the_predictions_own_stage_is_not_overwritten(folders):
    prediction, reference = folders
    (prediction / "stage.json").write_text('{"stage": "predict"}')
    with pytest.raises(UserError, match="another stage"):
        evaluate(prediction, reference, prediction)
    assert (prediction / "stage.json").read_text() == '{"stage": "predict"}'


@pytest.mark.parametrize("labels", [{"background": 0, "organ": 1, "ignore": 2}, {"0": "background", "1": "organ"}])
def test_labels_tr_with_the_layouts_own_names(tmp_path, labels):
    reference, prediction = tmp_path / "source" / "labelsTr", tmp_path / "prediction"
    truth = _mask()
    if "ignore" in labels:
        truth[8:] = 2
    _write(reference, "a", truth)
    (reference.parent / "dataset.json").write_text(json.dumps({"labels": labels}))
    _write(prediction, "a", _mask())
    (score,) = evaluate(prediction, reference).scores
    assert (score.label, score.values["dice"]) == ("organ", 1)
    answer = _mask()
    answer[8:] = 1
    _write(prediction, "a", answer)
    (score,) = evaluate(prediction, reference).scores
    assert (score.values["dice"] == 1) == ("ignore" in labels)


def test_regions_are_refused_by_name(folders):
    prediction, reference = folders
    reference = reference.rename(reference.parent / "labelsTr")
    (reference.parent / "dataset.json").write_text('{"labels": {"background": 0, "whole": [1, 2]}}')
    with pytest.raises(UserError, match=r"label 'whole'.*regions"):
        evaluate(prediction, reference)


def _dataset(tmp_path, plan_spacing=None, ending=".nii.gz"):
    """A prepared data set of four cases: two for testing, one for development, one without a mask."""
    dataset, source = tmp_path / "dataset", tmp_path / "source"
    dataset.mkdir()
    cases = {case: {"image": [f"{case}{ending}"], "label": f"{case}{ending}"} for case in ("a", "b", "c")}
    cases["d"] = {"image": ["d.nii.gz"], "label": None}
    facts = {
        **{"name": "toy", "source": str(source), "layout": "folders", "channels": ["mr"]},
        **{"labels": ["background", "atrium"], "ignore_label": None, "cases": cases},
    }
    split = {"labelled": [], "unlabelled": ["d"], "development": ["c"], "test": ["a", "b"]}
    plan = Plan(
        **{"channels": ("mr",), "labels": ("background", "atrium"), "spacing_mm": (1.0, 1.0, 3.0)},
        **{"patch": (16, 16, 16), "stride": (8, 8, 8), "spacing_if_missing_mm": plan_spacing},
    )
    for name, value in {"dataset": facts, "split": split, "plan": plan.model_dump()}.items():
        (dataset / f"{name}.json").write_text(json.dumps(value))
    if ending == ".nii.gz":
        for case in ("a", "b", "c"):
            _write(source, case, _mask())
    return dataset, source


def test_a_data_set_due_are_the_cases_of_the_list_and_openings_are_logged(tmp_path):
    dataset, _ = _dataset(tmp_path)
    prediction = tmp_path / "prediction"
    _write(prediction, "a", _mask())
    for expected in (1, 2):
        result = evaluate(prediction, dataset)
        entries = [json.loads(line) for line in (dataset / "openings.jsonl").read_text().splitlines()]
        assert len(entries) == expected
    assert [(score.case, score.label, score.status) for score in result.scores] == [
        *(("a", "atrium", "ok"), ("b", "atrium", "missing")),
    ]
    assert entries[0].keys() == {"time", "prediction", "cases", "command"}
    assert (entries[0]["prediction"], entries[0]["cases"]) == (str(prediction), 2)


def test_the_development_list_is_no_opening(tmp_path, caplog):
    dataset, _ = _dataset(tmp_path)
    prediction = tmp_path / "prediction"
    for case in ("a", "c"):
        _write(prediction, case, _mask())
    with caplog.at_level(logging.INFO, "sscl"):
        result = evaluate(prediction, dataset, split="development")
    assert [score.case for score in result.scores] == ["c"]
    assert "1 predictions are of cases outside this list" in caplog.text
    assert not (dataset / "openings.jsonl").exists()


def test_mistakes_about_a_data_set(tmp_path):
    dataset, _ = _dataset(tmp_path)
    prediction = tmp_path / "prediction"
    _write(prediction, "stranger", _mask())
    with pytest.raises(UserError, match=r"stranger.*without a reference"):
        evaluate(prediction, dataset)
    with pytest.raises(UserError, match="Did you mean 'test'"):
        evaluate(prediction, dataset, split="tset")
    with pytest.raises(UserError, match="list 'labelled' is empty"):
        evaluate(prediction, dataset, split="labelled")
    with pytest.raises(UserError, match=r"case 'd'.*no mask"):
        evaluate(prediction, dataset, split="unlabelled")
    assert not (dataset / "openings.jsonl").exists(), "nothing was read"


def test_h5_takes_its_spacing_from_the_plan(tmp_path):
    dataset, source = _dataset(tmp_path, (1.0, 1.0, 3.0), ".h5")
    source.mkdir()
    for case in ("a", "b"):
        with h5py.File(source / f"{case}.h5", "w") as file:
            file["label"] = _mask()
        _write(tmp_path / "prediction", case, _mask(3, 7))
    result = evaluate(tmp_path / "prediction", dataset)
    assert [score.spacing_mm for score in result.scores] == [(1.0, 1.0, 3.0)] * 2
    assert result.scores[0].values["hd95_standard_mm"] == 1


def test_mistakes_about_folders(folders, tmp_path):
    prediction, reference = folders
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no mask files"):
        evaluate(prediction, tmp_path / "empty")
    with pytest.raises(UserError, match="no prediction for any"):
        evaluate(tmp_path / "empty", reference)
    with pytest.raises(UserError, match="no such folder"):
        evaluate(tmp_path / "nowhere", reference)
    with pytest.raises(UserError, match="tolerance -1"):
        evaluate(prediction, reference, tolerance_mm=-1.0)
    _write(prediction, "a", _mask(), ending=".nii")
    with pytest.raises(UserError, match="two masks of one case 'a'"):
        evaluate(prediction, reference)


def test_empty_references_without_declared_labels(tmp_path):
    for name in ("prediction", "reference"):
        _write(tmp_path / name, "a", _mask(value=0))
    with pytest.raises(UserError, match="nothing to score"):
        evaluate(tmp_path / "prediction", tmp_path / "reference")
