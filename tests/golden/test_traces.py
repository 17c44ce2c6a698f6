"""Losses of three steps of every method, as they were: a refactor must not move them.

A change that is meant to move them runs this file as a script (`python tests/golden/test_traces.py`), and its commit
names both numbers, the old and the new one, with seed and spread.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sscl.core.batch import Batch
from sscl.data.patches import MAKERS, Loaded
from sscl.engine.train import Span, Trainer
from sscl.methods import METHODS, method_class

FILE = Path(__file__).with_name("traces.json")
STEPS, SEED = 3, 0
# Rounding differs between processors and builds of torch by about 1e-6 a step; a real change is far larger.
TOLERANCE = 1e-4

SETTINGS: dict[str, dict[str, Any]] = {"sscl": {"threshold": 0.3}}
"""With its own threshold the untrained teacher sees no organ, and the unsupervised loss is 0."""


def _load(span: Span, iteration: int) -> Loaded:
    """Noise and a label that follows from it, two classes, 32x32x16."""
    generator = torch.Generator().manual_seed(iteration)
    labelled, unlabelled = (torch.randn(n, 1, 32, 32, 16, generator=generator) for n in span.phase.batch)
    label = (labelled[:, 0] > 0.5).long()
    return Loaded(
        Batch(labelled, label, unlabelled, {name: make(label, 2) for name, make in MAKERS.items()}), ("case",)
    )


def trace(name: str) -> list[dict[str, Any]]:
    """What the log of a run at width 2 holds of losses, terms and gauges."""
    cls = method_class(name)
    torch.manual_seed(SEED)
    trainer = Trainer(cls(cls.Config(width=2, **SETTINGS.get(name, {})), 1, 2), STEPS, SEED, torch.device("cpu"))
    logs: list[dict[str, Any]] = []

    def keep(log: dict[str, Any]) -> bool:
        logs.append({key: value for key, value in log.items() if "/" in key})
        return True

    trainer.run(_load, keep)
    return logs


EXPECTED = json.loads(FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", EXPECTED)
def test_losses_are_what_they_were(name: str) -> None:
    expected = EXPECTED[name]
    found = trace(name)
    assert [log.keys() for log in found] == [log.keys() for log in expected]
    for log, before in zip(found, expected, strict=True):
        assert log == pytest.approx(before, rel=TOLERANCE, abs=1e-7)


if __name__ == "__main__":
    torch.set_num_threads(1)
    FILE.write_text(json.dumps({name: trace(name) for name in METHODS}, indent=1) + "\n", encoding="utf-8")
