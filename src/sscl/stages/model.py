"""Finished models: `sscl export`, `sscl info`, and loading one for prediction. Tensors + JSON, never pickled code."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from sscl import __version__
from sscl.core.errors import UserError
from sscl.core.files import read_object, sha256, write_atomic, write_json
from sscl.core.method import Method
from sscl.core.plan import Plan
from sscl.engine import checkpoint
from sscl.engine.run import RECIPE, Recipe, read_recipe
from sscl.methods import method_class
from sscl.stages.recipe import build_method
from sscl.stages.train import CHECKPOINTS

log = logging.getLogger("sscl")

WEIGHTS, CARD = "weights.safetensors", "model.json"
FORMAT = 1


@dataclass(frozen=True)
class Model:
    """A method that is ready to predict and holds only what that needs, and what must be known about it."""

    method: Method
    plan: Plan
    digest: str
    """Of the weights."""


def export(run: Path, out: Path) -> Path:
    """Write the model of a run: the networks that the test phase needs, plan, labels, versions and digests.

    Raises:
        UserError: not a run folder, no checkpoint in it, or `out` exists with something else in it.
    """
    recipe = read_recipe(run)
    if out.exists() and any(path.name not in (WEIGHTS, CARD) for path in out.iterdir()):
        raise UserError(f"{out} exists and is not a model folder. Give another -o.")
    method, iteration = _from_run(run, recipe)
    _warn_if_unfinished(run, iteration, recipe.iterations)
    weights = _tested(method)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / WEIGHTS, lambda file: file.write(save(weights)))
    card = {
        "format": FORMAT,
        "method": recipe.method,
        "config": recipe.config,
        "plan": recipe.plan.model_dump(mode="json"),
        "labels": list(recipe.plan.labels),
        "parameters": count_parameters(method),
        "weights_sha256": sha256(out / WEIGHTS),
        "trained": {
            "iterations": iteration,
            "of": recipe.iterations,
            "seed": recipe.seed,
            "labelled": len(recipe.labelled),
            "unlabelled": len(recipe.unlabelled),
            "data_digest": recipe.data_digest,
            "versions": recipe.versions,
        },
        "sscl": __version__,
    }
    write_json(out / CARD, card)
    return out


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


def load_model(path: Path, device: torch.device) -> Model:
    """A RUN (its newest checkpoint) or an exported MODEL, in evaluation mode on the device.

    Raises:
        UserError: neither, or damaged, or of a newer format.
    """
    if (path / RECIPE).is_file():
        recipe = read_recipe(path)
        method, iteration = _from_run(path, recipe)
        _warn_if_unfinished(path, iteration, recipe.iterations)
        plan, digest = recipe.plan, _weights_digest(method)
    else:
        card = _card(path)
        weights = _weights(path, card)
        cls = method_class(card["method"])
        plan = Plan.read(card["plan"], str(path / CARD))
        config = cls.Config.read(card["config"], str(path / CARD))
        method = cls(config, len(plan.channels), plan.num_classes)
        _fill(method, weights, path / WEIGHTS)
        _warn_if_unfinished(path, card["trained"]["iterations"], card["trained"]["of"])
        digest = card["weights_sha256"]
    _keep_only(method, method.tested())
    return Model(method.to(device, memory_format=torch.channels_last_3d).eval(), plan, digest)  # type: ignore[call-overload]


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
    return sum(weight.numel() for name, weight in method.named_parameters() if name.startswith(_prefixes(method)))


def _prefixes(method: Method) -> tuple[str, ...]:
    return tuple(f"{name}." for name in method.tested())


def _tested(method: Method) -> dict[str, Tensor]:
    """The part of the state that the test phase needs, in plain memory order."""
    state: Mapping[str, Tensor] = method.state_dict()
    return {name: t.detach().cpu().contiguous() for name, t in state.items() if name.startswith(_prefixes(method))}


def _fill(method: Method, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load exactly the tensors that the test phase needs, of exactly the right shapes."""
    wanted = _tested(method)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = [name for name, tensor in wanted.items() if shapes.get(name) != tuple(tensor.shape)]
    wrong += [name for name in weights if name not in wanted]
    if wrong:
        raise UserError(
            f"{path}: these weights belong to another network; the first that differ: {', '.join(wrong[:3])}. "
            "Use the model.json that was exported with them."
        )
    method.load_state_dict(dict(weights), strict=False)


def _from_run(run: Path, recipe: Recipe) -> tuple[Method, int]:
    """The method with the weights of the newest checkpoint, and after how many iterations that is."""
    state = checkpoint.newest(run / CHECKPOINTS, torch.device("cpu"))
    if state is None:
        raise UserError(f"{run} has no complete checkpoint yet; train it first.")
    method = build_method(recipe)
    method.load_state_dict(state["method"])
    return method, int(state["iteration"])


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
    card = read_object(path / CARD, "format", "method", "config", "plan", "weights_sha256", "trained")
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


def _weights_digest(method: Method) -> str:
    import hashlib

    return hashlib.sha256(save(_tested(method))).hexdigest()
