"""Losses of three steps of every method, as they were: a refactor must not move them.

A change that is meant to move them raises the version of the method (the table METHODS) or of the engine
(engine/train.py), because records of runs then no longer stand for what would be run now; then it runs this file as a
script (`python tests/golden/test_traces.py`), and its commit names both numbers, the old and the new one.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sscl.core.batch import Batch
from sscl.data.patches import MAKERS, Loaded
from sscl.engine.train import ENGINE_VERSION, Span, Trainer
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


def same(found: list[dict[str, Any]], before: list[dict[str, Any]]) -> bool:
    return len(found) == len(before) and all(
        log.keys() == old.keys() and log == pytest.approx(old, rel=TOLERANCE, abs=1e-7)
        for log, old in zip(found, before, strict=True)
    )


@pytest.mark.parametrize("name", METHODS)
def test_losses_are_what_they_were(name: str) -> None:
    assert same(trace(name), EXPECTED[name]["trace"])


def test_traces_are_those_of_the_declared_versions() -> None:
    assert {name: entry["versions"] for name, entry in EXPECTED.items()} == {
        name: [ENGINE_VERSION, entry.version] for name, entry in METHODS.items()
    }


def renewed(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The file's new content. Raises SystemExit for a trace that moved although no version was raised."""
    for name, entry in now.items():
        old = before.get(name)
        if old and old["versions"] == entry["versions"]:
            if not same(entry["trace"], old["trace"]):
                raise SystemExit(f"the trace of {name} moved: raise its version in METHODS, or the engine's")
            now = now | {name: old}
    return now


def test_a_moved_trace_needs_a_new_version() -> None:
    old = {"m": {"versions": [1, 1], "trace": [{"student/loss": 1.0}]}}
    moved = {"versions": [1, 1], "trace": [{"student/loss": 1.1}]}
    with pytest.raises(SystemExit, match="raise its version"):
        renewed(old, {"m": moved})
    raised = {"m": moved | {"versions": [1, 2]}}
    assert renewed(old, raised) == raised
    rounded = {"versions": [1, 1], "trace": [{"student/loss": 1.0000001}]}
    assert renewed(old, {"m": rounded}) == old


if __name__ == "__main__":
    torch.set_num_threads(1)
    traces = {n: {"versions": [ENGINE_VERSION, e.version], "trace": trace(n)} for n, e in METHODS.items()}
    FILE.write_text(json.dumps(renewed(EXPECTED, traces), indent=1) + "\n", encoding="utf-8")
