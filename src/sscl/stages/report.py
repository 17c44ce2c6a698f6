"""`report`: run folders to one HTML file. Reads what train, predict and evaluate left; what is not there, it names."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from sscl.core.errors import UserError
from sscl.core.files import read_text, write_text
from sscl.engine.run import RECIPE
from sscl.metrics.border import wrong_voxels
from sscl.metrics.table import definitions
from sscl.report import figures, html, statistics, tables
from sscl.stages.reading import (
    RunFolder,
    by_experiment,
    read_prediction,
    read_run,
    read_scan,
    require_same_references,
    short_names,
)

MAX_PICTURED = 24
"""Cases with pictures, the worst ones; the table has all."""


def report(runs: Sequence[Path], out: Path) -> Path:
    """Write one offline HTML file about `runs`: scores, differences, curves, pictures of the wrong voxels, recipes.

    Masks are opened only for cases that `evaluate` has scored. What is missing is said in the page.

    Raises:
        UserError: no run, the same twice, a folder that is no run, a damaged file in it, runs that were scored against
            different reference masks, or `out` is a folder or a file that is no report.
    """
    if out.is_dir():
        raise UserError(f"{out} is a folder. Give the name of the report's file, for instance {out / 'report.html'}.")
    if out.exists() and not (out.is_file() and html.is_page(out)):
        raise UserError(f"{out}: is not a page of `sscl report`, and would be overwritten. Choose another file.")
    read = [read_run(path, name) for path, name in short_names(runs).items()]
    require_same_references((run.name, run.scored_against) for run in read)
    notes = [note for run in read for note in _missing(run)]
    groups = by_experiment(read, notes)
    page = html.Page(
        version=version("sscl"),
        runs=[_shown(run) for run in read],
        measures=tuple(tables.SHOWN.values()),
        definitions=list(dict.fromkeys(run.definitions for run in read if run.definitions)) or [definitions(())],
        comparisons=_comparisons(groups, notes),
        cases=_cases(read, [next(iter(group.values())) for group in groups.values()], notes),
        notes=notes,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, html.render(page))
    return out


def _missing(run: RunFolder) -> list[str]:
    if not run.predictions.is_dir():
        return [f"{run.name}: no predictions yet (`sscl predict`), hence no scores and no pictures."]
    return [] if run.dice else [f"{run.name}: predicted, but not evaluated (`sscl evaluate`), hence no scores."]


def _shown(run: RunFolder) -> html.Run:
    return html.Run(
        name=run.name,
        method=run.recipe.method,
        seed=str(run.recipe.seed),
        lines=tables.score_lines(run.summary),
        curves=figures.curves(run.records) if run.records else "",
        recipe=read_text(run.path / RECIPE),
    )


def _comparisons(groups: Mapping[str, Mapping[int, RunFolder]], notes: list[str]) -> list[html.Comparison]:
    """Every experiment against the baseline: the first `vnet`, or else the first."""
    dice = {name: {seed: run.dice for seed, run in seeds.items()} for name, seeds in groups.items()}
    baseline = next((name for name in groups if name.split(" ")[0] == "vnet"), next(iter(groups), ""))
    found = []
    for name in groups:
        if name != baseline:
            try:
                interval = statistics.paired_difference(dice[name], dice[baseline])
                found.append(html.Comparison(name, baseline, interval))
            except UserError as error:
                notes.append(f"{name} and {baseline} are not compared. {error}")
    return found


def _cases(runs: Sequence[RunFolder], pictured: Sequence[RunFolder], notes: list[str]) -> list[html.Case]:
    """All scored cases, worst first; pictures from the first seed of every experiment."""
    dice = {case: [run.dice.get(case) for run in runs] for run in runs for case in run.dice}
    order = sorted(dice, key=lambda case: (_mean(dice[case]), case))
    if len(order) > MAX_PICTURED:
        notes.append(f"Pictures of the {MAX_PICTURED} worst of {len(order)} cases; the table below them has all.")
    if len(pictured) < sum(bool(run.dice) for run in runs):
        notes.append(f"Pictures of one run of each experiment: {', '.join(run.name for run in pictured)}.")
    views: dict[str, list[html.View]] = {}
    failures = []
    for case in order[:MAX_PICTURED]:
        try:
            views[case] = _views(case, [run for run in pictured if case in run.dice])
        except UserError as error:
            failures.append(f"{case}: {error}")
    if failures:
        notes.append(f"{len(failures)} of {len(order)} cases have no picture. {failures[0]}")
    return [html.Case(case, dice[case], views.get(case, ())) for case in order]


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


def _views(case: str, runs: Sequence[RunFolder]) -> list[html.View]:
    """Pictures of one case by each run that has a prediction of it; all in the same slices."""
    present = [run for run in runs if run.prediction(case).is_file()]
    if not present:
        return []
    image, reference, ignore = read_scan(case, present[0])
    wrong = [wrong_voxels(read_prediction(case, run, image), reference, ignore) for run in present]
    organ = (reference != 0) & (reference != ignore)
    point = figures.view_point(wrong, organ)
    box = figures.view_box(organ | sum(wrong[1:], start=wrong[0]), image.spacing_mm)
    return [
        html.View(
            run=run.name,
            dice=run.dice[case],
            wrong=int(mask.sum()),
            pictures=figures.three_planes(image.array[0], reference, mask, point, box, image.spacing_mm),
        )
        for run, mask in zip(present, wrong, strict=True)
    ]
