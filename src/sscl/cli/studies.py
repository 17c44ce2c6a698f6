"""The commands that are several runs and their comparison."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.markup import escape

from sscl.cli.console import Device, Out, app, err, say, table, training_progress
from sscl.core.errors import UserError

if TYPE_CHECKING:
    from sscl.studies.benchmark import Planned
    from sscl.studies.suites import Suite


@app.command
def demo(*, out: Out = Path("demo"), minutes: float = 4.0, seed: int = 0) -> None:
    """The whole path on embedded virtual patients: 24 scans, 4 masks; V-Net and SSCL compared on 8 held-out scans.

    Args:
        out: Folder for data, runs and report.
        minutes: Time for both trainings together.
        seed: Of both trainings.
    """
    from sscl.studies.demo import demo as study

    with training_progress("demo") as on_step:
        result = study(out, minutes=minutes, seed=seed, on_step=on_step)
    table(result.table)
    for line in result.lines:
        say(line)


@app.command
def benchmark(
    suite: str,
    source: Path | None = None,
    /,
    *,
    out: Out | None = None,
    preset: str | None = None,
    pool: str | None = None,
    development: str | None = None,
    test: str | None = None,
    seeds: tuple[int, ...] = (),
    only: tuple[str, ...] = (),
    iterations: int | None = None,
    records: Path | None = None,
    jobs: int = 1,
    slurm: bool = False,
    slurm_set: Annotated[tuple[str, ...], Parameter(name="--slurm-set", show_default=False)] = (),
    device: Device = "auto",
    dry_run: bool = False,
) -> None:
    """Methods x masks x seeds as one command; it goes on where it was stopped. Tables beside the paper's numbers.

    Args:
        suite: table1 to table6, fig6: the paper's own; or a YAML file with title, preset, and rows of method, masks.
        source: The folder of scans; without it, the rows and their hours on one GPU are listed, of a suite or --preset
            with a length.
        out: Folder for data sets, runs, records and tables.
        preset: Instead of the suite's: la-quick for table1 on a CPU.
        pool: Cases for training, of which the first have masks: 1:50; all that are not held out if not given.
        development: Cases to leave alone: 51:60.
        test: Cases to score: 61:80; the layout's or preset's list if not given.
        seeds: Instead of the suite's: --seeds 0 --seeds 1.
        only: Only runs whose names begin so: --only sscl_8. Tables have all that is done all the same.
        iterations: Instead of the preset's.
        records: Where finished runs are kept and looked for; OUT/records if not given.
        jobs: Runs at a time on this machine; they share its cores.
        slurm: Hand each run to SLURM instead, and make the tables of what is done; needs pip install 'sscl[slurm]'.
        slurm_set: What each job asks for, as sbatch calls it: --slurm-set partition=gpu --slurm-set time=720. If not
            given, time=1440 minutes, cpus_per_task=4 and gpus_per_node=1.
        dry_run: Prepare, then only list the commands, what is done, and the time.
    """
    from sscl.studies import benchmark as study
    from sscl.studies.cluster import read_resources, submit
    from sscl.studies.suites import find_suite
    from sscl.studies.tables import results, suite_table, write_tables

    chosen = find_suite(suite)
    if source is None:
        return _say_hours(chosen, preset)
    if out is None:
        raise UserError("benchmark needs -o OUT, the folder for data sets, runs and records.")
    if slurm_set and not slurm:
        raise UserError("--slurm-set has no effect without --slurm. Add it, or leave both out.")
    resources = read_resources(slurm_set)
    cases = study.Cases(pool, development, test)
    planned = study.plan(
        chosen, source, out, cases, preset=preset, seeds=seeds or None, iterations=iterations, records=records,
        device=device, elsewhere=slurm,
    )  # fmt: skip
    wanted = study.chosen(planned, only)
    _say_plan(wanted)
    if dry_run:
        return
    outcomes: list[study.Outcome] = []
    if slurm:
        for line in submit(wanted, out / "slurm", resources):
            say(line)
    else:
        outcomes = study.run(
            wanted, jobs,
            lambda end: err.print(f"{end.planned.job.name}: {escape(end.error) or 'done'}", highlight=False),
            lambda item: err.print(f"{item.job.name}: begins; {study.log_of(item.job)}", highlight=False),
        )  # fmt: skip
    if done := results(planned):
        shown = suite_table(chosen, done)
        say("")
        table([list(shown.head), *([cell.text for cell in row] for row in shown.cells())])
        say("Footnotes and caveats stand below the table in these files:")
    for path in write_tables(chosen, done, out / "tables"):
        say(str(path))
    if failed := [outcome for outcome in outcomes if outcome.error]:
        raise UserError(f"{len(failed)} of {len(outcomes)} runs failed; the same command tries them again.")


@app.command
def compare(*runs: Path) -> None:
    """Did the unlabelled scans help, and how sure is that? In words and numbers.

    Args:
        runs: Scored run folders, records, or folders of them.
    """
    from sscl.studies.compare import compare as study

    if not runs:
        raise UserError("compare needs scored runs: sscl compare RUN ...")
    result = study(runs)
    table(result.table)
    say("\n" + result.note)
    if result.curve:
        say("\nMean Dice by the number of masks")
        table(result.curve)
    for answer in result.answers:
        say("\n" + answer)


@app.command
def figures(*runs: Path, out: Out = Path("figures"), case: tuple[str, ...] = ()) -> None:
    """Wrong voxels per method, masks side by side in 2-D and 3-D, and error rates near the border and elsewhere.

    Args:
        runs: Scored run folders; rates are compared with the first one's.
        out: Folder for the pictures and tables.
        case: Which test cases to draw; the one with the median Dice if not given.
    """
    from sscl.stages.figures import figures as stage

    if not runs:
        raise UserError("figures needs scored run folders: sscl figures RUN ...")
    for path in stage(runs, out, case or None):
        say(str(path))


def _say_hours(suite: "Suite", preset: str | None) -> None:
    from sscl.studies.benchmark import FLOP_PER_SECOND, outline
    from sscl.studies.job import Job
    from sscl.studies.tables import printed

    rows = outline(suite, preset)
    for row, hours in rows:
        name, paper = row.name or row.slug, printed(suite, row)
        say(f"# {name}, {row.masks} masks: {hours:.3g} GPU hours a seed; paper: Dice {paper}")
        say(Job(name="", dataset="DATASET", run="RUN", record="", method=row.method, settings=row.settings).commands[0])
    say(
        f"# {sum(hours for _, hours in rows):.3g} hours on one GPU a seed: an estimate, not run: operations of the "
        f"V-Net of width 16 at {FLOP_PER_SECOND / 1e12:g} TFLOP/s, times each method's cost with its own settings. "
        "`sscl benchmark SUITE SCANS -o OUT` runs it."
    )


def _say_plan(planned: "Sequence[Planned]") -> None:
    for item in planned:
        say(f"# {item.job.name}: {'done' if item.done else f'{item.hours:.2g} GPU hours (estimate, not run)'}")
        for command in () if item.done else item.job.commands:
            say(command)
    left = [item.hours for item in planned if not item.done]
    say(f"# {len(left)} of {len(planned)} runs left: {sum(left):.2g} GPU hours (estimate, not run)")
