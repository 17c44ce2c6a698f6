"""`sscl benchmark`: methods x masks x seeds, each run in a folder of its own, each finished one kept as a record."""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from sscl.core.errors import UserError
from sscl.core.files import open_to_append, write_json
from sscl.core.interrupt import raised_signals
from sscl.data.presets import preset as find_preset
from sscl.methods import METHODS
from sscl.stages.dataset import open_dataset
from sscl.stages.device import pick_device
from sscl.stages.folder import captured_warnings
from sscl.stages.prepare import prepare
from sscl.stages.recipe import resolve
from sscl.stages.record import identity, read_records
from sscl.stages.request import Request, assigned, opened
from sscl.studies.job import Job
from sscl.studies.suites import Row, Suite

log = logging.getLogger("sscl")

FLOP_PER_VOXEL = 2.4e5
"""Forward and backward through the V-Net of width 16, of one voxel of a crop (tests count it)."""
FLOP_PER_SECOND = 1e13
"""What one GPU is taken to do of them: an assumption, not measured."""


@dataclass(frozen=True)
class Cases:
    """Which cases of the source are for what, as `sscl prepare` takes them. pool: the range of those for training, of
    which the first have masks: "1:50"; None: all that are not held out."""

    pool: str | None = None
    development: str | None = None
    test: str | None = None

    def options(self, masks: int | str) -> dict[str, int | str | None]:
        """For `prepare`, with so many masks."""
        held_out = {"development": self.development, "test": self.test}
        if self.pool is None:
            return {"labelled": None if masks == "all" else masks, **held_out}
        first, last = self._ends()
        if masks == "all" or int(masks) == last - first + 1:
            return {"labelled": f"{first}:{last}", "unlabelled": 0, **held_out}
        if int(masks) > last - first + 1:
            raise UserError(f"{masks} masks: the pool {self.pool} has {last - first + 1} cases. Ask for fewer.")
        cut = first + int(masks)
        return {"labelled": f"{first}:{cut - 1}", "unlabelled": f"{cut}:{last}", **held_out}

    def _ends(self) -> tuple[int, int]:
        first, colon, last = (self.pool or "").partition(":")
        if not (colon and first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
            raise UserError(f"--pool {self.pool}: expected A:B, positions from 1, both included: 1:50.")
        return int(first), int(last)


@dataclass(frozen=True)
class Planned:
    """A run of a suite. done: its record exists. hours: on one GPU, an estimate. identities: a record of it has one of
    them."""

    row: Row
    job: Job
    done: bool
    hours: float
    identities: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Outcome:
    """How a run ended. error: the last line that it left, empty if it went well."""

    planned: Planned
    error: str


def plan(
    suite: Suite,
    source: Path,
    out: Path,
    cases: Cases,
    *,
    records: Path | None = None,
    preset: str | None = None,
    seeds: Sequence[int] | None = None,
    iterations: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    elsewhere: bool = False,
) -> list[Planned]:
    """Prepare a data set for each number of masks, and say which runs there are and which of them are done.

    A run is done if a record in `records` has the same recipe, data, and versions of method and engine, wherever it
    was made and whatever its name. Records of these rows with other seeds than asked for are there as well: tables
    hold all that was run. Seeds come before rows: a sweep that is cut short has whole columns.

    Args:
        elsewhere: the runs go to other machines. Which precision their devices choose is not known here: a record
            counts in any.

    Raises:
        UserError: what `prepare` and the methods refuse.
    """
    records = records or out / "records"
    kept = read_records(records)
    known = {result.identity: records / result.name for result in kept}
    asked = list(seeds if seeds is not None else range(suite.seeds))
    others = sorted({result.recipe.seed for result in kept} - set(asked))
    name, data = preset or suite.preset, {}
    _require_test_cases(source, name, cases)
    for masks in dict.fromkeys(row.masks for row in suite.rows):
        folder = out / f"data_{masks}"
        prepare(source, folder, preset=name, **cases.options(masks))  # type: ignore[arg-type]
        data[masks] = open_dataset(folder)
    place = torch.device("cpu") if elsewhere else pick_device(device)
    precisions = ("float32", "bf16") if elsewhere and device != "cpu" else ("auto",)
    planned = []
    for seed in (*asked, *others):
        for row in suite.rows:
            dataset = data[row.masks]
            name = f"{row.slug}_{len(dataset.split.labelled)}_{seed}"
            job = Job(
                name=name, dataset=str(dataset.folder), run=str(out / "runs" / name), record=str(records / name),
                method=row.method, settings=row.settings, iterations=iterations, seed=seed, device=device,
                threads=threads,
            )  # fmt: skip
            recipes = [
                resolve(dataset, row.method, row.settings, iterations, seed, place, precision, threads or 1)
                for precision in precisions
            ]
            identities = frozenset(map(identity, recipes))
            found = next((known[key] for key in sorted(identities) if key in known), None)
            if found is None and seed not in asked:
                continue
            if found is not None:
                job = job.override({"record": str(found)}, name)
            hours = gpu_hours(row.method, recipes[0].iterations, dataset.plan.patch)
            planned.append(Planned(row, job, found is not None, hours, identities))
    return planned


def _require_test_cases(source: Path, preset: str | None, cases: Cases) -> None:
    """Before anything is written: without them every run would be trained to its end, and could not be scored."""
    with captured_warnings():  # `prepare` gives them
        split, _ = assigned(opened(source, Request(preset, development=cases.development, test=cases.test)))
    if not split.test:
        raise UserError(
            f"{source}: no case is held out to be scored. Say which: --test 61:80, or --test last:20; "
            "--development 51:60 for those to be left alone."
        )


def gpu_hours(method: str, iterations: int, patch: Sequence[int]) -> float:
    """Arithmetic, not a measurement: 4 crops a step of the V-Net of width 16, times the method's cost on a CPU."""
    voxels = 4.0
    for length in patch:
        voxels *= length
    return iterations * METHODS[method].cost * voxels * FLOP_PER_VOXEL / FLOP_PER_SECOND / 3600


def outline(suite: Suite, preset: str | None = None) -> list[tuple[Row, float]]:
    """Each row with its hours on one GPU, without any data: the length and patch of the preset, or of the suite's."""
    name = preset or suite.preset
    if name is None:
        raise UserError("without a preset the length is known only with the data: name the folder of scans and -o OUT.")
    known = find_preset(name)
    return [(row, gpu_hours(row.method, known.iterations, known.plan["patch"])) for row in suite.rows]


def run(
    planned: Sequence[Planned],
    jobs: int,
    on_end: Callable[[Outcome], None] = lambda outcome: None,
    on_start: Callable[[Planned], None] = lambda planned: None,
) -> list[Outcome]:
    """Run what is not done, `jobs` at a time, each in a process of its own with its share of the cores. A failed run
    is reported and stops no other; the same call again goes on where each one stopped.

    Args:
        on_end: gets each outcome as it comes.
        on_start: gets each run as it begins.
    """
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: expected 1 or more.")
    threads = max(1, (os.cpu_count() or 1) // jobs)

    going: set[subprocess.Popen[bytes]] = set()
    stopped = threading.Event()

    def one(item: Planned) -> Outcome:
        job = item.job if item.job.threads else item.job.override({"threads": threads}, item.job.name)
        on_start(item)
        outcome = Outcome(item, run_apart(job, going))
        if not stopped.is_set():
            on_end(outcome)
        return outcome

    pool = ThreadPoolExecutor(jobs)
    try:
        with raised_signals("; the runs that had begun have saved"):
            return list(pool.map(one, [item for item in planned if not item.done]))
    except BaseException:
        stopped.set()
        pool.shutdown(wait=False, cancel_futures=True)
        for process in tuple(going):
            process.terminate()
        raise
    finally:
        pool.shutdown()


def run_apart(job: Job, going: "set[subprocess.Popen[bytes]]") -> str:
    """Run a job in another process, which is in `going` meanwhile; empty, or the last line of its log."""
    described = describe(job)
    text = log_of(job)
    with open_to_append(text) as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "sscl.studies.job", str(described), str(os.getpid())],
            stdout=output, stderr=output,
            env=os.environ | {"OMP_NUM_THREADS": str(job.threads or torch.get_num_threads())},
        )  # fmt: skip
        going.add(process)
        code = process.wait()
        going.remove(process)
    if code == 0:
        return ""
    lines = [line for line in text.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"{lines[-1] if lines else 'no message'} (exit code {code}; {text})"


def log_of(job: Job) -> Path:
    """OUT/logs/NAME.log, beside the folder of runs: what a run in another process says."""
    run = Path(job.run).absolute()
    return run.parent.with_name("logs") / f"{run.name}.log"


def describe(job: Job) -> Path:
    """Write OUT/logs/NAME.json, for `python -m sscl.studies.job`."""
    described = log_of(job).with_suffix(".json")
    described.parent.mkdir(parents=True, exist_ok=True)
    write_json(described, job.model_dump(mode="json"))
    return described


def chosen(planned: Sequence[Planned], only: Sequence[str]) -> list[Planned]:
    """The runs whose method or folder begins with one of `only`; all where none is named.

    Raises:
        UserError: a name that fits none.
    """
    if not only:
        return list(planned)
    for name in only:
        if not any(item.job.name.startswith(name) for item in planned):
            raise UserError(f"--only {name}: no run's name begins so. Runs: {', '.join(i.job.name for i in planned)}.")
    return [item for item in planned if any(item.job.name.startswith(name) for name in only)]
