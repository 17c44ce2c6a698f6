"""The commands that are one stage each: arguments in, stage out."""

from collections.abc import Sequence
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Any, Literal

from cyclopts import Parameter
from rich.markup import escape

from sscl.cli.console import (
    Device,
    Out,
    Precision,
    Settings,
    Threads,
    app,
    err,
    following,
    say,
    table,
    training_progress,
)  # fmt: skip
from sscl.core.config import parse_settings
from sscl.core.errors import UserError
from sscl.engine.progress import duration

NEW_SCANS = ("NEW_SCANS", "-o", "masks")
"""What `predict` is told where there are no test cases."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Request:
    """What `check` and `prepare` are asked of a folder of scans.

    Attributes:
        preset: la, la-quick, pancreas, kits19, ... (docs/data.md). Without one, the labelled scans make the plan.
        split: JSON file with the lists labelled, unlabelled, development, test; or nnU-Net's splits_final.json.
        labelled: How many cases to train on with their masks, the first by name or of the source's or preset's list: 8;
            or which: first:8, 1:8. Not given: all that have a mask and are in no other list.
        unlabelled: How many or which to train on without; imagesTs for that folder.
        development: Which to choose settings on: last:20, 51:60.
        test: Which to hold out for the final figures.
        images: With --labels, two folders whose files are matched by name.
        labels: The other one.
        set_: Any value of the plan: --set patch=96,96,64 --set spacing_mm=1,1,2.
    """

    preset: str | None = None
    split: Path | None = None
    labelled: str | None = None
    unlabelled: str | None = None
    development: str | None = None
    test: str | None = None
    images: Path | None = None
    labels: Path | None = None
    set_: Settings = ()

    def arguments(self) -> dict[str, Any]:
        """As the stages take them."""
        return {
            "preset": self.preset, "split_file": self.split, "labelled": number_or_range(self.labelled),
            "unlabelled": number_or_range(self.unlabelled), "development": self.development, "test": self.test,
            "images": self.images, "labels": self.labels, "settings": parse_settings(self.set_),
        }  # fmt: skip


NOTHING_ASKED = Request()


@app.command
def check(
    source: Path,
    /,
    *,
    out: Out | None = None,
    json: bool = False,
    request: Request = NOTHING_ASKED,
) -> None:
    """Tell everything that is wrong with a folder of scans and masks; it is left untouched. Exit code 2 for errors.

    Damaged files, geometry, label values, intensities, copies, leaks between the lists, masks that look misplaced.
    `sscl prepare` begins with the same and stops at errors. The masks of unlabelled cases stay closed.

    Args:
        source: The folder, as it is.
        out: JSON file to keep the findings in; given again, files that did not change are not read again.
        json: Print the findings as JSON.
    """
    from sscl.stages.check import check as run
    from sscl.stages.check import level

    result = run(source, out, **request.arguments())
    if json:
        say(dumps(result.to_json(), indent=1))
    else:
        if result.findings:
            found = [(level(finding), finding.message) for finding in result.findings]
            table([["level", "finding"], *gathered(found)])
        errors, cases = result.errors, sum(result.cases.values())
        again = f" ({result.unchanged} unchanged since the last check)" if result.unchanged else ""
        say(f"{source}: {cases} cases{again}, {errors} errors, {len(result.findings) - errors} warnings")
    if result.errors:
        raise SystemExit(2)


@app.command
def prepare(
    source: Path,
    /,
    *,
    out: Out | None = None,
    request: Request = NOTHING_ASKED,
) -> None:
    """Check a folder of scans and masks, plan, and fill the case store.

    A scan without a mask is an unlabelled case. Layouts: nnU-Net v2 and Medical Segmentation Decathlon, two folders
    matched by name, the left-atrium benchmark.

    Args:
        source: The folder, as it is.
        out: The data set to make.
    """
    from sscl.stages.prepare import prepare as run

    if out is None:
        raise UserError(f"prepare needs -o DATASET, the data set to make: sscl prepare {source} -o DATASET.")
    result = run(source, out, **request.arguments())
    done = "already prepared" if result.skipped else "prepared"
    say(f"{result.out}: {done}. {following('train', result.out, '--method', 'sscl', '-o', 'runs/sscl')}")


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
    validation: int = 0,
    seed: int = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = None,
    workers: int = 0,
    checkpoint_minutes: float = 5.0,
    tensorboard: bool = False,
    resume: bool = False,
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
        schedule: shared: the preset's budget; literature: optimiser, iterations and ramps of the method's own paper,
            steps of the learning rate and ramps scaled to --iterations.
        validation: Labelled cases, the last ones, that are not trained on but for finding the run's best weights, which
            `predict --select best` uses.
        seed: Of initial weights, crops and noise.
        workers: Loader processes; the batches are the same.
        checkpoint_minutes: How often to save.
        tensorboard: Also write RUN/tensorboard.
        resume: Only go on: refuse a folder, perhaps mistyped, that holds no begun run.
        dry_run: Only time some steps, and tell time, memory and disk of the whole run.
        explain: Only print the method's equations, settings and defaults; needs no data set.
        set_: Any setting of the method: --set lam=1.0 --set optimiser.learning_rate=0.005.
    """
    from sscl.stages import train as stage
    from sscl.stages.dataset import open_dataset

    if explain:
        if set_:
            raise UserError("--explain prints defaults; --set has no effect on it. Leave one of them out.")
        from sscl.stages.explain import explain as explained

        text, rows = explained(method)
        say(text + "\n")
        return table(rows)
    if dataset is None:
        raise UserError("train needs a data set that `sscl prepare` made: sscl train DATASET -o RUN.")
    settings = parse_settings(set_)
    if dry_run:
        cost = stage.dry_run(
            dataset, method=method, settings=settings, iterations=iterations, minutes=minutes, schedule=schedule,
            validation=validation, device=device, precision=precision, threads=threads,
        )  # fmt: skip
        say(
            f"{cost.iterations} iterations at {cost.seconds_per_iteration:.2f} s: {duration(cost.seconds)}; "
            f"memory {cost.peak_memory_bytes / 2**30:.1f} GiB; disk {cost.disk_bytes / 2**20:.0f} MiB"
        )
        return
    if out is None:
        raise UserError("train needs -o RUN, the run folder to write.")
    with training_progress(method) as on_step:
        recipe = stage.train(
            dataset, out, method=method, settings=settings, iterations=iterations, minutes=minutes, schedule=schedule,
            validation=validation, seed=seed, device=device, precision=precision, threads=threads, workers=workers,
            checkpoint_minutes=checkpoint_minutes, tensorboard=tensorboard,
            resume=resume, on_step=on_step,
        )  # fmt: skip
    scans = () if open_dataset(dataset).split.test else NEW_SCANS
    say(f"{out}: {recipe.iterations} iterations of {method}. {following('predict', out, *scans)}")


@app.command
def export(run: Path, /, *, out: Out | None = None, select: Literal["last", "best"] = "last") -> None:
    """Write the finished model of a run: weights (safetensors) and model.json, all that `predict` needs elsewhere.

    Args:
        run: The run folder.
        out: The model folder to make.
        select: Its last weights, or those best on the cases of `train --validation`.
    """
    from sscl.stages.model import export as stage

    if out is None:
        raise UserError(f"export needs -o MODEL, the folder to make: sscl export {run} -o MODEL.")
    say(f"{stage(run, out, select)}: the model of {run}. {following('predict', out, *NEW_SCANS)}")


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
    select: Literal["last", "best"] | None = None,
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
        select: Of a run, its last weights (if not given), or those best on the cases of `train --validation`.
        split: Which list of a prepared data set: labelled, unlabelled, development, test.
        stride: Steps between windows, voxels; the plan's if not given.
        weighting: How overlapping windows are averaged.
        probabilities: Also write CASE.npz with the class probabilities.
        largest_component: Keep only each class's largest connected part.
        batch: Windows a network call.
    """
    from sscl.stages.dataset import is_dataset
    from sscl.stages.predict import default_inputs
    from sscl.stages.predict import predict as stage

    sources = list(inputs) or default_inputs(model)
    target = model / "predictions" if out is None else out
    masks = stage(
        model, sources, target, select=select, split=split, stride=stride, weighting=weighting,
        probabilities=probabilities, largest_component=largest_component, batch=batch, device=device,
        precision=precision, threads=threads,
        on_case=lambda case, number, total: err.print(f"{number}/{total} {escape(case)}", highlight=False),
    )  # fmt: skip
    reference: tuple[object, ...] = ("REFERENCE_MASKS",)
    if len(sources) == 1 and is_dataset(sources[0]):
        reference = (sources[0], *(() if split == "test" else ("--split", split)))
    say(f"{target}: {len(masks)} masks. {following('evaluate', target, *reference)}")


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
    from sscl.engine.run import RECIPE
    from sscl.metrics.table import summary_table
    from sscl.stages.evaluate import evaluate as stage

    result = stage(prediction, reference, out, split=split, tolerance_mm=tolerance_mm, spacing_mm=spacing_mm)
    table(summary_table(result.summary))
    say(result.definitions)
    run = prediction.parent
    of_run = (run / RECIPE).is_file() and result.out == run / "predictions" / "scores"
    say(f"{result.out}: scores.csv, summary.csv" + (f". {following('report', run)}" if of_run else ""))


@app.command
def report(*runs: Path, out: Out = Path("report.html")) -> None:
    """One offline HTML file: scores, curves, and per case a picture of the wrong voxels.

    Args:
        runs: Scored run folders; seeds of equal settings are one row. Differences are to `vnet`, else to the first run.
        out: The HTML file.
    """
    from sscl.stages.report import report as stage

    if not runs:
        raise UserError("report needs at least one run folder.")
    say(f"{stage(runs, out)}: open it in a browser")


@app.command
def doctor() -> None:
    """Device, memory, torch build, and what will run."""
    from sscl.stages.doctor import doctor as stage

    for row in stage():
        say(f"{row.topic:12} {row.value}" + (f"\n{'':12} -> {row.advice}" if row.advice else ""))


@app.command
def methods() -> None:
    """The methods: name, year, what they train, time of a step relative to vnet (settings of la-quick), paper."""
    from sscl.methods import METHODS

    rows = [[n, str(e.year or "-"), e.trains, f"{e.cost:.1f}", e.paper] for n, e in METHODS.items()]
    table([["method", "year", "trains", "cost", "paper"], *rows])


def gathered(findings: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Level and message, once where more than three differ in the file that they begin with only."""
    alike: dict[tuple[str, str], list[str]] = {}
    for grade, message in findings:
        alike.setdefault((grade, message.partition(": ")[2] or message), []).append(message)
    rows = []
    for (grade, _), messages in alike.items():
        more = f" The same of {len(messages) - 1} more; --json lists them." if len(messages) > 3 else ""
        rows += [[grade, message + more] for message in (messages[:1] if more else messages)]
    return rows


def number_or_range(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.isdigit() else text
