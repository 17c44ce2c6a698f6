"""What is kept of a finished run when its weights are not: recipe, scores, a thinned log, digests. Small, for git."""

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import Field

from sscl.core.errors import UserError
from sscl.core.files import Shape, json_digest, read_object, read_sealed, read_text, sha256, write_sealed, write_text
from sscl.engine.run import FREE, METRICS, RECIPE, Recipe, read_recipe
from sscl.engine.train import ENGINE_VERSION
from sscl.methods import METHODS, method_class
from sscl.report.tables import Row, read_metrics, read_scores
from sscl.stages.folder import STAGE, read_stage, require_files
from sscl.stages.reading import require_as_scored, require_as_trained, scored_against, selected
from sscl.stages.train import CHECKPOINTS

logger = logging.getLogger("sscl")

ROWS = 60
"""Lines of the thinned log; each is the mean over as many iterations as that takes."""
SCORES, SUMMARY, RECORD = "scores.csv", "summary.csv", "record.json"


class _Versions(Shape):
    engine: int
    method: int


class _Record(Shape):
    select: Literal["last", "best"] | None = None
    scored_against: dict[str, str] = Field(default_factory=dict)
    versions: _Versions | None = None


@dataclass(frozen=True)
class Result:
    """A scored run: of a run folder, or of what was kept of one."""

    name: str
    recipe: Recipe
    rows: Sequence[Row]
    """scores.csv."""
    facts: Mapping[str, Any]
    """record.json; empty for a run folder."""
    select: str = "last"
    """Which of the run's weights were scored: `last`, or `best` on its validation cases."""
    scored_against: Mapping[str, str] = field(default_factory=dict)
    """Case to the digest of its reference; the first records name none."""

    @property
    def identity(self) -> str | None:
        """Of the run that this is a result of; None where its method has no such setting any more."""
        versions = self.facts.get("versions", {"engine": 1, "method": 1})  # the first records name none
        try:
            return identity(self.recipe, versions["engine"], versions["method"], self.select)
        except UserError:
            return None


def identity(recipe: Recipe, engine: int | None = None, method: int | None = None, select: str = "last") -> str:
    """Digest of all that decides a run's numbers: recipe, data, the declared versions of engine and method (the present
    ones unless given), and which weights are scored. Settings that have come since have their defaults.

    Raises:
        UserError: the method has no such setting.
    """
    config = method_class(recipe.method).Config.read(recipe.config, f"settings of '{recipe.method}'")
    values = recipe.model_dump(mode="json", exclude={*FREE, "config"}) | {"config": config.model_dump(mode="json")}
    values["versions"] = [engine or ENGINE_VERSION, method or METHODS[recipe.method].version]
    values["select"] = select
    return json_digest(values)


def read_result(folder: Path) -> Result:
    """A run folder whose test cases were scored, or a record.

    Raises:
        UserError: neither, or nothing was scored.
    """
    recipe = read_recipe(folder)
    places = (folder / SCORES, folder / "predictions" / "scores" / SCORES)
    found = [path for path in places if path.is_file()]
    if not found:
        raise UserError(f"{folder} has no scores. `sscl predict {folder}`, then `sscl evaluate {folder}/predictions`.")
    rows = read_scores(read_text(found[0]), str(found[0]))
    if found[0].parent == folder:
        facts = read_sealed(folder / RECORD, shape=_Record)
        require_files(folder, facts, (RECIPE, SCORES, SUMMARY), f"Restore it, or delete {folder} and run it again.")
    else:
        facts = {}
        require_as_trained(folder)
        require_as_scored(found[0].parent.parent, folder)
    scores = found[0].parent
    against = facts.get("scored_against", {}) if facts else scored_against(scores)
    return Result(folder.name, recipe, rows, facts, facts.get("select") or selected(scores), against)


def read_records(folder: Path) -> list[Result]:
    """All records of a folder, by name; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return read_results([path for path in sorted(folder.iterdir()) if (path / RECORD).is_file()])


def read_results(folders: Sequence[Path]) -> list[Result]:
    """Those of `folders` that can be read; a warning names each other one: unfinished, not scored or damaged."""
    results = []
    for folder in folders:
        try:
            results.append(read_result(folder))
        except UserError as error:
            logger.warning("%s is left out: %s", folder, error)
    return results


def record(run: Path, predictions: Path, out: Path) -> Path:
    """Write OUT: `recipe.yaml`, `metrics.csv` (means over equal stretches), `scores.csv`, `summary.csv`, `record.json`.

    Args:
        run: a finished run folder.
        predictions: its masks, scored by `evaluate`.

    Raises:
        UserError: an unfinished run, or masks without scores.
    """
    if not (run / STAGE).exists():
        raise UserError(f"{run} is not a finished run: it has no {STAGE}. The command that began it goes on with it.")
    scores = predictions / "scores"
    if not (scores / SCORES).exists():
        raise UserError(f"{predictions} has no scores. `sscl evaluate {predictions} DATASET` writes them.")
    recipe, stage = read_recipe(run), read_stage(run, "seconds", "commit", "versions")
    require_as_trained(run)
    require_as_scored(predictions, run)
    values = recipe.model_dump(mode="json")
    values["dataset"] = Path(recipe.dataset).name  # a path says nothing elsewhere; the digest does
    out.mkdir(parents=True, exist_ok=True)
    (out / RECORD).unlink(missing_ok=True)  # until it is there again, a record is not whole
    write_text(out / RECIPE, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    text = read_text(run / METRICS)
    write_text(out / "metrics.csv", _thinned(read_metrics(text, str(run / METRICS))))
    for name in (SCORES, SUMMARY):
        write_text(out / name, read_text(scores / name))
    last = sorted((run / CHECKPOINTS).glob("*.json"))[-1]
    write_sealed(
        out / RECORD,
        {
            "weights_sha256": read_object(last, "sha256")["sha256"],
            "select": selected(scores),
            "scored_against": scored_against(scores),
            "metrics_sha256": sha256(run / METRICS),
            "data_digest": recipe.data_digest,
            "versions": {"engine": ENGINE_VERSION, "method": METHODS[recipe.method].version},
            "commit": stage["commit"],
            "minutes": round(stage["seconds"] / 60, 1),
            "iterations_per_second": round(
                recipe.iterations / max(stage["seconds"], 0.1), 3
            ),  # they are rounded to that
            "peak_memory_mib": round(stage["peak_memory_bytes"] / 2**20),
            "predict_seconds": read_stage(predictions, "seconds")["seconds"],
            "files": {name: sha256(out / name) for name in (RECIPE, "metrics.csv", SCORES, SUMMARY)},
        },
    )
    return out


def _thinned(entries: Sequence[Mapping[str, Any]]) -> str:
    """CSV, one row a stretch of iterations inside one phase: the last iteration, the phase, the mean of each number."""
    length = max(1, len(entries) // ROWS)
    columns = list(dict.fromkeys(key for entry in entries for key in entry if key not in ("iteration", "phase")))
    rows = []
    for phase in dict.fromkeys(entry["phase"] for entry in entries):
        mine = [entry for entry in entries if entry["phase"] == phase]
        for start in range(0, len(mine), length):
            stretch = mine[start : start + length]
            means = [_mean([entry[key] for entry in stretch if key in entry]) for key in columns]
            rows.append([stretch[-1]["iteration"], phase, *means])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["iteration", "phase", *columns], *rows])
    return text.getvalue()


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.5g}" if values else ""
