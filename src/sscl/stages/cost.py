"""What a run will take: some of its steps, timed."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from sscl.core.errors import UserError
from sscl.data.patches import Loaded
from sscl.engine import checkpoint
from sscl.engine.train import Span, Trainer
from sscl.engine.validation import VALIDATIONS, Validation
from sscl.stages.device import peak_memory_bytes, told_if_memory_ends

log = logging.getLogger("sscl")

TIMED_STEPS = 20
"""Of a run, at most, shared among its phases."""
TIMED_SECONDS = 10.0
"""So long a phase is timed, at most, where a step is long; two steps all the same, of which the first allocates."""
LESS_MEMORY = (
    "Prepare the data set with a smaller patch (--set patch=64,64,64), or train on the CPU (--device cpu) or with a "
    "narrower network (--set width=8) into another folder."
)


@dataclass(frozen=True)
class Cost:
    """What a run will take, from real steps."""

    iterations: int
    seconds_per_iteration: float
    peak_memory_bytes: int
    disk_bytes: int
    validation_seconds: float = 0.0
    """All validations together."""

    @property
    def seconds(self) -> float:
        """The whole run."""
        return self.iterations * self.seconds_per_iteration + self.validation_seconds

    def fits(self, minutes: float) -> int:
        """How many iterations take that long; at least two, as many as there are phases."""
        return max(2, int((minutes * 60 - self.validation_seconds) / self.seconds_per_iteration))


def timed(
    trainer: Trainer, load: Callable[[Span, int], Loaded], validated: Validation | None, place: torch.device
) -> Cost:
    """Time some steps of each phase, and one validation if there will be any. Spoils the weights."""
    seconds = 0.0
    most = max(2, TIMED_STEPS // len(trainer.spans))
    for span in trainer.spans:
        log.info("timing phase %s: at most %d steps, 2 where one takes long", span.phase.name, most + 1)
        ends = [time.perf_counter()]
        while len(ends) <= 2 or (len(ends) <= most + 1 and ends[-1] - ends[0] < TIMED_SECONDS):
            trainer.iteration = span.start
            with told_if_memory_ends(LESS_MEMORY), told_if_patch_is_small():
                trainer.step(span, load(span, span.start))
            if place.type == "cuda":
                torch.cuda.synchronize()
            ends.append(time.perf_counter())
        a_step = (ends[-1] - ends[1]) / (len(ends) - 2)  # the first one allocates
        log.info("%s: %.2f s a step", span.phase.name, a_step)
        seconds += a_step * span.phase.share
    size = sum(t.numel() * t.element_size() for t in trainer.method.state_dict().values())
    momenta = sum(w.numel() * w.element_size() for p in trainer.method.players().values() for w in p.parameters())
    best, validations = 0, 0.0
    if validated:
        best = sum(t.numel() * t.element_size() for t in trainer.method.tested_state().values())
        began = time.perf_counter()
        validated.dice(trainer.method)
        validations = (time.perf_counter() - began) * VALIDATIONS
    disk = checkpoint.KEEP * (size + momenta + best) + trainer.iterations * 300
    return Cost(trainer.iterations, seconds, peak_memory_bytes(place), disk, validations)


@contextmanager
def told_if_patch_is_small() -> Iterator[None]:
    """Raises UserError where a network halves a patch down to one voxel and then has nothing to normalise it by."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 "):  # torch's, of instance norm and of batch norm
            raise
        raise UserError(
            "the method's network halves the patch until a single voxel is left, which its norm cannot train on. "
            "Prepare the data set with a larger patch (--set patch=32,32,32)."
        ) from None
