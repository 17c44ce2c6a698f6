"""How commands print and what they are collected in. Nothing outside of this package prints."""

import logging
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from sscl import __version__
from sscl.engine.progress import losses_of, told_in_lines


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Whoever read along has gone (`| head -1`); the work goes on."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


out = _Console(soft_wrap=True)
err = _Console(stderr=True, soft_wrap=True)
app = App(
    name="sscl",
    version=__version__,
    help="Segmentation of 3-D medical scans from a handful of masks and many unlabelled scans.",
    help_on_error=False,
    default_parameter=Parameter(negative=()),
)

Out = Annotated[Path, Parameter(name=["--out", "-o"])]
Settings = Annotated[tuple[str, ...], Parameter(name="--set", show_default=False)]
Device = Annotated[str, Parameter(help="auto, cpu, cuda, cuda:N or mps.")]
Precision = Annotated[Literal["auto", "float32", "bf16"], Parameter(help="auto: bf16 on a GPU that has it.")]
Threads = Annotated[int | None, Parameter(help="CPU threads; OMP_NUM_THREADS or all if not given.")]


class Log(logging.Handler):
    """Library messages as plain lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        mark = "[yellow]warning:[/] " if record.levelno >= logging.WARNING else ""
        err.print(mark + escape(record.getMessage()), highlight=False)


def say(text: str) -> None:
    out.print(escape(text), highlight=False)


def following(*words: object) -> str:
    """The next command on the way from scans to a report, as README.md has it; to be copied as it stands."""
    return f"Next: sscl {shlex.join(map(str, words))}"


def table(rows: list[list[str]]) -> None:
    """A table, the first row its head; where no terminal reads it, a line a row, columns apart by two spaces."""
    if not out.is_terminal:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            say("  ".join(map(str.ljust, row, widths)).rstrip())
        return
    table = Table(*rows[0])
    for row in rows[1:]:
        table.add_row(*map(escape, row))
    out.print(table)


@contextmanager
def training_progress(title: str) -> Iterator[Callable[[dict[str, Any], int], None]]:
    """A bar with time left on a terminal; otherwise plain lines, some twenty a run."""
    if not err.is_terminal:
        yield told_in_lines(partial(err.print, markup=False, highlight=False))
        return
    phase, losses = TextColumn("{task.description}"), TextColumn("{task.fields[losses]}")
    columns = (phase, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), losses)
    with Progress(*columns, console=err) as bar:
        task = bar.add_task(title, total=None, losses="")

        def on_step(log: dict[str, Any], total: int) -> None:
            bar.update(
                task, completed=log["iteration"] + 1, total=total, losses=losses_of(log), description=log["phase"]
            )

        yield on_step
