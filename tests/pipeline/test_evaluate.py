"""`evaluate` on folders: what is scored, what is refused, and what is written."""

import csv
import json
import logging
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import nibabel
import nrrd
import numpy as np
import pytest

from sscl.core.errors import UserError
from sscl.core.plan import Plan
from sscl.report import tables
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


@pytest.mark.parametrize(
    ("predicted", "true", "status", "overlap", "distance"),
    [
        (1, 1, "ok", "1.0", "0.0"),
        (0, 1, "failed", "0.0", "inf"),
        (1, 0, "failed", "0.0", "inf"),
        (0, 0, "not_applicable", "", ""),
        (None, 1, "missing", "0.0", "inf"),
        (None, 0, "missing", "0.0", "inf"),
    ],
)
def test_the_matrix_of_empty_masks(folders, predicted, true, status, overlap, distance):
    """Beside case b, whose Dice is 0.75."""
    prediction, reference = folders
    _write(reference, "a", _mask(value=true))
    _write(prediction, "a", _mask(value=predicted or 0))
    if predicted is None:
        (prediction / "a.nii.gz").unlink()
    evaluate(prediction, reference)
    row, _ = _rows(prediction / "scores" / "scores.csv")
    assert row["status"] == status
    assert {row[name] for name in ("dice", "jaccard", "nsd_2mm")} == {overlap}
    assert {row[name] for name in row if name.startswith(("hd95", "asd", "assd"))} == {distance}
    summary = {line["measure"]: line for line in _rows(prediction / "scores" / "summary.csv")}
    failed = status in ("failed", "missing")
    for line in summary.values():
        counts = [int(line[name]) for name in ("n", "failed", "missing", "not_applicable")]
        assert counts == [1 + (overlap != ""), failed, status == "missing", status == "not_applicable"]
    assert float(summary["dice"]["mean"]) == ((float(overlap) + 0.75) / 2 if overlap else 0.75)
    assert math.isinf(float(summary["hd95_standard_mm"]["mean"])) == failed


@pytest.mark.parametrize("case", ["a", "b"])
@pytest.mark.parametrize("value", [0, None])
def test_emptying_a_prediction_or_removing_it_improves_no_figure(tmp_path, case, value):
    """Of class 2 there is nothing in b: an empty mask must not be right about it. `tests/pipeline/test_missed_case.py`
    does the same with a thousand tables."""
    prediction, reference = tmp_path / "prediction", tmp_path / "labelsTs"
    for name, shift in {"a": 1, "b": 3}.items():
        truth, answer = _mask(), _mask(2 + shift, 6 + shift)
        answer[10, 8, 6] = 2
        truth[10, 8, 6] = 2 if name == "a" else 0
        _write(reference, name, truth)
        _write(prediction, name, answer)
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "organ": 1, "tumour": 2}}')
    before = evaluate(prediction, reference).summary
    _write(prediction, case, _mask(value=0))
    if value is None:
        (prediction / f"{case}.nii.gz").unlink()
    for was, now in zip(before, evaluate(prediction, reference).summary, strict=True):
        sign = -1 if was.measure.startswith(("hd95", "asd", "assd")) else 1
        for figure in ("mean", "median", "mean_failed_as_diagonal"):
            assert sign * getattr(now, figure) <= sign * getattr(was, figure), (now.label, now.measure, figure)
        assert now.failed >= was.failed


@pytest.mark.parametrize("kind", ["nii", "turned nii", "nrrd", "h5"])
def test_spacing_goes_with_its_axis(tmp_path, kind):
    """A cube 2 voxels off along an axis of 3 mm: 6 mm. Spacing in reverse order would give 2."""
    masks = {"prediction": np.zeros((20, 14, 12), np.uint8), "reference": np.zeros((20, 14, 12), np.uint8)}
    masks["prediction"][6:16, 2:12, 1:11] = masks["reference"][4:14, 2:12, 1:11] = 1
    for name, mask in masks.items():
        (tmp_path / name).mkdir()
        if kind == "nii":
            _write(tmp_path / name, "a", mask, np.diag([3.0, 1.0, 1.0, 1.0]))
        elif kind == "turned nii":
            turned = np.array([[0, 0, 3.0, 0], [0, 1.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1.0]])
            _write(tmp_path / name, "a", mask.transpose(), turned)
        elif kind == "nrrd":
            axes = {"space": "right-anterior-superior", "space origin": [0, 0, 0]}
            header = {**axes, "space directions": np.diag([3.0, 1.0, 1.0])}
            nrrd.write(str(tmp_path / name / "a.nrrd"), mask, header)
        else:
            with h5py.File(tmp_path / name / "a.h5", "w") as file:
                file["label"] = mask
    spacing_mm = (3.0, 1.0, 1.0) if kind == "h5" else None
    (score,) = evaluate(tmp_path / "prediction", tmp_path / "reference", spacing_mm=spacing_mm).scores
    assert score.values["hd95_standard_mm"] == pytest.approx(6)
    assert score.values["hd95_medpy_voxel"] == pytest.approx(2)


def test_names_are_no_formulas_in_any_table(tmp_path):
    """A spreadsheet runs a cell that begins with = + - @; an apostrophe makes it text, and reading takes it off.

    What has an apostrophe of its own gets another one: else the first two cases would be read as one.
    """
    cases, organ = ["'=1+1", "=1+1", "@SUM(A1)", "plain"], "=HYPERLINK(1)"
    prediction, reference = tmp_path / "prediction", tmp_path / "labelsTs"
    for case in cases:
        _write(prediction, case, _mask())
        _write(reference, case, _mask())
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, organ: 1}}))
    evaluate(prediction, reference)
    rows = _rows(prediction / "scores" / "scores.csv")
    assert [row["case"] for row in rows] == ["''=1+1", "'=1+1", "'@SUM(A1)", "plain"]
    assert {row["class"] for row in rows} == {f"'{organ}"}
    assert {row["class"] for row in _rows(prediction / "scores" / "summary.csv")} == {f"'{organ}"}
    read = tables.read_scores((prediction / "scores" / "scores.csv").read_text(), "scores.csv")
    assert [row["case"] for row in read] == cases
    assert {row["class"] for row in read} == {organ}


def test_a_prediction_without_reference_is_refused_by_name(folders):
    prediction, reference = folders
    _write(prediction, "c", _mask())
    with pytest.raises(UserError, match=r"c\.nii\.gz: a prediction without a reference"):
        evaluate(prediction, reference)
    assert not (prediction / "scores").exists()


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((12, 10, 1), r"shape \(12, 10, 1\) is a single slice"),
        ((1, 12, 10, 8), r"shape \(1, 12, 10\) is a single slice"),
        ((12, 10, 8, 2), "4-D mask of 2 channels"),
        ((8, 10, 12), r"shape \(8, 10, 12\), but the reference .*a\.nii\.gz has \(12, 10, 8\)"),
        ((12, 10, 9), r"shape \(12, 10, 9\), but the reference"),
    ],
)
def test_another_shape_is_refused(folders, shape, reason):
    """MedPy would broadcast the first two, and give a Dice above 1."""
    prediction, reference = folders
    _write(prediction, "a", np.ones(shape, np.uint8))
    with pytest.raises(UserError, match=rf"prediction/a\.nii\.gz: .*{reason}"):
        evaluate(prediction, reference)
    assert not (prediction / "scores").exists()


def test_a_fourth_dimension_of_one_is_none(folders):
    prediction, reference = folders
    _write(prediction, "a", _mask()[..., None])
    assert evaluate(prediction, reference).scores[0].values["dice"] == 1


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


@pytest.mark.parametrize(
    ("names", "outcome"),
    [(("background", "Organ"), ""), (("background", "liver"), "warned"), (("organ", "background"), "refused")],
)
def test_a_class_of_another_value_is_refused(names, outcome, folders, caplog):
    prediction, reference = folders
    reference = reference.rename(reference.parent / "labelsTs")
    (reference.parent / "dataset.json").write_text('{"labels": {"background": 0, "organ": 1}}')
    (prediction / "stage.json").write_text(json.dumps({"stage": "predict", "labels": names}))
    if outcome == "refused":
        with pytest.raises(UserError, match=r"classes organ, background; .*labelsTs has background, organ: 'organ'"):
            evaluate(prediction, reference)
    else:
        evaluate(prediction, reference)
        assert ("has the classes background, liver; " in caplog.text) == (outcome == "warned")


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


def test_scores_are_not_written_among_masks(folders):
    prediction, reference = folders
    with pytest.raises(UserError, match=r"reference/a\.nii\.gz: scans or masks lie in this folder"):
        evaluate(prediction, reference, reference)
    assert {path.name for path in reference.iterdir()} == {"a.nii.gz", "b.nii.gz"}


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
    stage = {"config": {}, "inputs": {}}
    for name, value in {"dataset": facts, "split": split, "plan": plan.model_dump(), "stage": stage}.items():
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
    (prediction / "a.nii.gz").unlink()
    with pytest.raises(UserError, match=r"no prediction for any of the 2 cases .* --split says which"):
        evaluate(prediction, dataset)
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
    with pytest.raises(UserError, match=r"--split development: .* only a prepared data set has lists"):
        evaluate(prediction, reference, split="development")
    (prediction / "recipe.yaml").touch()
    with pytest.raises(UserError, match=f"a run.*{prediction / 'predictions'}: give that folder"):
        evaluate(prediction, reference)
    (prediction / "recipe.yaml").unlink()
    _write(prediction, "a", _mask(), ending=".nii")
    with pytest.raises(UserError, match="two masks of one case 'a'"):
        evaluate(prediction, reference)


def test_exchanged_folders_are_refused_before_anything_is_written(folders, tmp_path, caplog):
    prediction, reference = folders
    dataset, _ = _dataset(tmp_path)
    (prediction / "stage.json").write_text('{"stage": "predict"}')
    for first in (reference, dataset):
        with pytest.raises(UserError, match=f"look exchanged.*sscl evaluate {prediction} {first}"):
            evaluate(first, prediction)
    (prediction / "stage.json").unlink()
    labels = shutil.copytree(reference, tmp_path / "labelsTr")
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(UserError, match="scores are not written among them"):
        evaluate(labels, prediction)
    assert not list(tmp_path.glob("*/scores"))
    for folder in folders:
        (folder / "stage.json").write_text('{"stage": "predict"}')
    evaluate(prediction, reference)
    assert f"{reference}: the reference is predicted, too" in caplog.text


def test_a_reference_is_not_compared_with_itself(folders, tmp_path):
    _, reference = folders
    (tmp_path / "links").mkdir()
    for case in ("a", "b"):
        (tmp_path / f"links/{case}.nii.gz").symlink_to(reference / f"{case}.nii.gz")
    for prediction in (reference, tmp_path / "links"):
        with pytest.raises(UserError, match=r"a\.nii\.gz: is the reference itself"):
            evaluate(prediction, reference)


@pytest.mark.parametrize(("low", "reason"), [(0, "960 values from 0 to 959"), (-959, "960 values from -959 to 0")])
def test_a_scan_is_no_reference(low, reason, folders):
    prediction, reference = folders
    _write(reference, "b", np.arange(low, low + 960, dtype=np.int16).reshape(SHAPE))
    with pytest.raises(UserError, match=rf"b\.nii\.gz: {reason}\. Is it a scan"):
        evaluate(prediction, reference)


@pytest.mark.parametrize("side", [0, 1])
def test_a_mask_of_a_kind_that_is_not_read_is_named(side, folders):
    (folders[side] / "c.mha").write_bytes(b"ObjectType = Image")
    with pytest.raises(UserError, match=r"c\.mha: is not a volume of a known kind"):
        evaluate(*folders)


@pytest.mark.parametrize("step", [0.0, -1.0, math.nan, math.inf])
def test_a_spacing_that_is_none(step, folders):
    with pytest.raises(UserError, match="expected three lengths over 0"):
        evaluate(*folders, spacing_mm=(1.0, step, 1.0))


def test_empty_references_without_declared_labels(tmp_path):
    for name in ("prediction", "reference"):
        _write(tmp_path / name, "a", _mask(value=0))
    with pytest.raises(UserError, match="nothing to score"):
        evaluate(tmp_path / "prediction", tmp_path / "reference")


@pytest.mark.skipif(not shutil.which("localedef"), reason="needs localedef to make a locale with decimal commas")
def test_decimal_points_in_every_locale(folders):
    prediction, reference = folders
    made = subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "UTF-8", prediction.parent / "de_DE.UTF-8"], capture_output=True
    )
    if made.returncode:
        pytest.skip("no German locale on this machine")
    program = (
        "import locale, sys; locale.setlocale(locale.LC_ALL, ''); from sscl import cli;"
        "print(locale.str(0.5)); sys.exit(cli.main(sys.argv[1:]))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program, "evaluate", prediction, reference, "--tolerance-mm", "1.5"],
        env={**os.environ, "LOCPATH": str(prediction.parent), "LC_ALL": "de_DE.UTF-8"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    written = [(prediction / "scores" / name).read_text() for name in ("summary.csv", "definitions.txt", "stage.json")]
    first, second = _rows(prediction / "scores" / "scores.csv")
    evaluate(prediction, reference, tolerance_mm=1.5)
    assert shown.startswith("0,5\n"), "the locale is in force"
    assert [first, second] == _rows(prediction / "scores" / "scores.csv")
    assert second["dice"] == "0.75"
    assert written[:2] == [(prediction / "scores" / name).read_text() for name in ("summary.csv", "definitions.txt")]
    assert json.loads(written[2])["config"]["tolerance_mm"] == 1.5
    assert "0.8750" in shown
