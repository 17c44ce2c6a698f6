"""What the contract has to know of one method beyond its Config: `CONTRACT` in tests/equations/test_<name>.py."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from checks import Average

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Notes:
    """All of it optional."""

    variants: tuple[Settings, ...] = ()
    """Configurations whose step takes another way than the default one."""
    short: Settings = field(default_factory=dict)
    """Settings with which a run over all phases takes less time."""
    mixed: tuple[str, ...] = ()
    """Terms that mix labelled and unlabelled images because the paper does."""
    through: tuple[str, ...] = ()
    """Networks that a loss passes on its way to its player: an adversary's weights."""
    averages: tuple[Average, ...] | None = None
    """Teachers that are not a `teacher` following a `student`."""
    values: Settings = field(default_factory=dict)
    """Dotted name of a setting to the other value that a run of three steps shows."""
    under: Mapping[str, Settings] = field(default_factory=dict)
    """Dotted name of a setting that acts only where others say so, to those."""


@cache
def notes(method: str) -> Notes:
    """The notes beside the method's own test, or none."""
    name = f"test_{method}"
    return getattr(import_module(name), "CONTRACT", Notes()) if find_spec(name) else Notes()
