"""`figures`: evaluated runs to the paper's figures 1 and 5, and to the rates of wrong voxels at the border."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sscl.core.errors import UserError, unknown
from sscl.core.files import write_atomic
from sscl.metrics.border import border_counts, near_border
from sscl.report import paper_figures
from sscl.report.border import CaseRow, border_csv, border_table, rate_rows
from sscl.report.layout import markdown
from sscl.stages.folder import refuse_foreign
from sscl.stages.reading import (
    RunFolder,
    by_experiment,
    read_prediction,
    read_reference,
    read_run,
    read_scan,
    require_same_references,
    short_names,
)

Experiments = Mapping[str, Mapping[int, RunFolder]]


def figures(runs: Sequence[Path], out: Path, cases: Sequence[str] | None = None) -> list[Path]:
    """Write fig1_<case>.png, fig5_<case>.png, border.csv, border.md and border.svg to the folder `out`.

    The figures of a case show the first run of each experiment (runs that differ in their seed only are one). The
    border's files rest on all scored cases of all runs; differences are to the experiment of the first run.
    cases: to draw; None: the one with the median Dice of the first run (of an even number the lower of the middle two).

    Returns:
        the files written.

    Raises:
        UserError: no run, the same twice, a folder that is no run or was not evaluated, runs of different cases, a case
            that was not scored, a mask that is missing, a scan that is gone, or `out` holds something else.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file. Give a folder for the figures.")
    refuse_foreign(out, "figures")
    read = [read_run(path, name) for path, name in short_names(runs).items()]
    _require_comparable(read)
    notes: list[str] = []
    experiments = by_experiment(read, notes)
    chosen = _chosen(cases, read[0])
    rows = _case_rows(experiments)
    rates = rate_rows(rows)
    files = {
        "border.csv": border_csv(rows).encode(),
        "border.md": markdown(border_table(rates, notes)).encode(),
        "border.svg": paper_figures.border_rates(rates),
    }
    shown = {name: next(iter(seeds.values())) for name, seeds in experiments.items()}
    for case in chosen:
        files |= _drawn(case, shown)
    out.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        _write(out / name, data)
    return [out / name for name in files]


def _write(path: Path, data: bytes) -> None:
    write_atomic(path, lambda file: file.write(data))


def _require_comparable(runs: Sequence[RunFolder]) -> None:
    """All were evaluated, on the same cases and against the same masks, and every case was predicted: silence is not a
    correct answer."""
    for run in runs:
        if not run.dice:
            raise UserError(
                f"{run.name}: not evaluated. Run `sscl predict` and `sscl evaluate` first; a record has no masks."
            )
        if odd := sorted(run.dice.keys() ^ runs[0].dice.keys()):
            raise UserError(
                f"{', '.join(odd)}: not scored in both {runs[0].name} and {run.name}. Score the same cases."
            )
        if missing := [case for case in sorted(run.dice) if not run.prediction(case).is_file()]:
            raise UserError(f"{run.name}: no prediction of {', '.join(missing)}. Run `sscl predict` again.")
    require_same_references((run.name, run.scored_against) for run in runs)


def _chosen(cases: Sequence[str] | None, first: RunFolder) -> Sequence[str]:
    """The cases to draw."""
    if cases is None:
        order = sorted(first.dice, key=lambda case: (first.dice[case], case))
        return [order[(len(order) - 1) // 2]]
    for case in cases:
        if case not in first.dice:
            raise unknown("case", case, sorted(first.dice))
    return cases


def _case_rows(experiments: Experiments) -> list[CaseRow]:
    """Every case of every run, run by run. A reference is opened once for all runs."""
    runs = [(name, seed, run) for name, seeds in experiments.items() for seed, run in seeds.items()]
    first = runs[0][2]
    counts = {}
    for case in first.dice:
        reference, ignore = read_reference(case, first)
        labels = reference.array[0]
        near = near_border(labels, ignore)
        for _, _, run in runs:
            counts[run.name, case] = border_counts(read_prediction(case, run, reference), labels, near, ignore)
    return [
        CaseRow(run.name, name, seed, case, counts[run.name, case], case in run.failed)
        for name, seed, run in runs
        for case in run.dice
    ]


def _drawn(case: str, runs: Mapping[str, RunFolder]) -> dict[str, bytes]:
    """Figures 1 and 5 of a case, by file name."""
    image, reference, ignore = read_scan(case, next(iter(runs.values())))
    predictions = {name: read_prediction(case, run, image) for name, run in runs.items()}
    scene = (image.array[0], reference, predictions, image.spacing_mm, ignore)
    return {
        f"fig1_{case}.png": paper_figures.error_maps(*scene),
        f"fig5_{case}.png": paper_figures.side_by_side(*scene),
    }
