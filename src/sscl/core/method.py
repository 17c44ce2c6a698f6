"""The one idea: a method's `step` yields what to minimise, in the order of its paper; the engine does the rest."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sscl.core.batch import Batch, Clock
from sscl.core.config import Config
from sscl.core.errors import UserError


class Schedule(Config):
    """Learning rate over a phase, as a factor of the initial one."""

    kind: Literal["constant", "poly", "step", "cosine"] = "poly"
    power: float = 0.9
    """`poly`: (1 - fraction) ** power."""
    every: PositiveInt = 2500
    """`step`: a factor of 0.1 each so many iterations."""

    def factor(self, clock: Clock) -> float:
        """What the initial learning rate is multiplied by at this step."""
        if self.kind == "poly":
            return float((1 - clock.fraction) ** self.power)
        if self.kind == "cosine":
            return (1 + math.cos(math.pi * clock.fraction)) / 2
        return 0.1 ** (clock.phase_iteration // self.every) if self.kind == "step" else 1.0


class Optimiser(Config):
    """How one player is trained: SGD unless the paper says otherwise."""

    kind: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: PositiveFloat = 0.01
    momentum: NonNegativeFloat = 0.9
    """SGD's momentum, Adam's first beta."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Adam's second beta."""
    weight_decay: NonNegativeFloat = 1e-4
    schedule: Schedule = Schedule()


class Phase(Config):
    """A stretch of the run with its own batch."""

    name: str
    share: float = Field(gt=0, le=1)
    """Part of the run's iterations."""
    batch: tuple[NonNegativeInt, NonNegativeInt]
    """Labelled and unlabelled crops a step."""
    fresh_optimisers: bool = False
    """Whether the optimisers forget their momentum when the phase starts."""
    schedule: Schedule | None = None
    """Replaces every optimiser's own schedule during this phase."""


class Literature(Config):
    """How the method's paper or code trains, where that differs from the `shared` schedule: `--schedule literature`."""

    iterations: PositiveInt
    """Iterations of the engine, all phases together: batches, not optimiser steps, of which UCMT makes two."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Dotted names of the method's Config to values."""

    def settings_for(self, iterations: int) -> dict[str, Any]:
        """The settings of a run of another length, whose steps of the learning rate come after the same parts of it.

        Ramps and the other schedules are parts of a run by themselves. Left at 2500, a run of 600 iterations would
        never decay, and say nothing of it.
        """
        scale = iterations / self.iterations
        return {
            name: max(1, round(value * scale)) if name.endswith("schedule.every") else value
            for name, value in self.settings.items()
        }


TENTH_EVERY_2500 = {"optimiser.schedule.kind": "step", "optimiser.schedule.every": 2500}
"""The left-atrium lineage's learning rate, from UA-MT on."""

Target = Literal["signed_distance"]
"""What the loader can make from the labels of a batch besides them."""


class MethodConfig(Config):
    """What every method can be told. Subclasses add their paper's numbers, each with its table or section."""

    width: PositiveInt = 16
    """Channels of the first stage; doubled at each of the four further ones."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Channel dropout at the bottleneck and before the last convolution (UA-MT's V-Net)."""
    optimiser: Optimiser = Optimiser()
    """SGD, 0.01, 0.9, 1e-4 (SSCL sec. 4.1, as in the whole lineage)."""

    acts_with: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Settings without effect unless others have a certain value, or one of several; True: are on, which is anything
    but 0 and off. A group (a critic's optimiser) stands for all that is in it.
    """

    def refuse_ignored(self, explicit: Mapping[str, Any], where: str) -> None:
        """Raises UserError for a setting of the user's that the others leave without effect.

        explicit: what the user set, dotted or nested; defaults and presets are no promises.
        """
        for setting in _leaves(explicit):
            for other, wanted in self._needs(setting).items():
                value = attrgetter(other)(self)
                allowed = wanted if isinstance(wanted, tuple) else (wanted,)
                if (bool(value) if wanted is True else value) not in allowed:
                    hint = f" It needs {other}={' or '.join(map(str, allowed))}." if wanted is not True else ""
                    now = f"{other}={value}".lower()
                    raise UserError(f"{where}: {setting} has no effect with {now}. Leave one of them out.{hint}")

    def _needs(self, setting: str) -> dict[str, Any]:
        """What a dotted setting needs of others: by `acts_with`, and inside of its optimiser."""
        group, _, rest = setting.partition(".")
        inside = _OPTIMISER.get(rest, {}) if isinstance(getattr(self, group), Optimiser) else {}
        return {**self.acts_with.get(group, {}), **{f"{group}.{name}": wanted for name, wanted in inside.items()}}


_OPTIMISER: dict[str, dict[str, Any]] = {
    "beta2": {"kind": ("adam", "adamw")},
    "schedule.power": {"schedule.kind": "poly"},
    "schedule.every": {"schedule.kind": "step"},
}


def _leaves(values: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Dotted names of all values."""
    for name, value in values.items():
        yield from _leaves(value, f"{path}{name}.") if isinstance(value, Mapping) else [f"{path}{name}"]


@dataclass(frozen=True)
class Objective:
    """Minimise `loss` over `player`, now.

    terms: the named parts of the loss, before weighting; each is proven alive by the contract test.
    gauges: further numbers worth logging.
    """

    player: str
    loss: Float[Tensor, ""]
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    gauges: Mapping[str, Tensor | float] = field(default_factory=dict)


class Method(nn.Module, ABC):
    """A semi-supervised segmentation method. Abstract; every method is final.

    A method keeps what it needs between steps in submodules, buffers or `get_extra_state`, nothing else, so that
    stopping and resuming needs no code of its own.
    """

    Config: ClassVar[type[MethodConfig]]
    literature: ClassVar[Literature]
    targets: ClassVar[tuple[Target, ...]] = ()
    """What `step` finds in `batch.targets`."""

    config: Any

    @abstractmethod
    def __init__(self, config: Any, in_channels: int, num_classes: int) -> None:
        """Build the networks. num_classes counts the background (the paper's C + 1)."""
        super().__init__()
        self.config = config

    @classmethod
    @abstractmethod
    def phases(cls, config: Any) -> tuple[Phase, ...]:
        """The stretches of a run, their shares adding up to 1."""

    @abstractmethod
    def players(self) -> Mapping[str, nn.Module]:
        """Who is trained: one optimiser each."""

    @abstractmethod
    def step(self, batch: Batch, clock: Clock) -> Iterator[Objective]:
        """One iteration: the paper's equations, in the paper's order.

        The engine minimises each objective over its player before it resumes the method, which then sees the new
        weights. No `no_grad` block may span a yield, and a graph may not be used after the yield that consumed it.
        """

    @abstractmethod
    def predict(self, images: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b classes x y z"]:
        """The paper's test phase: class probabilities, adding up to 1 at each voxel."""

    @abstractmethod
    def tested(self) -> tuple[str, ...]:
        """Names of the submodules that `predict` uses: what a finished model consists of."""

    def tested_state(self) -> dict[str, Tensor]:
        """The part of the state that `predict` uses: copies on the CPU, in plain memory order."""
        prefixes = tuple(f"{name}." for name in self.tested())
        return {
            name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in self.state_dict().items()
            if name.startswith(prefixes)
        }

    def begin(self, phase: str) -> None:
        """Called once when a phase starts, before its first step: for instance teacher <- student."""

    def optimisers(self) -> Mapping[str, Optimiser]:
        """How each player is trained; the config's `optimiser` for all of them unless a method says otherwise."""
        return dict.fromkeys(self.players(), self.config.optimiser)
