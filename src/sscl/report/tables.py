"""The texts that other stages write (scores.csv, summary.csv, metrics.jsonl) as rows to show and to compare."""

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from sscl.core.errors import UserError
from sscl.metrics.table import OVERLAPS, Status, is_distance, is_formula

Row = Mapping[str, str]
_TEXTS = ("case", "class", "status", "shape_voxel", "spacing_mm", "measure")
"""Columns of scores.csv and summary.csv that hold no numbers."""

SHOWN = {
    "dice": "Dice",
    "jaccard": "Jaccard",
    "hd95_medpy_voxel": "95HD medpy, voxel",
    "asd_medpy_voxel": "ASD medpy, voxel",
    "hd95_standard_mm": "95HD standard, mm",
    "assd_standard_mm": "ASSD standard, mm",
}
"""Measures of the scores table and their heads; the others stay in the CSV files."""


def read_rows(text: str, where: str, needed: Sequence[str]) -> list[Row]:
    """The rows of a CSV text with a head.

    Raises:
        UserError: a column of `needed` is not there, a row has not one cell for each, or one that should be a number
            from 0 (empty: none) is none.
    """
    try:
        reader = csv.DictReader(io.StringIO(text), strict=True)
        rows = list(reader)
    except csv.Error as error:
        raise UserError(f"{where}: damaged: {error}. Run `sscl evaluate` again.") from None
    if missing := [name for name in needed if name not in (reader.fieldnames or ())]:
        raise UserError(f"{where}: no column {', '.join(missing)}. Run `sscl evaluate` again.")
    for number, row in enumerate(rows, start=1):
        wrong = None in row or None in row.values()
        if wrong or not all(key in _TEXTS or _is_score(key, value) for key, value in row.items()):
            raise UserError(f"{where}, row {number}: not what its columns say. Run `sscl evaluate` again.")
    return [{key: _plain(value) for key, value in row.items()} for row in rows]


def read_scores(text: str, where: str) -> list[Row]:
    """scores.csv: one row per case and class."""
    rows = read_rows(text, where, ("case", "class", "status", "dice"))
    for number, row in enumerate(rows, start=1):
        if row["status"] not in get_args(Status) or (row["status"] == "not_applicable") == bool(row["dice"]):
            raise UserError(f"{where}, row {number}: status and Dice contradict each other. Run `sscl evaluate` again.")
    if not rows:
        raise UserError(f"{where}: no case in it. Run `sscl evaluate` again.")
    return rows


def read_summary(text: str, where: str) -> list[Row]:
    """summary.csv: one row per class and measure."""
    return read_rows(text, where, ("class", "measure", "n", "mean", "std", "mean_failed_as_diagonal", "failed"))


def read_metrics(text: str, where: str) -> list[dict[str, Any]]:
    """metrics.jsonl: one object a line. A torn last line, as a killed training leaves it, is left out.

    Raises:
        UserError: any other line that is no JSON object.
    """
    lines = text.splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif number < len(lines) or text.endswith("\n"):
            raise UserError(f"{where}, line {number}: not a JSON object. Mend or remove the line.")
    return records


def score_lines(summary: Sequence[Row]) -> list[dict[str, Any]]:
    """One line of the scores table per class: counts, and for each measure `mean ± std` and a note.

    A failed case makes a mean distance infinite; the note then gives the mean with failures as the diagonal.
    """
    lines = []
    for name in dict.fromkeys(row["class"] for row in summary):
        rows = {row["measure"]: row for row in summary if row["class"] == name}
        first = next(iter(rows.values()))
        counts = {key: first.get(key, "") for key in ("n", "failed", "missing", "not_applicable")}
        lines.append({"class": name, **counts, "cells": [_cell(measure, rows.get(measure)) for measure in SHOWN]})
    return lines


def dice_by_case(scores: Sequence[Row]) -> dict[str, float]:
    """Mean Dice over the classes of each case. Both masks empty, rightly so, counts as 1: leaving the case out would
    reward a method that painted something there."""
    by_case: dict[str, list[float]] = defaultdict(list)
    for row in scores:
        by_case[row["case"]].append(float(row["dice"]) if row["dice"] else 1.0)
    return {case: sum(values) / len(values) for case, values in by_case.items()}


def num_failed(scores: Sequence[Row]) -> int:
    """Rows of which one mask was empty, or the prediction missing."""
    return sum(map(_is_failed, scores))


def failed_cases(scores: Sequence[Row]) -> frozenset[str]:
    """Cases of which that is so in any class."""
    return frozenset(row["case"] for row in scores if _is_failed(row))


def _is_failed(row: Row) -> bool:
    return row["status"] in ("failed", "missing")


def number(text: str, digits: int) -> str:
    """`0.8123` to `0.812`; `inf` to `∞`; an empty cell to `n/a`."""
    if not text:
        return "n/a"
    value = float(text)
    return f"{value:.{digits}f}" if math.isfinite(value) else "∞"


def _cell(measure: str, row: Row | None) -> dict[str, str]:
    if row is None or not row["mean"]:
        return {"mean": "n/a", "std": "", "note": ""}
    digits = 2 if is_distance(measure) else 3
    infinite = not math.isfinite(float(row["mean"]))
    return {
        "mean": number(row["mean"], digits),
        "std": "" if infinite or not row["std"] else number(row["std"], digits),
        "note": number(row["mean_failed_as_diagonal"], digits) if infinite else "",
    }


def _is_score(column: str, text: str) -> bool:
    """Whether a cell is empty, or a number that can be: inf is, NaN is not."""
    try:
        return not text or 0 <= float(text) <= (1 if column in OVERLAPS else math.inf)
    except ValueError:
        return False


def _plain(text: str) -> str:
    """Without the apostrophe that keeps a spreadsheet from taking a text for a formula."""
    return text[1:] if text.startswith("'") and is_formula(text) else text
