"""One run of a benchmark, from training to its record: `python -m sscl.studies.job JOB.json [PARENT]`."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from sscl.core.config import Config
from sscl.core.errors import UserError
from sscl.core.files import read_object
from sscl.core.interrupt import Interrupted, was_noted
from sscl.engine.progress import told_in_lines
from sscl.stages.evaluate import evaluate
from sscl.stages.predict import predict
from sscl.stages.reading import require_as_scored
from sscl.stages.record import record
from sscl.stages.train import train

log = logging.getLogger("sscl")


class Job(Config):
    """What to run and where to leave it."""

    name: str
    dataset: str
    run: str
    """The run folder."""
    record: str
    """What is kept of it."""
    method: str
    settings: Mapping[str, Any] = Field(default_factory=dict)
    iterations: int | None = None
    seed: int = 0
    device: str = "auto"
    threads: int | None = None

    @property
    def commands(self) -> tuple[str, ...]:
        """The same by hand."""
        settings = "".join(f" --set {key}={str(value).lower()}" for key, value in self.settings.items())
        length = f" --iterations {self.iterations}" if self.iterations else ""
        return (
            f"sscl train {self.dataset} -o {self.run} --method {self.method} --seed {self.seed}{length}{settings}",
            f"sscl predict {self.run}",
            f"sscl evaluate {self.run}/predictions {self.dataset}",
        )


def execute(job: Job) -> None:
    """Train, or go on; predict and score the test cases; keep the record. What is finished is not done again."""
    dataset, run = Path(job.dataset), Path(job.run)
    masks = run / "predictions"
    train(
        dataset, run, method=job.method, settings=job.settings, iterations=job.iterations, seed=job.seed,
        device=job.device, threads=job.threads, on_step=told_in_lines(log.info),
    )  # fmt: skip
    predict(run, [dataset], masks, device=job.device, threads=job.threads)
    if not _scored(masks, run):  # each scoring opens the test cases once more
        evaluate(masks, dataset)
    record(run, masks, Path(job.record))


def _scored(masks: Path, run: Path) -> bool:
    """Whether there are scores, whole, and of these very masks."""
    if not (masks / "scores").exists():
        return False
    try:
        require_as_scored(masks, run)
    except UserError as error:
        log.info("%s", error)
        return False
    return True


def main(path: Path) -> int:
    """The exit code: 0, 2 for a mistake in the input, 128 + signal for an interrupted run."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        execute(Job.read(read_object(path), str(path)))
    except UserError as error:
        logging.error("error: %s", error)
        return 2
    except Interrupted as error:
        logging.info("%s", error)
        return 128 + error.number
    return 0


def stop_with(parent: int) -> None:
    """SIGTERM for this process as soon as `parent` is no longer its parent: a sweep that is stopped or killed leaves no
    training behind that would hold its run folder."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        if not was_noted():  # else the signal that ended the parent reached this process as well
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    if len(sys.argv) > 2:
        stop_with(int(sys.argv[2]))
    sys.exit(main(Path(sys.argv[1])))
