"""What a run will do, decided before it starts: its recipe, and the method that the recipe describes."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from sscl.core.errors import UserError
from sscl.core.method import Method
from sscl.data.presets import PRESETS
from sscl.engine.run import RECIPE, Recipe, differences, read_recipe, write_recipe
from sscl.engine.train import timeline
from sscl.methods import method_class
from sscl.stages.dataset import Dataset
from sscl.stages.device import cpu_name, pick_precision
from sscl.stages.folder import versions

log = logging.getLogger("sscl")

DEFAULT_ITERATIONS = 34_000
"""4k + 30k (SSCL sec. 4.1)."""
Training = Literal["shared", "literature"]
"""All methods under the preset's budget, or each as its own paper trains it."""


def resolve(
    data: Dataset,
    method: str,
    settings: Mapping[str, Any],
    iterations: int | None,
    seed: int,
    place: torch.device,
    precision: str,
    threads: int,
    schedule: Training = "shared",
    validation: int = 0,
) -> Recipe:
    """The recipe of a new run: method defaults x preset (or, `literature`, the paper's own training) x overrides.

    Args:
        validation: how many labelled cases, the last ones, are not trained on but for finding the best weights.

    Raises:
        UserError: settings that the method does not have, a data set that it cannot learn from, or nothing left of it.
    """
    cls = method_class(method)
    if iterations is None:
        iterations = _usual_iterations(cls, data.preset, schedule)
    known = _known_settings(method, data.preset, schedule, iterations)
    config = cls.Config.read(_nested({**known, **settings}), f"settings of '{method}'")
    config.refuse_ignored(settings, f"settings of '{method}'")
    if not data.split.labelled:
        raise UserError(f"{data.folder}: no labelled case to train on. Prepare it with at least one mask.")
    phases = cls.phases(config)
    uses_unlabelled = any(phase.batch[1] for phase in phases)
    if uses_unlabelled and not data.split.unlabelled:
        raise UserError(
            f"{data.folder}: method '{method}' learns from unlabelled scans and there is none. Use --method vnet."
        )
    timeline(phases, iterations)  # refuses too few
    labelled = data.split.labelled
    if (trained_on := len(labelled) - validation) < 1:
        raise UserError(
            f"--validation {validation}: {data.folder} has {len(labelled)} labelled cases, and one at least must be "
            f"left to train on. Give at most {len(labelled) - 1}, or prepare a data set with more masks."
        )
    return Recipe(
        method=method,
        config=config.model_dump(mode="json"),
        dataset=str(data.folder.resolve()),
        data_digest=data.digest,
        plan=data.plan,
        labelled=labelled[:trained_on],
        unlabelled=data.split.unlabelled if uses_unlabelled else (),
        validation=labelled[trained_on:],
        iterations=iterations,
        seed=seed,
        precision=pick_precision(precision, place),
        device=str(place),
        threads=threads,
        versions=versions(uses_torch=True) | {"cpu": cpu_name()},
    )


def _usual_iterations(cls: type[Method], preset_name: str | None, schedule: Training) -> int:
    if schedule == "literature":
        return cls.literature.iterations
    return PRESETS[preset_name].iterations if preset_name in PRESETS else DEFAULT_ITERATIONS


def _known_settings(method: str, preset_name: str | None, schedule: Training, iterations: int) -> dict[str, Any]:
    """Settings of the method other than its defaults."""
    if schedule == "literature":
        return method_class(method).literature.settings_for(iterations)
    return preset_settings(method, preset_name) if preset_name in PRESETS else {}


def preset_settings(method: str, preset_name: str) -> dict[str, Any]:
    """What a preset sets of a method: what it sets of all that have such a field, and what it sets of this one."""
    preset, fields = PRESETS[preset_name], method_class(method).Config.model_fields
    return {key: value for key, value in preset.method.items() if key in fields} | preset.methods.get(method, {})


def settled(recipe: Recipe, out: Path) -> Recipe:
    """The run folder's recipe: written now, or, in a begun run, the one that it has."""
    if not (out / RECIPE).exists():
        write_recipe(out, recipe)
        return recipe
    old = read_recipe(out)
    forbidden, tolerated = differences(old, recipe)
    if forbidden:
        raise UserError(
            f"{out} was begun with other settings:\n  "
            + "\n  ".join(forbidden)
            + "\nGive the same ones, or another -o."
        )
    for line in tolerated:
        log.warning("resuming under other conditions, bit equality is not promised: %s", line)
    return old


def build_method(recipe: Recipe) -> Method:
    """The recipe's method, freshly initialised from its seed."""
    cls = method_class(recipe.method, f"{RECIPE}: method")
    torch.manual_seed(recipe.seed)
    config = cls.Config.read(recipe.config, f"{RECIPE}: settings of '{recipe.method}'")
    return cls(config, len(recipe.plan.channels), recipe.plan.num_classes)


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """{"optimiser.learning_rate": 0.1} to {"optimiser": {"learning_rate": 0.1}}."""
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        *groups, last = key.split(".")
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise UserError(f"settings '{group}' = {place!r} and '{key}' contradict each other. Give one of them.")
        if last in place:
            raise UserError(f"settings '{key}' and one inside of it contradict each other. Give one of them.")
        place[last] = dict(value) if isinstance(value, Mapping) else value
    return nested
