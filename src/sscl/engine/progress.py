"""How far a run is, in lines; no torch."""

import time
from collections.abc import Callable
from typing import Any

LINES = 20
"""Of a run that does not write to a terminal."""


def told_in_lines(tell: Callable[[str], object]) -> Callable[[dict[str, Any], int], None]:
    """For `on_step` of `train`: tells iterations, time left and losses, some `LINES` times a run."""
    first: list[tuple[int, float]] = []

    def on_step(log: dict[str, Any], total: int) -> None:
        done = log["iteration"] + 1
        if not first or done <= first[0][0]:
            first[:] = [(done, time.monotonic())]
        elif done == total or done % max(1, total // LINES) == 0:
            pace = (time.monotonic() - first[0][1]) / (done - first[0][0])
            tell(f"{log['phase']} {done}/{total}, {duration(pace * (total - done))} left, {losses_of(log)}")

    return on_step


def losses_of(log: dict[str, Any]) -> str:
    """Of each player: "student/loss 0.123"."""
    return "  ".join(f"{key} {value:.3f}" for key, value in log.items() if key.endswith("/loss"))


def duration(seconds: float) -> str:
    """In the unit that fits: "12 s", "3.4 min", "5.6 h"."""
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:.1f} h" if hours >= 2 else f"{minutes:.1f} min" if minutes >= 1 else f"{seconds:.0f} s"
