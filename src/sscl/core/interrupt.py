"""Stopping in good order when the user or a batch system asks for it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):  # noqa: N818 - nothing went wrong
    """A signal asked for a stop, which came after saving. The same command goes on from there."""

    def __init__(self, number: int, then: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}{then}")
        self.number = number


@contextmanager
def unwound() -> Iterator[None]:
    """SIGTERM ends the program by way of what it has to clean up, as Ctrl-C does."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # not the main thread: whoever called us handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


_ever: list[int] = []


def was_noted() -> bool:
    """Whether this process has noted a signal: it saves and ends, and a second one would end it at once."""
    return bool(_ever)


@contextmanager
def raised_signals(then: str) -> Iterator[None]:
    """SIGINT and SIGTERM raise Interrupted in the main thread; a second one acts as it would have before."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each, handler in previous.items():
            signal.signal(each, handler)
        raise Interrupted(number, then)

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in previous:
            signal.signal(number, stop)
    except ValueError:  # not the main thread: whoever called us handles signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM are noted, to be obeyed after the current step; a second one acts at once."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        _ever.append(number)
        signal.signal(number, previous[signal.Signals(number)])

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in previous:
            signal.signal(number, note)
    except ValueError:  # not the main thread: whoever called us handles signals
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
