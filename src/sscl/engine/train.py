"""The loop: it alone zeroes, back-propagates, steps, logs, guards against NaN. Methods say what to minimise."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sscl.core.batch import Batch, Clock
from sscl.core.errors import UserError
from sscl.core.method import Method, Objective, Optimiser, Phase
from sscl.data.patches import Draw, Loaded

Log = dict[str, float | int | str]

ENGINE_VERSION = 1
"""Raised when the golden traces of all methods move: earlier records of runs then are of another engine."""


@dataclass(frozen=True)
class Span:
    """A phase with its place in the run: iterations start..stop, and the crops that were drawn before it."""

    phase: Phase
    start: int
    stop: int
    labelled_before: int
    unlabelled_before: int

    def draw(self, iteration: int) -> Draw:
        """The crops of one iteration of this span."""
        labelled, unlabelled = self.phase.batch
        first = self.labelled_before + (iteration - self.start) * labelled
        second = self.unlabelled_before + (iteration - self.start) * unlabelled
        return Draw(range(first, first + labelled), range(second, second + unlabelled))


def timeline(phases: tuple[Phase, ...], iterations: int) -> tuple[Span, ...]:
    """Phases laid out over a run; each gets its share, rounded, and at least one iteration.

    Raises:
        UserError: fewer iterations than phases.
    """
    if iterations < len(phases):
        raise UserError(
            f"{iterations} iterations are too few for {len(phases)} phases; give --iterations {len(phases)} or more."
        )
    spans: list[Span] = []
    done = 0.0
    start = labelled = unlabelled = 0
    for index, phase in enumerate(phases):
        done += phase.share
        left = len(phases) - index - 1
        stop = iterations if left == 0 else min(max(start + 1, round(done * iterations)), iterations - left)
        spans.append(Span(phase, start, stop, labelled, unlabelled))
        labelled += (stop - start) * phase.batch[0]
        unlabelled += (stop - start) * phase.batch[1]
        start = stop
    return tuple(spans)


class Trainer:
    """A method, its optimisers, and how far they are. Everything that a checkpoint must hold is in `state`."""

    def __init__(
        self,
        method: Method,
        iterations: int,
        seed: int,
        device: torch.device,
        precision: str = "float32",
    ) -> None:
        # channels last is what both oneDNN and cuDNN are fastest with
        self.method = method.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.spans = timeline(method.phases(method.config), iterations)
        self.iterations, self.iteration = iterations, 0
        self._seed, self._device, self._precision = seed, device, precision
        self._players = dict(method.players())
        self._optimisers: dict[str, torch.optim.Optimizer] = {}
        self._fresh_optimisers()

    def run(
        self, load: Callable[[Span, int], Loaded], after_step: Callable[[Log], bool], stop_at: int | None = None
    ) -> None:
        """Train from the current iteration to the end of the run (or `stop_at`), unless `after_step` says stop.

        load: the crops of an iteration. after_step: gets what is to be logged; returns False to stop.
        """
        last = self.iterations if stop_at is None else stop_at
        while self.iteration < last:
            span = next(span for span in self.spans if self.iteration < span.stop)
            if self.iteration == span.start:
                self._begin(span.phase)
            if not after_step(self.step(span, load(span, self.iteration))):
                return

    def step(self, span: Span, loaded: Loaded) -> Log:
        """One iteration of the method: every objective that it yields, minimised in turn."""
        clock = Clock(
            self.iteration, self.iterations, span.phase.name, self.iteration - span.start, span.stop - span.start
        )
        _seed_torch(self._seed, "step", self.iteration)
        self.method.train()
        log: Log = {"iteration": self.iteration, "phase": span.phase.name}
        steps = self.method.step(self._on_device(loaded.batch), clock)
        while (objective := self._resume(steps)) is not None:
            self._minimise(objective, span.phase, clock, loaded.cases, log)
        self.iteration += 1
        return log

    def state(self) -> dict[str, Any]:
        """Tensors and plain values from which `restore` goes on bit by bit."""
        optimisers = {player: optimiser.state_dict() for player, optimiser in self._optimisers.items()}
        return {"iteration": self.iteration, "method": self.method.state_dict(), "optimisers": optimisers}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned, in this or an earlier process."""
        self.method.load_state_dict(state["method"])
        for player, optimiser in self._optimisers.items():
            optimiser.load_state_dict(state["optimisers"][player])
        self.iteration = int(state["iteration"])

    def _begin(self, phase: Phase) -> None:
        _seed_torch(self._seed, "begin", self.iteration)
        if phase.fresh_optimisers:
            self._fresh_optimisers()
        self.method.begin(phase.name)

    def _fresh_optimisers(self) -> None:
        settings = self.method.optimisers()
        self._optimisers = {name: _optimiser(player, settings[name]) for name, player in self._players.items()}

    def _resume(self, steps: Iterator[Objective]) -> Objective | None:
        """The next objective, in a new autocast context: weights cached in low precision would outlive a step."""
        with self._autocast():
            return next(steps, None)

    def _minimise(self, objective: Objective, phase: Phase, clock: Clock, cases: tuple[str, ...], log: Log) -> None:
        """Back-propagate into this player only, then step its optimiser."""
        name, optimiser = objective.player, self._optimisers[objective.player]
        weights = [weight for weight in self._players[name].parameters() if weight.requires_grad]
        loss = float(objective.loss.detach())
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise UserError(
                f"the loss of '{name}' became {loss} at iteration {clock.iteration}; cases in the batch: "
                f"{', '.join(cases)}. The last checkpoint is kept. Look at these cases, or lower the learning rate "
                "(--set optimiser.learning_rate=0.001)."
            )
        settings = self.method.optimisers()[name]
        rate = settings.learning_rate * (phase.schedule or settings.schedule).factor(clock)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad(set_to_none=True)
        objective.loss.backward(inputs=weights)  # type: ignore[no-untyped-call]
        optimiser.step()
        log |= {f"{name}/loss": loss, f"{name}/lr": rate}
        log |= {
            f"{name}/{key}": float(torch.as_tensor(value).detach())
            for key, value in {**objective.terms, **objective.gauges}.items()
        }

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._precision == "bf16")

    def _on_device(self, batch: Batch) -> Batch:
        def image(x: Tensor) -> Tensor:
            return x.to(self._device, memory_format=torch.channels_last_3d, non_blocking=True)

        targets = {name: target.to(self._device) for name, target in batch.targets.items()}
        return Batch(image(batch.labelled), batch.label.to(self._device), image(batch.unlabelled), targets)


def _optimiser(player: nn.Module, settings: Optimiser) -> torch.optim.Optimizer:
    weights = [weight for weight in player.parameters() if weight.requires_grad]
    if settings.kind != "sgd":
        kind = torch.optim.Adam if settings.kind == "adam" else torch.optim.AdamW
        betas = (settings.momentum, settings.beta2)
        return kind(weights, settings.learning_rate, betas=betas, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        weights, settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
    )


def _seed_torch(seed: int, purpose: str, iteration: int) -> None:
    """Dropout and noise depend on (seed, purpose, iteration) alone, so that a resumed run draws what it would have."""
    digest = hashlib.blake2b(f"{seed} {purpose} {iteration}".encode(), digest_size=7).digest()
    torch.manual_seed(int.from_bytes(digest, "big"))
