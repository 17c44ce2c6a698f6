"""`sscl train`: a prepared data set to a run folder."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sscl.core.errors import UserError
from sscl.core.files import remove_leftovers
from sscl.core.interrupt import Interrupted, noted_signals
from sscl.data.patches import Loaded, PatchLoader
from sscl.data.store import CaseStore
from sscl.data.workers import batches_ahead, told_if_one_dies
from sscl.engine import checkpoint
from sscl.engine.run import (
    METRICS,
    RECIPE,
    Recipe,
    cut_metrics,
    log_file,
    only_writer,
    read_recipe,
    recipe_digest,
    require_recipe,
)
from sscl.engine.train import Log, Span, Trainer
from sscl.engine.validation import Validation
from sscl.stages.cost import LESS_MEMORY, Cost, timed, told_if_patch_is_small
from sscl.stages.dataset import STORE, Dataset, open_dataset
from sscl.stages.device import peak_memory_bytes, pick_device, set_threads, told_if_memory_ends
from sscl.stages.folder import STAGE, refuse_read_only, write_stage
from sscl.stages.recipe import Training, build_method, resolve, settled

log = logging.getLogger("sscl")

EMPTY_STEPS = 100
"""So many iterations in a row without an organ in any pseudo-label are worth a warning."""
CHECKPOINTS = "checkpoints"


def train(
    dataset: Path,
    out: Path,
    *,
    method: str = "sscl",
    settings: Mapping[str, Any] | None = None,
    iterations: int | None = None,
    minutes: float | None = None,
    schedule: Training = "shared",
    validation: int = 0,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    workers: int = 0,
    checkpoint_minutes: float = 5.0,
    tensorboard: bool = False,
    resume: bool = False,
    on_step: Callable[[Log, int], None] = lambda log, total: None,
) -> Recipe:
    """Train a method on a prepared data set; the same call again goes on where the last one stopped.

    Args:
        dataset: a folder that `prepare` made.
        out: the run folder; made, or continued.
        settings: overrides of the method's Config.
        iterations: length of the run; or
        minutes: how long it may take: some steps are timed, and the number of iterations is written into the recipe.
        schedule: `shared`: the preset's budget; `literature`: optimiser, length and ramps of the method's paper.
        validation: how many labelled cases, the last ones, are not trained on but for finding the run's best weights.
        workers: loader processes; 0 loads in this one. The batches are the same.
        resume: refuse to begin a run, for instance in a folder whose name was mistyped.
        on_step: gets each log line and the total number of iterations.

    Raises:
        UserError: wrong settings, a folder that is no data set, a run that was begun with others, or cannot be written.
        Interrupted: SIGINT or SIGTERM; everything is saved.
    """
    _check_numbers(iterations=(iterations, 1), validation=(validation, 0), seed=(seed, 0), workers=(workers, 0))
    if seed >= 2**63:  # torch takes no larger one
        raise UserError(f"--seed {seed}: expected a number under 2 to the power of 63.")
    if not checkpoint_minutes >= 0:
        raise UserError(f"--checkpoint-minutes {checkpoint_minutes:g}: expected 0 or more; 0: after each iteration.")
    began = time.monotonic()
    data, place = open_dataset(dataset), pick_device(device)
    count = set_threads(threads)
    if resume:
        read_recipe(out)  # refuses what is no run folder
    _refuse_other_folder(out)
    if not (out / STAGE).exists():  # a finished run is not written to
        refuse_read_only(out, CHECKPOINTS)
    recipe = _recipe(
        data, out, method, settings or {}, iterations, minutes, seed, place, precision, count, schedule, validation
    )
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out) as require_ours:
        remove_leftovers(out, RECIPE, METRICS, STAGE)
        recipe = settled(recipe, out)
        made_by = recipe_digest(out)
        trainer, validated = _trainer(recipe, place), _validation(data, recipe, place)
        if (state := checkpoint.newest(out / CHECKPOINTS, place)) is not None:
            require_recipe(state, out)
            with checkpoint.fitting(out / CHECKPOINTS):
                checkpoint.refuse_other_network(state["method"], trainer.method.state_dict(), out / CHECKPOINTS)
                trainer.restore(state)
                validated.restore(state)
            log.info("continuing %s after iteration %d of %d", out, trainer.iteration, recipe.iterations)
        elif (out / STAGE).exists() or any((out / CHECKPOINTS).glob("*.pt")):
            log.warning("%s has no undamaged checkpoint any more: it begins anew", out)
        if trainer.iteration == recipe.iterations and (out / STAGE).exists():
            log.info("%s is finished: %d iterations", out, recipe.iterations)
            return recipe
        (out / STAGE).unlink(missing_ok=True)  # of a finished run whose last checkpoint was lost
        cut_metrics(out, trainer.iteration)
        loaded = _loader(data, recipe, trainer, workers)

        def save() -> None:
            require_ours()
            checkpoint.save(out / CHECKPOINTS, trainer.state() | validated.state() | {"recipe": made_by})

        _run(trainer, loaded, validated, out, save, checkpoint_minutes, tensorboard, on_step)
        require_ours()
        write_stage(
            out,
            "train",
            config=recipe.model_dump(mode="json", include={"method", "config", "iterations", "seed", "precision"}),
            inputs={"dataset": data.digest},
            began=began,
            uses_torch=True,
            files=(METRICS,),
            recipe=made_by,
            weights=_weights(trainer, validated),
            seconds=round(_seconds(out), 1),  # over all sittings, with validations
            peak_memory_bytes=peak_memory_bytes(place),
        )
    return recipe


def dry_run(
    dataset: Path,
    *,
    method: str = "sscl",
    settings: Mapping[str, Any] | None = None,
    iterations: int | None = None,
    minutes: float | None = None,
    schedule: Training = "shared",
    validation: int = 0,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
) -> Cost:
    """What a run would take: times real steps in memory and writes nothing. Arguments and errors as in `train`."""
    _check_numbers(iterations=(iterations, 1), validation=(validation, 0))
    _check_length(iterations, minutes)
    data, place = open_dataset(dataset), pick_device(device)
    count = set_threads(threads)
    recipe = resolve(data, method, settings or {}, iterations, 0, place, precision, count, schedule, validation)
    cost = _cost(data, recipe, place)
    return cost if minutes is None else replace(cost, iterations=cost.fits(minutes))


def _recipe(
    data: Dataset,
    out: Path,
    method: str,
    settings: Mapping[str, Any],
    iterations: int | None,
    minutes: float | None,
    seed: int,
    place: torch.device,
    precision: str,
    threads: int,
    schedule: Training,
    validation: int,
) -> Recipe:
    """What the arguments ask for; with `--minutes`, the number of iterations that a begun run has, or a timed one."""
    _check_length(iterations, minutes)
    if minutes is not None and (out / RECIPE).exists():
        iterations = read_recipe(out).iterations
        log.info("the run was begun with %d iterations; --minutes is not timed again", iterations)
    recipe = resolve(data, method, settings, iterations, seed, place, precision, threads, schedule, validation)
    if minutes is not None and iterations is None:
        cost = _cost(data, recipe, place)
        count = cost.fits(minutes)
        log.info("%.2f s an iteration: %d iterations in %g minutes", cost.seconds_per_iteration, count, minutes)
        recipe = resolve(data, method, settings, count, seed, place, precision, threads, schedule, validation)
    return recipe


def _check_numbers(**numbers: tuple[int | None, int]) -> None:
    """Option name to its value and the least that it may be."""
    for name, (value, least) in numbers.items():
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: expected {least} or more.")


def _check_length(iterations: int | None, minutes: float | None) -> None:
    if iterations is not None and minutes is not None:
        raise UserError("--iterations and --minutes exclude each other; give one.")
    if minutes is not None and not minutes > 0:
        raise UserError(f"--minutes {minutes:g}: expected more than 0.")


def _refuse_other_folder(out: Path) -> None:
    """Before anything is written there. Hidden files do not count: the lock, what a killed run left half written."""
    if not (out / RECIPE).exists() and out.exists() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise UserError(f"{out} exists and is not a run folder: it has no {RECIPE}. Give another -o, or empty it.")


def _weights(trainer: Trainer, validated: Validation) -> dict[str, str]:
    """What `predict` will know the run's weights by, as `--select` calls them."""
    found = {"last": trainer.method.tested_state()}
    if best := validated.state().get("best"):
        found["best"] = best["weights"]
    return {name: checkpoint.weights_digest(weights) for name, weights in found.items()}


def _trainer(recipe: Recipe, place: torch.device) -> Trainer:
    return Trainer(build_method(recipe), recipe.iterations, recipe.seed, place, recipe.precision)


def _validation(data: Dataset, recipe: Recipe, place: torch.device) -> Validation:
    store = CaseStore(data.folder / STORE, memory_bytes=0)  # read some twenty times in a run: not worth the memory
    return Validation(store, recipe.validation, recipe.plan, recipe.iterations, place, recipe.precision)


def _loader(data: Dataset, recipe: Recipe, trainer: Trainer, workers: int) -> Callable[[Span, int], Loaded]:
    """Batches by iteration, cut in this process or, ahead of time, by workers."""
    make = partial(
        PatchLoader,
        CaseStore(data.folder / STORE),
        recipe.labelled,
        recipe.unlabelled,
        recipe.plan,
        recipe.seed,
        trainer.method.targets,
    )
    if workers == 0:
        patches = make()
        return lambda span, iteration: patches.load(span.draw(iteration))
    first = trainer.iteration
    draws = (span.draw(k) for span in trainer.spans for k in range(max(first, span.start), span.stop))
    batches = batches_ahead(make, draws, workers)
    return lambda span, iteration: next(batches)


def _run(
    trainer: Trainer,
    load: Callable[[Span, int], Loaded],
    validated: Validation,
    out: Path,
    save_state: Callable[[], None],
    checkpoint_minutes: float,
    tensorboard: bool,
    on_step: Callable[[Log, int], None],
) -> None:
    """The loop with everything that a step leaves behind: log lines, checkpoints, the reaction to signals."""
    with log_file(out) as metrics, _board(out, tensorboard) as write_board, noted_signals() as caught:
        saved = began = time.monotonic()
        watch = _pseudo_label_watch()

        def save() -> None:
            _check_finite(trainer)
            metrics.flush()
            os.fsync(metrics.fileno())  # before the checkpoint, or its iterations could lack their lines
            save_state()

        def after_step(entry: Log) -> bool:
            nonlocal saved, began
            entry |= validated.after(trainer.iteration, trainer.method)
            now = time.monotonic()
            entry["seconds"] = round(now - began, 4)
            began = now
            metrics.write(json.dumps(entry) + "\n")
            write_board(entry)
            on_step(entry, trainer.iterations)
            watch(entry)
            if caught:
                return False
            if now - saved > checkpoint_minutes * 60:
                save()
                saved = time.monotonic()
            return True

        with told_if_one_dies(), told_if_memory_ends(LESS_MEMORY), told_if_patch_is_small():
            trainer.run(load, after_step)
        save()
        if caught and trainer.iteration < trainer.iterations:
            raise Interrupted(caught[0], f" after iteration {trainer.iteration}; state saved")


def _pseudo_label_watch() -> Callable[[Log], None]:
    """Warns once when a teacher has not found an organ for long: until it does, unlabelled scans teach nothing."""
    empty = 0

    def watch(entry: Log) -> None:
        nonlocal empty
        shares = [value for key, value in entry.items() if key.endswith("/pseudo_foreground")]
        empty = empty + 1 if shares == [0.0] else 0
        if empty == EMPTY_STEPS:
            log.warning(
                "no pseudo-label of the last %d iterations holds an organ, so the unlabelled scans have taught nothing "
                "in them. If that goes on, train longer (--iterations) or, where the method pre-trains, pre-train "
                "longer (--set pretrain_share=0.5).",
                EMPTY_STEPS,
            )

    return watch


def _check_finite(trainer: Trainer) -> None:
    """A finite loss can have a gradient that is not: such weights must not replace the last good ones."""
    for name, weight in trainer.method.named_parameters():
        if not torch.isfinite(weight).all():
            raise UserError(
                f"the weights '{name}' are no longer finite after iteration {trainer.iteration}. The last checkpoint "
                "is kept. Lower the learning rate (--set optimiser.learning_rate=0.001)."
            )


@contextmanager
def _board(out: Path, wanted: bool) -> Iterator[Callable[[Log], None]]:
    """Scalars for TensorBoard, if asked for."""
    if not wanted:
        yield lambda entry: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard needs an extra package: pip install 'sscl[tensorboard]'.") from None
    with SummaryWriter(str(out / "tensorboard")) as writer:

        def write(entry: Log) -> None:
            for key, value in entry.items():
                if isinstance(value, float):
                    writer.add_scalar(key, value, int(entry["iteration"]))

        yield write


def _cost(data: Dataset, recipe: Recipe, place: torch.device) -> Cost:
    """Of a throw-away copy of the method."""
    trainer = _trainer(recipe, place)
    validated = _validation(data, recipe, place) if recipe.validation else None
    return timed(trainer, _loader(data, recipe, trainer, workers=0), validated, place)


def _seconds(out: Path) -> float:
    """Time spent in steps and validations, over all sittings."""
    with (out / METRICS).open(encoding="utf-8") as lines:
        return sum(float(json.loads(line)["seconds"]) for line in lines)
