"""A suite's records as the paper's table, and what they say about the unlabelled scans."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from sscl.core.files import write_atomic, write_text
from sscl.methods import method_class
from sscl.metrics.table import is_distance
from sscl.report import layout
from sscl.report.layout import Table
from sscl.report.paper_tables import NOT_PRINTED, Key, Ours, Spread, paper_table
from sscl.report.published import departing, published
from sscl.report.tables import Row as ScoreRow
from sscl.report.tables import num_failed
from sscl.stages.record import RECORD, Result, read_results
from sscl.studies.benchmark import Planned
from sscl.studies.compare import compared
from sscl.studies.suites import READINGS, Row, Suite

MEASURES = {"dice": "dice", "jaccard": "jaccard", "hd95": "hd95_medpy_voxel", "asd": "asd_medpy_voxel"}
"""The paper's metrics and their columns in scores.csv."""
FORMATS = {"md": layout.markdown, "csv": layout.csv_text, "tex": layout.latex, "html": layout.html}


Done = Sequence[tuple[Row, Result]]
"""Rows of a suite with what their runs gave, one entry a seed."""


def results(planned: Sequence[Planned]) -> Done:
    """Of the runs that have a record of their own: one of other settings under the same name is none."""
    found = [(item, read_results([Path(item.job.record)])) for item in planned if is_recorded(item)]
    return [(item.row, result) for item, kept in found for result in kept if result.identity in item.identities]


def is_recorded(item: Planned) -> bool:
    return (Path(item.job.record) / RECORD).is_file()


def write_tables(suite: Suite, done: Done, out: Path) -> list[Path]:
    """Write the table in four formats, `comparison.md`, and Figure 6's curves; nothing where nothing was run."""
    out.mkdir(parents=True, exist_ok=True)
    if not done:
        return []
    table = suite_table(suite, done)
    paths = []
    for ending, text in FORMATS.items():
        paths.append(out / f"{suite.table or 'table'}.{ending}")
        write_text(paths[-1], text(table))
    found = compared([result for _, result in done])
    plain = Table(suite.title, found.table[0], found.table[1:])
    curve = [Table("Mean Dice by the number of masks", found.curve[0], found.curve[1:])] if found.curve else []
    parts = [layout.markdown(plain), found.note + "\n", *map(layout.markdown, curve)]
    paths.append(out / "comparison.md")
    write_text(paths[-1], "\n".join([*parts, *(f"- {answer}" for answer in found.answers)]) + "\n")
    if suite.table == "fig6":
        from sscl.report.paper_figures import threshold_curves

        paths.append(out / "fig6.svg")
        write_atomic(paths[-1], lambda file: file.write(threshold_curves(threshold_points(suite, done))))
    return paths


def threshold_points(suite: Suite, done: Done) -> dict[str, list[tuple[float, dict[str, float]]]]:
    """For each reading of the threshold: threshold and mean of each measure, infinite where a case was missed. The
    readings share the point at 0.5, where with one organ they are the same."""
    curves: dict[str, list[tuple[float, dict[str, float]]]] = {}
    for row, of_row in _by_row(suite, done):
        scores = (_spread([result.rows for result in of_row], column).mean for column in MEASURES.values())
        means = dict(zip(MEASURES.values(), (math.inf if mean is None else mean for mean in scores), strict=True))
        threshold = float(row.settings["threshold"])
        for reading in READINGS if threshold == 0.5 else (str(row.settings["pseudo"]),):
            curves.setdefault(reading, []).append((threshold, means))
    return curves


def _by_row(suite: Suite, done: Done) -> list[tuple[Row, list[Result]]]:
    """Rows that were run, in the order of their first run, each with the results of its seeds."""
    together: dict[int, list[Result]] = {}
    for row, result in done:
        together.setdefault(suite.rows.index(row), []).append(result)
    return [(suite.rows[key], of_row) for key, of_row in together.items()]


def printed(suite: Suite, row: Row) -> str:
    """The paper's Dice of a row; where it is printed more than once, the first one."""
    if suite.table is None:
        return NOT_PRINTED.text
    method, masks, settings = _key(row)
    wanted = method, masks, departing(settings)
    found = (f"{p.dice:.3f}" for p in published(suite.table) if (p.method, p.masks, departing(p.settings)) == wanted)
    return next(found, NOT_PRINTED.text)


def suite_table(suite: Suite, done: Done) -> Table:
    """In the paper's layout, where the suite has a table of it; else method, masks and Dice."""
    ours = {_key(row): _ours(row, of_row) for row, of_row in _by_row(suite, done)}
    if suite.table:
        return paper_table(suite.table, ours, _setting([result for _, result in done]))
    head = ["Method", "Masks", "Unlabelled", "Dice", "seeds", "failed"]
    cells = [
        [one.name or method, str(one.labelled), str(one.unlabelled), _number(one.dice), str(one.seeds), str(one.failed)]
        for (method, _, _), one in ours.items()
    ]
    notes = [
        _setting([result for _, result in done]),
        "Dice: mean ± standard deviation over cases, each one's mean over its seeds and classes.",
        "failed: masks that are empty or missing, by case, class and seed; each counts as Dice 0.",
    ]
    return Table(suite.title, head, cells, notes)


def _key(row: Row) -> Key:
    masks = row.stands_for or (0 if row.masks == "all" else row.masks)
    defaults = method_class(row.method).Config().model_dump()
    return row.method, masks, frozenset(item for item in row.settings.items() if defaults.get(item[0]) != item[1])


def _ours(row: Row, results: Sequence[Result]) -> Ours:
    spreads = {name: _spread([result.rows for result in results], column) for name, column in MEASURES.items()}
    recipe = results[0].recipe
    return Ours(
        **spreads,
        seeds=len(results),
        failed=sum(num_failed(result.rows) for result in results),
        labelled=len(recipe.labelled),
        unlabelled=len(recipe.unlabelled),
        name=row.name or (row.slug.replace("_", " ") if row.settings else ""),
    )


def _spread(runs: Sequence[Sequence[ScoreRow]], column: str) -> Spread:
    """Over cases, each one's mean over seeds and classes first; a miss is inf. Both masks empty, rightly so, is an
    overlap of 1, as in every comparison, and no distance."""
    values: dict[str, list[float]] = {}
    for rows in runs:
        for row in rows:
            if row[column] or not is_distance(column):
                values.setdefault(row["case"], []).append(float(row[column] or 1))
    means = [fmean(of_case) for of_case in values.values()]
    if not means or not all(map(math.isfinite, means)):
        return Spread(None, None)
    return Spread(fmean(means), stdev(means) if len(means) > 1 else None)


def _number(spread: Spread) -> str:
    return "∞" if spread.mean is None else f"{spread.mean:.3f}" + (f" ± {spread.std:.3f}" if spread.std else "")


def _setting(results: Sequence[Result]) -> str:
    recipes = [result.recipe for result in results]
    cases = len({row["case"] for row in results[0].rows})
    spacing = " x ".join(f"{step:g}" for step in recipes[0].plan.spacing_mm)
    scans = max(len(recipe.labelled) + len(recipe.unlabelled) for recipe in recipes)
    lengths, widths = (
        " or ".join(map(str, sorted(values)))
        for values in ({recipe.iterations for recipe in recipes}, {recipe.config["width"] for recipe in recipes})
    )
    return (
        f"{scans} scans for training at {spacing} mm, {lengths} iterations, width {widths}, "
        f"last iteration, no component filter, {cases} test cases."
    )
