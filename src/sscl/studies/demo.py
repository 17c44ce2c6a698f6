"""`sscl demo`: the main job on embedded virtual patients, from a folder of scans to a report."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sscl.data.phantom import write_phantom
from sscl.engine.run import RECIPE, read_recipe
from sscl.engine.train import Log
from sscl.report.statistics import paired_difference
from sscl.report.tables import dice_by_case, read_scores
from sscl.stages.evaluate import evaluate
from sscl.stages.predict import predict
from sscl.stages.prepare import prepare
from sscl.stages.report import report
from sscl.stages.train import dry_run, train

log = logging.getLogger("sscl")

METHODS = ("vnet", "sscl")


@dataclass(frozen=True)
class Demo:
    """What the demo shows: a table, the head first, and lines of text."""

    table: list[list[str]]
    lines: list[str]


def demo(
    out: Path, *, minutes: float, seed: int, on_step: Callable[[Log, int], None] = lambda entry, total: None
) -> Demo:
    """Make the scans, prepare, train V-Net and SSCL for equally many iterations, predict, evaluate, report, compare.

    Args:
        out: folder for everything; run again, it goes on where it stopped.
        minutes: of training, for both together; decides the number of iterations, which is then kept.
    """
    scans, dataset = out / "scans", out / "dataset"
    if not (scans / "split.json").exists():
        write_phantom(scans)
    prepare(scans, dataset, preset="demo", split_file=scans / "split.json")
    iterations = _iterations(out, dataset, minutes)
    dice = {}
    for method in METHODS:
        run = out / method
        log.info("%s: %d iterations, seed %d", method, iterations, seed)
        train(dataset, run, method=method, iterations=iterations, seed=seed, on_step=on_step)
        predict(run, [dataset], run / "predictions")
        scores = evaluate(run / "predictions", scans / "test_masks").out / "scores.csv"
        dice[method] = dice_by_case(read_scores(scores.read_text(encoding="utf-8"), str(scores)))
    page = report([out / method for method in METHODS], out / "report.html")
    return _compare(dice, iterations, seed, page)


def _iterations(out: Path, dataset: Path, minutes: float) -> int:
    """As many as both methods can do in the time, by timed steps; in a begun demo, as many as it began with."""
    first = out / METHODS[0]
    if (first / RECIPE).exists():
        iterations = read_recipe(first).iterations
        log.info("the demo was begun with %d iterations; --minutes is not timed again", iterations)
        return iterations
    seconds = sum(dry_run(dataset, method=method).seconds_per_iteration for method in METHODS)
    return max(10, int(60 * minutes / seconds))


def _compare(dice: dict[str, dict[str, float]], iterations: int, seed: int, page: Path) -> Demo:
    """dice: by method and case."""
    table = [["case", *METHODS]]
    for case in dice[METHODS[0]]:
        table.append([case, *(f"{dice[method][case]:.3f}" for method in METHODS)])
    means = [sum(dice[method].values()) / len(dice[method]) for method in METHODS]
    table.append(["mean Dice", *(f"{mean:.3f}" for mean in means)])
    gain = paired_difference({seed: dice["sscl"]}, {seed: dice["vnet"]})
    return Demo(
        table,
        [
            f"SSCL - V-Net: {gain.mean:+.3f} Dice (95 % interval {gain.low:+.3f} to {gain.high:+.3f}) over "
            f"{gain.num_cases} virtual patients, {gain.num_seeds} seed, {iterations} iterations each.",
            "One seed says nothing about the spread between trainings; see docs/results for real scans.",
            f"{page}: open it in a browser",
        ],
    )
