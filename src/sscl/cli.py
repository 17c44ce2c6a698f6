"""The command line: arguments in, stages out. The only file that prints."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from sscl import __version__
from sscl.core.config import parse_settings
from sscl.core.errors import UserError
from sscl.core.interrupt import Interrupted


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Whoever read along has gone (`| head -1`); the work goes on."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


out = _Console(soft_wrap=True)
err = _Console(stderr=True, soft_wrap=True)
app = App(
    name="sscl",
    version=__version__,
    help="Segmentation of 3-D medical scans from a handful of masks and many unlabelled scans.",
    help_on_error=False,
    default_parameter=Parameter(negative=()),
)

Out = Annotated[Path, Parameter(name=["--out", "-o"])]
Settings = Annotated[tuple[str, ...], Parameter(name="--set", show_default=False)]
Device = Annotated[str, Parameter(help="auto, cpu, cuda, cuda:N or mps.")]
Precision = Annotated[Literal["auto", "float32", "bf16"], Parameter(help="auto: bf16 on a GPU that has it.")]
Threads = Annotated[int | None, Parameter(help="CPU threads; OMP_NUM_THREADS or all if not given.")]
PLAIN_LINES = 20
"""Progress lines of a run that does not write to a terminal."""


@app.command
def prepare(
    source: Path,
    /,
    *,
    out: Out,
    preset: str | None = None,
    split: Path | None = None,
    labelled: str | None = None,
    unlabelled: str | None = None,
    development: str | None = None,
    test: str | None = None,
    images: Path | None = None,
    labels: Path | None = None,
    set_: Settings = (),
) -> None:
    """Check a folder of scans and masks, plan, and fill the case store.

    A scan without a mask is an unlabelled case. Layouts: nnU-Net v2 and Medical Segmentation Decathlon, two folders
    matched by name, the left-atrium benchmark.

    Args:
        source: The folder, as it is.
        out: The data set to make.
        preset: la, la-quick, pancreas, kits19, ... (docs/data.md). Without one, the labelled scans make the plan.
        split: JSON file with the lists labelled, unlabelled, development, test; or nnU-Net's splits_final.json.
        labelled: How many cases to train on with their masks, or which: 8, first:8, 1:8.
        unlabelled: How many or which to train on without; imagesTs for that folder.
        development: Which to choose settings on: last:20, 51:60.
        test: Which to hold out for the final figures.
        images: With --labels, two folders whose files are matched by name.
        labels: The other one.
        set_: Any value of the plan: --set patch=96,96,64 --set spacing_mm=1,1,2.
    """
    from sscl.stages.prepare import prepare as run

    result = run(
        source, out, preset=preset, split_file=split, labelled=_number_or_range(labelled),
        unlabelled=_number_or_range(unlabelled), development=development, test=test, images=images, labels=labels,
        settings=parse_settings(set_),
    )  # fmt: skip
    _say(f"{result.out}: {'already prepared' if result.skipped else 'prepared'}. Next: sscl train {result.out} -o RUN")


@app.command
def train(
    dataset: Path | None = None,
    /,
    *,
    out: Out | None = None,
    method: str = "sscl",
    iterations: int | None = None,
    minutes: float | None = None,
    schedule: Literal["shared", "literature"] = "shared",
    seed: int = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = None,
    workers: int = 0,
    checkpoint_minutes: float = 5.0,
    tensorboard: bool = False,
    dry_run: bool = False,
    explain: bool = False,
    set_: Settings = (),
) -> None:
    """Train a method on a prepared data set. The same command again goes on where the last one stopped.

    Args:
        dataset: A folder that `sscl prepare` made.
        out: The run folder.
        method: See `sscl methods`.
        iterations: Length of the run, all phases together; the preset's, else 34000.
        minutes: Instead: time some steps and choose the number of iterations.
        schedule: shared: the preset's budget; literature: optimiser, iterations and ramps of the method's own paper.
        seed: Of initial weights, crops and noise.
        workers: Loader processes; the batches are the same.
        checkpoint_minutes: How often to save.
        tensorboard: Also write RUN/tensorboard.
        dry_run: Only tell time, memory and disk.
        explain: Only print the method's equations, settings and defaults; needs no data set.
        set_: Any setting of the method: --set lam=1.0 --set optimiser.learning_rate=0.005.
    """
    from sscl.stages import train as stage

    if explain:
        from sscl.stages.explain import explain as explained

        text, rows = explained(method)
        _say(text + "\n")
        return _table(rows)
    if dataset is None:
        raise UserError("train needs a data set that `sscl prepare` made: sscl train DATASET -o RUN.")
    settings = parse_settings(set_)
    if dry_run:
        cost = stage.dry_run(
            dataset, method=method, settings=settings, iterations=iterations, minutes=minutes, schedule=schedule,
            device=device, precision=precision, threads=threads,
        )  # fmt: skip
        _say(
            f"{cost.iterations} iterations at {cost.seconds_per_iteration:.2f} s: {_duration(cost.seconds)}; "
            f"memory {cost.peak_memory_bytes / 2**30:.1f} GiB; disk {cost.disk_bytes / 2**20:.0f} MiB"
        )
        return
    if out is None:
        raise UserError("train needs -o RUN, the run folder to write.")
    with _training_progress(method) as on_step:
        recipe = stage.train(
            dataset, out, method=method, settings=settings, iterations=iterations, minutes=minutes, schedule=schedule,
            seed=seed, device=device, precision=precision, threads=threads, workers=workers,
            checkpoint_minutes=checkpoint_minutes, tensorboard=tensorboard, on_step=on_step,
        )  # fmt: skip
    _say(f"{out}: {recipe.iterations} iterations of {method}. Next: sscl predict {out} SCANS -o MASKS")


@app.command
def export(run: Path, /, *, out: Out) -> None:
    """Write the finished model of a run: weights (safetensors) and model.json, all that `predict` needs elsewhere."""
    from sscl.stages.model import export as stage

    _say(f"{stage(run, out)}: exported. Next: sscl predict {out} SCANS -o MASKS")


@app.command
def info(model: Path, /) -> None:
    """What an exported model is: method, labels, plan, training, versions; its weights are verified."""
    import yaml

    from sscl.stages.model import info as stage

    print(yaml.safe_dump(stage(model), sort_keys=False, allow_unicode=True), end="")


@app.command
def predict(
    model: Path,
    /,
    *inputs: Path,
    out: Out | None = None,
    split: str = "test",
    stride: tuple[int, int, int] | None = None,
    weighting: Literal["average", "gaussian"] | None = None,
    probabilities: bool = False,
    largest_component: bool = False,
    batch: int = 4,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = None,
) -> None:
    """Masks for scans, on each scan's own grid. Finished cases are skipped when run again.

    Args:
        model: A run folder or an exported model.
        inputs: Scans, folders of scans, or a prepared data set; for a run, its data set if none is given.
        out: Where to write CASE.nii.gz; RUN/predictions if not given.
        split: Which list of a prepared data set: labelled, unlabelled, development, test.
        stride: Steps between windows, voxels; the plan's if not given.
        weighting: How overlapping windows are averaged.
        probabilities: Also write CASE.npz with the class probabilities.
        largest_component: Keep only each class's largest connected part.
        batch: Windows a network call.
    """
    from sscl.stages.predict import default_inputs
    from sscl.stages.predict import predict as stage

    sources = list(inputs) or default_inputs(model)
    target = model / "predictions" if out is None else out
    masks = stage(
        model, sources, target, split=split, stride=stride, weighting=weighting, probabilities=probabilities,
        largest_component=largest_component, batch=batch, device=device, precision=precision, threads=threads,
        on_case=lambda case, number, total: err.print(f"{number}/{total} {escape(case)}", highlight=False),
    )  # fmt: skip
    _say(f"{target}: {len(masks)} masks. Next: sscl evaluate {target} REFERENCE_MASKS")


@app.command
def evaluate(
    prediction: Path,
    reference: Path,
    /,
    *,
    out: Out | None = None,
    split: str = "test",
    tolerance_mm: float = 2.0,
    spacing_mm: tuple[float, float, float] | None = None,
) -> None:
    """Dice, Jaccard, 95HD, ASD, NSD and volumes per case and class, in two named conventions.

    Args:
        prediction: Folder of predicted masks.
        reference: Folder of true masks, or a prepared data set, of which the cases of --split are due.
        out: Where to write scores.csv and summary.csv; PREDICTION/scores if not given.
        split: List of the prepared data set. Each opening of `test` is noted in its openings.jsonl.
        tolerance_mm: Of the normalised surface distance.
        spacing_mm: Voxel size of mask files that hold none.
    """
    from sscl.metrics.table import summary_table
    from sscl.stages.evaluate import evaluate as stage

    result = stage(prediction, reference, out, split=split, tolerance_mm=tolerance_mm, spacing_mm=spacing_mm)
    _table(summary_table(result.summary))
    _say(result.definitions)
    _say(f"{result.out}: scores.csv, summary.csv")


@app.command
def report(*runs: Path, out: Out = Path("report.html")) -> None:
    """One offline HTML file: scores, curves, and per case a picture of the wrong voxels."""
    from sscl.stages.report import report as stage

    if not runs:
        raise UserError("report needs at least one run folder.")
    _say(f"{stage(runs, out)}: open it in a browser")


@app.command
def demo(*, out: Out = Path("demo"), minutes: float = 4.0, seed: int = 0) -> None:
    """The whole path on embedded virtual patients: 24 scans, 4 masks; V-Net and SSCL compared on 8 held-out scans.

    Args:
        out: Folder for data, runs and report.
        minutes: Time for both trainings together.
        seed: Of both trainings.
    """
    from sscl.studies.demo import demo as study

    with _training_progress("demo") as on_step:
        result = study(out, minutes=minutes, seed=seed, on_step=on_step)
    _table(result.table)
    for line in result.lines:
        _say(line)


@app.command
def doctor() -> None:
    """Device, memory, torch build, and what will run."""
    from sscl.stages.doctor import doctor as stage

    for row in stage():
        _say(f"{row.topic:12} {row.value}" + (f"\n{'':12} -> {row.advice}" if row.advice else ""))


@app.command
def methods() -> None:
    """The methods: name, year, what they train, time of a step relative to vnet, paper."""
    from sscl.methods import METHODS

    rows = [[n, str(e.year or "-"), e.trains, f"{e.cost:.1f}", e.paper] for n, e in METHODS.items()]
    _table([["method", "year", "trains", "cost", "paper"], *rows])


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for a mistake in the input, 128 + signal for an interrupted run."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, handlers=[_Log()])
    for noisy in ("numexpr", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        app(arguments, exit_on_error=False, print_error=False)
    except (UserError, CycloptsError) as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename or 'the system'}: {error.strerror or error}.")
    except SystemExit as end:  # cyclopts ends every command so
        return int(end.code or 0)
    except KeyboardInterrupt:
        return 130
    except Interrupted as error:
        err.print(escape(str(error)) + ". The same command goes on from there.")
        return 128 + error.number
    return 0


def _fail(message: str) -> int:
    err.print(f"[bold red]error:[/] {escape(message)}", highlight=False)
    return 2


class _Log(logging.Handler):
    """Library messages as plain lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        mark = "[yellow]warning:[/] " if record.levelno >= logging.WARNING else ""
        err.print(mark + escape(record.getMessage()), highlight=False)


def _say(text: str) -> None:
    out.print(escape(text), highlight=False)


def _table(rows: list[list[str]]) -> None:
    """A table, the first row its head; where no terminal reads it, a line a row, columns apart by two spaces."""
    if not out.is_terminal:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            _say("  ".join(map(str.ljust, row, widths)).rstrip())
        return
    table = Table(*rows[0])
    for row in rows[1:]:
        table.add_row(*map(escape, row))
    out.print(table)


def _number_or_range(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.isdigit() else text


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:.1f} h" if hours >= 2 else f"{minutes:.1f} min" if minutes >= 1 else f"{seconds:.0f} s"


@contextmanager
def _training_progress(title: str) -> Iterator[Callable[[dict[str, Any], int], None]]:
    """A bar with time left on a terminal; otherwise plain lines, some twenty a run."""
    if not err.is_terminal:
        yield _plain_lines()
        return
    phase, losses = TextColumn("{task.description}"), TextColumn("{task.fields[losses]}")
    columns = (phase, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), losses)
    with Progress(*columns, console=err) as bar:
        task = bar.add_task(title, total=None, losses="")

        def on_step(log: dict[str, Any], total: int) -> None:
            bar.update(task, completed=log["iteration"] + 1, total=total, losses=_losses(log), description=log["phase"])

        yield on_step


def _plain_lines() -> Callable[[dict[str, Any], int], None]:
    first: list[tuple[int, float]] = []

    def on_step(log: dict[str, Any], total: int) -> None:
        done = log["iteration"] + 1
        if not first or done <= first[0][0]:
            first[:] = [(done, time.monotonic())]
        elif done == total or done % max(1, total // PLAIN_LINES) == 0:
            pace = (time.monotonic() - first[0][1]) / (done - first[0][0])
            err.print(
                f"{log['phase']} {done}/{total}, {_duration(pace * (total - done))} left, {_losses(log)}",
                highlight=False,
            )

    return on_step


def _losses(log: dict[str, Any]) -> str:
    return "  ".join(f"{key} {value:.3f}" for key, value in log.items() if key.endswith("/loss"))


if __name__ == "__main__":
    sys.exit(main())
