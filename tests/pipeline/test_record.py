"""Records of runs: small, without weights and paths, and true to what they were made from."""

import csv
import json
import shutil
from pathlib import Path
from statistics import fmean

import pytest
import yaml
from tiny_set import Tiny

from sscl.core.errors import UserError
from sscl.stages.evaluate import evaluate
from sscl.stages.predict import predict
from sscl.stages.record import record


@pytest.fixture
def finished(trained: Path, tiny: Tiny, tmp_path: Path) -> Path:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    predict(run, [tiny.dataset], run / "predictions", threads=1, device="cpu")
    return run


def test_a_record_holds_what_can_be_compared_and_no_more(finished: Path, tiny: Tiny, tmp_path: Path) -> None:
    evaluate(finished / "predictions", tiny.dataset)
    out = record(finished, finished / "predictions", tmp_path / "records" / "tiny")
    assert {path.name for path in out.iterdir()} == {
        "recipe.yaml", "metrics.csv", "scores.csv", "summary.csv", "record.json",
    }  # fmt: skip
    assert sum(path.stat().st_size for path in out.iterdir()) < 200_000
    assert not [path.name for path in out.iterdir() if str(tmp_path.parent) in path.read_text()]
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert recipe == yaml.safe_load((finished / "recipe.yaml").read_text()) | {"dataset": "dataset"}
    assert (out / "scores.csv").read_text() == (finished / "predictions/scores/scores.csv").read_text()
    manifest = json.loads(max((finished / "checkpoints").glob("*.json")).read_text())
    assert json.loads((out / "record.json").read_text())["weights_sha256"] == manifest["sha256"]


def test_the_thinned_log_keeps_means_and_phases(
    finished: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sscl.stages.record.ROWS", 3)  # of six iterations: two a row
    evaluate(finished / "predictions", tiny.dataset)
    out = record(finished, finished / "predictions", tmp_path / "record")
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    with (out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["iteration"]), row["phase"]) for row in rows] == [
        (0, "pretrain"), (2, "formal"), (4, "formal"), (5, "formal"),
    ]  # fmt: skip
    losses = [line["student/loss"] for line in lines]
    expected = [losses[0], fmean(losses[1:3]), fmean(losses[3:5]), losses[5]]
    assert [float(row["student/loss"]) for row in rows] == pytest.approx(expected, rel=1e-4)
    assert rows[0]["student/unsup"] == ""  # a term of the other phase


def test_what_is_not_finished_or_scored_makes_no_record(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no scores"):
        record(finished, finished / "predictions", tmp_path / "record")
    (finished / "stage.json").unlink()
    with pytest.raises(UserError, match="is not a finished run"):
        record(finished, finished / "predictions", tmp_path / "record")
    assert not (tmp_path / "record").exists()
