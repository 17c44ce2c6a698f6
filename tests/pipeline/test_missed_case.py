"""Replace a prediction by an empty one, or leave it out: no figure that any command reports gets better.

Random tables of scores go through the code that makes summary.csv, the report, `compare` and the paper's tables.
`make soak` takes all of them, `make test` the first few. A failure names its table: `random_table(123)`.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from sscl.engine.run import Recipe, read_recipe
from sscl.metrics import table
from sscl.report import statistics, tables
from sscl.stages.record import Result
from sscl.studies.compare import gains, grouped
from sscl.studies.suites import Row, Suite
from sscl.studies.tables import suite_table

TABLES = range(1_000 if "SSCL_SOAK" in os.environ else 25)
RECORDS = Path(__file__).parents[2] / "docs" / "results" / "runs"
RECIPES = {method: read_recipe(RECORDS / f"{method}_8_0") for method in ("mean_teacher", "vnet")}
OURS, BASELINE = RECIPES
CLASSES = {1: "organ", 2: "tumour"}

Labels = np.ndarray
Runs = Mapping[tuple[str, int], Sequence[Labels | None]]
"""Method and seed -> the predictions, case by case."""


@dataclass(frozen=True)
class Figure:
    """A reported number; None: there is none."""

    value: float | None
    less_is_better: bool

    def better_than(self, other: "Figure") -> bool:
        """A number that is gone is better than a bad one: it hides it."""
        if self.value is None or other.value is None:
            return other.value is not None
        if self.less_is_better:
            return self.value < other.value - 1e-12
        return self.value > other.value + 1e-12


def random_table(number: int) -> tuple[list[Labels], list[tuple[float, ...]], dict[tuple[str, int], list[Labels]]]:
    """References of 2 to 6 small cases, their spacings, and predictions of 1 to 3 seeds of two methods.

    A class is absent from a reference, or from a prediction, now and then; some predictions are of noise alone.
    """
    rng = np.random.default_rng(number)
    shapes = [tuple(rng.integers(2, 7, 3)) for _ in range(rng.integers(2, 7))]
    references = [_without(rng, rng.integers(0, 3, shape), 0.25) for shape in shapes]
    runs = {
        (method, seed): [_prediction(rng, reference) for reference in references]
        for method in RECIPES
        for seed in range(rng.integers(1, 4))
    }
    return references, [tuple(rng.uniform(0.5, 3, 3)) for _ in shapes], runs


def _without(rng: np.random.Generator, labels: Labels, chance: float) -> Labels:
    for value in CLASSES:
        if rng.random() < chance:
            labels = np.where(labels == value, 0, labels)
    return labels


def _prediction(rng: np.random.Generator, reference: Labels) -> Labels:
    noise = rng.integers(0, 3, reference.shape)
    wrong = rng.random(reference.shape) < rng.choice((0.02, 0.2, 1.0), p=(0.5, 0.4, 0.1))
    return _without(rng, np.where(wrong, noise, reference), 0.1)


def figures(references: Sequence[Labels], spacings: Sequence[tuple[float, ...]], runs: Runs) -> dict[str, Figure]:
    """Every figure of the method's runs (not of the baseline's) that a command reports, by where it stands."""
    results, found = {}, {}
    for (method, seed), predictions in runs.items():
        scores = [
            score
            for case, (prediction, reference, spacing) in enumerate(zip(predictions, references, spacings, strict=True))
            for score in table.score_case(f"case{case}", prediction, reference, spacing, CLASSES)
        ]
        rows = tables.read_scores(table.scores_csv(scores), "scores.csv")
        results[method, seed] = Result(f"{method}_{seed}", _recipe(method, seed), rows, {})
        if method == OURS:
            summary = tables.read_summary(table.summary_csv(table.summarise(scores)), "summary.csv")
            found |= {f"seed {seed}, {name}": figure for name, figure in _evaluated(summary).items()}
            found |= {f"seed {seed}, Dice of {c}": Figure(d, False) for c, d in tables.dice_by_case(rows).items()}
    return {**found, **_compared(results), **_in_the_papers_table(results)}


def _recipe(method: str, seed: int) -> Recipe:
    return RECIPES[method].model_copy(update={"seed": seed})


def _evaluated(summary: Sequence[tables.Row]) -> dict[str, Figure]:
    found = {}
    for row in summary:
        for name in ("mean", "median", "mean_failed_as_diagonal"):
            value = float(row[name]) if row[name] else None
            found[f"{name} {row['measure']} of {row['class']}"] = Figure(value, table.is_distance(row["measure"]))
        for name in ("failed", "missing"):
            found[f"{name} of {row['class']}"] = Figure(int(row[name]), True)
    return found


def _compared(results: Mapping[tuple[str, int], Result]) -> dict[str, Figure]:
    """`compare`, and the differences that the report gives, which are the same."""
    groups = {group.method: group for group in grouped(list(results.values()))}
    (gain,) = gains(list(groups.values()))
    found = {f"compare, {name}": getattr(gain.interval, name) for name in ("mean", "low", "high")}
    found["compare, Dice"] = groups[OURS].mean
    return {
        **{name: Figure(value, False) for name, value in found.items()},
        "compare, failed": Figure(groups[OURS].not_ok, True),
    }


def _in_the_papers_table(results: Mapping[tuple[str, int], Result]) -> dict[str, Figure]:
    rows = {method: Row(method=method, masks=8) for method in RECIPES}
    suite = Suite(title="", preset=None, rows=tuple(rows.values()), table="table1")
    shown = suite_table(suite, [(rows[method], result) for (method, _), result in results.items()])
    (cells,) = [
        dict(zip(shown.head, (cell.text for cell in row), strict=True)) for row in shown.cells() if row[0].text == OURS
    ]
    measures = {"Dice": False, "Jaccard": False, "95HD": True, "ASD": True}
    found = {f"table, {name}": Figure(_number(cells[f"{name} ours"]), less) for name, less in measures.items()}
    return {**found, "table, failed": Figure(_number(cells["failed"]), True)}


def _number(cell: str) -> float:
    return float(cell.split(" ")[0].replace("∞", "inf"))


def test_what_would_be_better() -> None:
    """Else the next test could not fail: the usual mean over finite distances does get better by a miss."""
    assert Figure(1.0, less_is_better=True).better_than(Figure(5.0, less_is_better=True))
    assert Figure(0.9, less_is_better=False).better_than(Figure(0.8, less_is_better=False))
    assert Figure(None, less_is_better=False).better_than(Figure(0.0, less_is_better=False))
    assert not Figure(0.0, less_is_better=False).better_than(Figure(None, less_is_better=False))
    assert not Figure(math.inf, less_is_better=True).better_than(Figure(math.inf, less_is_better=True))


@pytest.mark.soak
def test_a_missed_case_improves_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prediction is emptied where the reference is not (there it would be right), or any is left out."""
    monkeypatch.setattr(statistics, "_RESAMPLES", 200)
    for number in TABLES:
        references, spacings, runs = random_table(number)
        before = figures(references, spacings, runs)
        rng = np.random.default_rng((number, 1))
        seed = int(rng.integers(sum(method == OURS for method, _ in runs)))
        full = [case for case, reference in enumerate(references) if reference.any()]
        emptied = [(int(rng.choice(full)), np.zeros_like)] if full else []
        left_out = (int(rng.integers(len(references))), lambda labels: None)
        for case, miss in (*emptied, left_out):
            predictions = [*runs[OURS, seed]]
            predictions[case] = miss(predictions[case])
            after = figures(references, spacings, {**runs, (OURS, seed): predictions})
            assert after.keys() == before.keys()
            better = {
                name: (before[name].value, figure.value)
                for name, figure in after.items()
                if figure.better_than(before[name])
            }
            assert better == {}, f"random_table({number}), seed {seed}, case {case}"
