"""The tiny data set and a run trained on it, shared by the tests of this folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_set import Tiny, make_source, prepared


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    root = tmp_path_factory.mktemp("tiny")
    source = make_source(root / "source")
    return Tiny(source, prepared(source, root / "dataset"))


@pytest.fixture(scope="session")
def train_tiny(tiny: Tiny) -> Callable[..., Path]:
    """Train a small SSCL for 6 iterations on one CPU thread; keywords are those of `train`."""
    from sscl.stages.train import train

    def run(out: Path, *, settings: dict[str, Any] | None = None, **options: Any) -> Path:
        options = {"dataset": tiny.dataset, "iterations": 6, "threads": 1, "device": "cpu", **options}
        train(**options, out=out, settings={"width": 2, **(settings or {})})
        return out

    return run


@pytest.fixture(scope="session")
def trained(train_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. Read only."""
    return train_tiny(tmp_path_factory.mktemp("runs") / "run")
