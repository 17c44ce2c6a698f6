"""The run folder: recipe, log, lock."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import yaml

from sscl.core.config import Config
from sscl.core.errors import UserError
from sscl.core.files import json_digest, named, open_to_append, read_yaml, write_text
from sscl.core.plan import Plan

log = logging.getLogger("sscl")

RECIPE, METRICS, LOCK = "recipe.yaml", "metrics.jsonl", ".lock"


class Recipe(Config):
    """All that decides what a run computes. `RUN/recipe.yaml`; a run goes on only by the same one."""

    method: str
    config: dict[str, Any]
    """The method's resolved Config."""
    dataset: str
    """Folder of the prepared data set."""
    data_digest: str
    """Digest of its plan, split and inputs."""
    plan: Plan
    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...]
    validation: tuple[str, ...] = ()
    """Labelled cases that are not trained on: by them the best weights of the run are found."""
    iterations: int
    seed: int
    precision: str
    device: str
    threads: int
    versions: dict[str, str]


FREE = ("dataset", "device", "threads", "versions")
"""May differ when a run is resumed: a moved data set, another machine. Bit equality then is not promised."""


def read_recipe(run: Path) -> Recipe:
    """Raises UserError if `run` is not a run folder or its recipe was damaged."""
    path = run / RECIPE
    if not path.is_file():
        raise UserError(f"{run} is not a run folder: it has no {RECIPE}. `sscl train DATASET -o {run}` makes one.")
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: damaged, or not a recipe. Restore it or train into a new folder.")
    plan = Plan.read(values.pop("plan", {}), str(path))
    return Recipe.read({**values, "plan": plan}, str(path))


def recipe_digest(run: Path) -> str:
    """By which what was computed with a recipe is known to be so: of the file's values, but those that may differ."""
    read_recipe(run)  # refuses what is none
    values = {key: value for key, value in read_yaml(run / RECIPE).items() if key not in FREE}
    return json_digest(values)


def require_recipe(state: Mapping[str, Any], run: Path) -> None:
    """Raises UserError for a checkpoint that was trained by another recipe than the run has. The first versions did not
    note it.
    """
    if state.get("recipe") not in (None, recipe_digest(run)):
        raise UserError(
            f"{run}: its checkpoint of iteration {state['iteration']} belongs to another run, or {RECIPE} was changed "
            "since. Restore what was changed, or train into another folder."
        )


def write_recipe(run: Path, recipe: Recipe) -> None:
    """As YAML, atomically."""
    write_text(run / RECIPE, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def differences(old: Recipe, new: Recipe) -> tuple[list[str], list[str]]:
    """Fields that forbid resuming, and fields that only end the promise of bit equality, as readable lines."""
    first, second = old.model_dump(mode="json"), new.model_dump(mode="json")
    lines: tuple[list[str], list[str]] = ([], [])
    for field in first:
        if first[field] != second[field]:
            lines[field in FREE].extend(_changes(field, first[field], second[field]))
    return lines


def _changes(name: str, old: Any, new: Any) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [
            line
            for key in keys
            if old.get(key) != new.get(key)
            for line in _changes(f"{name}.{key}", old.get(key), new.get(key))
        ]
    return [f"{name}: {old} in the run, {new} now"]


def cut_metrics(run: Path, iteration: int) -> None:
    """Forget log lines from `iteration` on: those steps will be made again. A half line at the end goes as well."""
    path = run / METRICS
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["iteration"] < iteration:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            break
    write_text(path, "".join(kept))


@contextmanager
def log_file(run: Path) -> Iterator[TextIO]:
    """The log, to append lines to. On a full disk not only a line fails but closing as well, and that names the file.

    Raises:
        UserError: it is a link.
        OSError: it cannot be written.
    """
    file = open_to_append(run / METRICS)
    try:
        yield file
    finally:
        with named(run / METRICS):
            file.close()


@contextmanager
def only_writer(folder: Path) -> Iterator[Callable[[], None]]:
    """Hold a folder's lock; the system frees it however the process ends, so none is ever left behind.

    Yields:
        To be called before writing: raises UserError if the folder was moved, or its lock removed, meanwhile. What lies
        at its path then may be another process's.

    Raises:
        UserError: another process writes into this folder.
    """
    if os.name != "posix":
        yield lambda: None
        return
    import fcntl

    path = folder / LOCK
    if path.is_symlink():
        raise UserError(f"{path}: a link, and nothing is written through links. Remove it.")
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except PermissionError:
        raise UserError(
            f"{folder}: nothing can be written there. Change its permissions, or give another -o."
        ) from None
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder} is in use by another process; wait for it or give another -o folder.") from None
        except OSError as error:
            log.warning("%s: its disk has no locks (%s): let no second process write there.", folder, error.strerror)

        def require_ours() -> None:
            try:
                ours = os.path.samestat(os.fstat(file), path.lstat())
            except OSError:
                ours = False
            if not ours:
                raise UserError(
                    f"{folder} was moved, or its {LOCK} removed, while this process wrote there. Repeat the command "
                    "with the folder's new place as -o; it goes on from what was saved."
                )

        yield require_ours
    finally:
        os.close(file)
