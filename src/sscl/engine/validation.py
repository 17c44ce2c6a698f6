"""Which of a run's weights are best, by labelled cases that are not trained on."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sscl.core.method import Method
from sscl.core.plan import IGNORE, Plan
from sscl.data.store import CaseStore
from sscl.engine.window import sliding_window
from sscl.metrics.overlap import dice

VALIDATIONS = 20
"""So many times a run, equally spaced, the last iteration included."""


class Validation:
    """Scores a method while it trains and keeps the weights of the best time. Without cases it does nothing.

    What it keeps travels in the checkpoints: it is never ahead of the state that a run goes on from.
    """

    def __init__(
        self,
        store: CaseStore,
        cases: Sequence[str],
        plan: Plan,
        iterations: int,
        device: torch.device,
        precision: str = "float32",
    ) -> None:
        self._store, self._cases, self._plan = store, tuple(cases), plan
        self._device, self._precision = device, precision
        times = range(1, VALIDATIONS + 1) if cases else ()
        self._due = {math.ceil(iterations * k / VALIDATIONS) for k in times}
        self._best: dict[str, Any] | None = None

    def after(self, iteration: int, method: Method) -> dict[str, float]:
        """To be called after each iteration, with how many are done; returns what is to be logged of it.

        The method is left as it was, but for torch's generators, which the engine seeds before each iteration.
        """
        if iteration not in self._due:
            return {}
        found = self.dice(method)
        if self._best is None or found >= self._best["dice"]:  # of equal ones the later, which has learnt longer
            self._best = {"iteration": iteration, "dice": found, "weights": method.tested_state()}
        return {"validation/dice": found}

    def dice(self, method: Method) -> float:
        """Mean over cases of the mean Dice over their organs, 0 to 1; an organ that is in neither mask counts as 1.

        Predicted as `sscl predict` does, by the method's test phase in the plan's windows, but compared on the data
        set's own grid: the store holds no masks on that of the scans.
        """
        method.eval()
        scores = [self._dice_of(case, method) for case in self._cases]
        method.train()
        return float(np.mean(scores))

    def state(self) -> dict[str, Any]:
        """`best`, once there is one: `iteration` (so many were done), `dice`, `weights` that `predict` needs."""
        return {} if self._best is None else {"best": self._best}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned, out of a checkpoint."""
        self._best = state.get("best")

    def _dice_of(self, case: str, method: Method) -> float:
        plan, label = self._plan, np.asarray(self._store.label(case)[:])
        image = torch.from_numpy(np.asarray(self._store.image(case)[:], dtype=np.float32))
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            p = sliding_window(method.predict, image, plan.patch, plan.stride, plan.weighting, device=self._device)
        return mean_dice(p.numpy().argmax(0), label, plan.num_classes)


def mean_dice(prediction: NDArray[Any], label: NDArray[Any], num_classes: int) -> float:
    """Mean Dice of the classes but the background, of two label arrays (x, y, z), where the second is not IGNORE."""
    counted = label != IGNORE
    scores = [dice((prediction == value) & counted, label == value) for value in range(1, num_classes)]
    return float(np.mean([1.0 if score is None else score for score in scores]))
