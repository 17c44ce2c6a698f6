"""Finished models: `sscl export`, `sscl info`, and loading one for prediction. Tensors + JSON, never pickled code."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from sscl import __version__
from sscl.core.errors import UserError
from sscl.core.files import Shape, read_sealed, sha256, write_atomic, write_sealed
from sscl.core.method import Method
from sscl.core.plan import Plan
from sscl.engine import checkpoint
from sscl.engine.run import RECIPE, Recipe, read_recipe, require_recipe
from sscl.methods import method_class
from sscl.stages.folder import built
from sscl.stages.recipe import build_method
from sscl.stages.train import CHECKPOINTS

log = logging.getLogger("sscl")

WEIGHTS, CARD = "weights.safetensors", "model.json"
FORMAT = 1
Select = Literal["last", "best"]
"""Weights of a run: after its last iteration, or those best on its validation cases."""


class _Trained(Shape):
    iterations: int
    of: int
    select: Select = "last"


class _Card(Shape):
    format: int
    method: str
    config: dict[str, Any]
    plan: dict[str, Any]
    weights_sha256: str
    trained: _Trained


@dataclass(frozen=True)
class Model:
    """A method that is ready to predict and holds only what that needs, and what must be known about it."""

    method: Method
    plan: Plan
    digest: str
    """Of the weights."""
    select: Select


def export(run: Path, out: Path, select: Select = "last") -> Path:
    """Write the model of a run: the networks that the test phase needs, plan, labels, versions and digests.

    Nothing is written where this very model is already.

    Raises:
        UserError: not a run folder, no checkpoint or no validated weights in it, or `out` is there and holds something
            else.
    """
    recipe = read_recipe(run)
    if out.exists() and (not out.is_dir() or any(path.name not in (WEIGHTS, CARD) for path in out.iterdir())):
        raise UserError(f"{out} exists and is not a model folder. Give another -o.")
    method, iteration = _from_run(run, recipe, select)
    weights = method.tested_state()
    card = {
        "format": FORMAT,
        "method": recipe.method,
        "config": recipe.config,
        "plan": recipe.plan.model_dump(mode="json"),
        "labels": list(recipe.plan.labels),
        "parameters": count_parameters(method),
        "weights_sha256": checkpoint.weights_digest(weights),
        "trained": {
            "iterations": iteration,
            "of": recipe.iterations,
            "select": select,
            "seed": recipe.seed,
            "labelled": len(recipe.labelled),
            "unlabelled": len(recipe.unlabelled),
            "validation": len(recipe.validation),
            "data_digest": recipe.data_digest,
            "versions": recipe.versions,
        },
        "sscl": __version__,
    }
    if out.exists() and any(out.iterdir()):
        _refuse_other(out, card)
        log.info("%s: holds this model already", out)
        return out
    with built(out) as folder:
        write_atomic(folder / WEIGHTS, lambda file: file.write(save(weights)))
        write_sealed(folder / CARD, card)
    return out


def _refuse_other(out: Path, card: Mapping[str, Any]) -> None:
    """Raises UserError unless the model in `out` is whole and the one that `card` describes."""
    whole = {path.name for path in out.iterdir()} == {WEIGHTS, CARD}
    same = whole and read_sealed(out / CARD) == json.loads(json.dumps(card))  # of tuples JSON makes lists
    if not same or sha256(out / WEIGHTS) != card["weights_sha256"]:
        raise UserError(f"{out} holds another model, or a part of one. Give another -o, or delete it.")


def info(model: Path) -> dict[str, Any]:
    """What a model folder says about itself, after checking that its weights are the ones that it names.

    Raises:
        UserError: no model folder, or a damaged one.
    """
    if (model / RECIPE).is_file():
        raise UserError(
            f"{model} is a run; {RECIPE} in it tells its settings. `sscl export {model} -o MODEL` makes a model."
        )
    card = _card(model)
    _weights(model, card)
    return card


def load_model(path: Path, device: torch.device, select: Select | None = None) -> Model:
    """A RUN (its newest checkpoint) or an exported MODEL, in evaluation mode on the device.

    Args:
        select: of a run, `last` if None; a model has one or the other.

    Raises:
        UserError: neither, or damaged, or of a newer format; or it has no such weights.
    """
    if (path / RECIPE).is_file():
        recipe, selected = read_recipe(path), select or "last"
        method, _ = _from_run(path, recipe, selected)
        plan, digest = recipe.plan, checkpoint.weights_digest(method.tested_state())
    else:
        card = _card(path)
        weights, selected = _weights(path, card), card["trained"].get("select", "last")
        if select not in (None, selected):
            raise UserError(
                f"{path} is an exported model and holds the {selected} weights of its run, not the {select} ones. "
                f"Leave --select out, or export again: sscl export RUN -o MODEL --select {select}."
            )
        cls = method_class(card["method"], f"{path / CARD}: method")
        plan = Plan.read(card["plan"], str(path / CARD))
        config = cls.Config.read(card["config"], str(path / CARD))
        method = cls(config, len(plan.channels), plan.num_classes)
        _fill(method, weights, path / WEIGHTS)
        if selected == "last":
            _warn_if_unfinished(path, card["trained"]["iterations"], card["trained"]["of"])
        digest = card["weights_sha256"]
    _keep_only(method, method.tested())
    method.to(device, memory_format=torch.channels_last_3d).eval()  # type: ignore[call-overload]
    return Model(method, plan, digest, selected)


def _warn_if_unfinished(where: Path, iteration: int, of: int) -> None:
    if iteration < of:
        log.warning("%s is not finished: iteration %d of %d", where, iteration, of)


def _keep_only(module: nn.Module, kept: tuple[str, ...]) -> None:
    """Drop every submodule but those of these dotted names: teachers and decoders that only training needs."""
    for name, child in list(module.named_children()):
        inside = tuple(path.removeprefix(f"{name}.") for path in kept if path.startswith(f"{name}."))
        if inside:
            _keep_only(child, inside)
        elif name not in kept:
            delattr(module, name)


def count_parameters(method: Method) -> int:
    """Of the networks that the test phase needs: 17,526,562 for SSCL at width 16 (without R's decoder)."""
    tested = method.tested_state()
    return sum(weight.numel() for name, weight in method.named_parameters() if name in tested)


def _fill(method: Method, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load exactly the tensors that the test phase needs, of exactly the right shapes."""
    checkpoint.refuse_other_network(weights, method.tested_state(), path)
    method.load_state_dict(dict(weights), strict=False)


def _from_run(run: Path, recipe: Recipe, select: Select) -> tuple[Method, int]:
    """The method with weights out of the newest checkpoint, and after how many iterations it had them.

    Of the best ones, only the part that `predict` uses is the run's.
    """
    state = checkpoint.newest(run / CHECKPOINTS, torch.device("cpu"))
    if state is None:
        raise UserError(f"{run} has no complete checkpoint yet; train it first.")
    require_recipe(state, run)
    method = build_method(recipe)
    if select == "last":
        with checkpoint.fitting(run / CHECKPOINTS):
            checkpoint.refuse_other_network(state["method"], method.state_dict(), run / CHECKPOINTS)
            method.load_state_dict(state["method"])
            iteration = int(state["iteration"])
    else:
        best = _best(run, recipe, state)
        with checkpoint.fitting(run / CHECKPOINTS):
            _fill(method, best["weights"], run / CHECKPOINTS)
            iteration = int(best["iteration"])
            log.info("%s: the weights after iteration %d, validation Dice %.3f", run, iteration, best["dice"])
    _warn_if_unfinished(run, int(state["iteration"]), recipe.iterations)
    return method, iteration


def _best(run: Path, recipe: Recipe, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the run's validation kept, out of a checkpoint."""
    if not recipe.validation:
        raise UserError(
            f"--select best: {run} was trained without validation, so no weights of it are known to be the best. "
            "Leave --select out for the last ones, or train into another folder with --validation N."
        )
    if "best" not in state:
        raise UserError(
            f"--select best: {run} was not validated yet after {state['iteration']} of {recipe.iterations} iterations. "
            "Train it further; the same command goes on."
        )
    return state["best"]


def _card(path: Path) -> dict[str, Any]:
    if path.is_file():
        raise UserError(
            f"{path}: a file, and a model is a folder with {WEIGHTS} and {CARD}, as `sscl export` writes it. "
            "Checkpoints and archives of other programs are unsafe and never opened: they may run code, or write "
            "outside their folder."
        )
    if not (path / CARD).exists():
        raise UserError(
            f"{path} is neither a run nor a model: it has no {RECIPE} and no {CARD}. "
            "`sscl train` makes a run, `sscl export` a model."
        )
    card = read_sealed(path / CARD, shape=_Card)
    if card["format"] != FORMAT:
        raise UserError(
            f"{path / CARD}: model format {card['format']}, this version reads {FORMAT}. Install the sscl of it."
        )
    return card


def _weights(path: Path, card: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights that the card names, verified."""
    weights = path / WEIGHTS
    if not weights.is_file():
        raise UserError(f"{weights} is missing. Copy the whole model folder.")
    if sha256(weights) != card["weights_sha256"]:
        raise UserError(f"{weights} is damaged: its digest is not the one in {CARD}. Copy or export the model again.")
    try:
        return load_file(weights)
    except SafetensorError as error:
        raise UserError(f"{weights}: not readable ({error}). Export the model again.") from None
