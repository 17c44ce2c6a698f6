"""What a user did wrong, in words that say how to mend it."""

import difflib
from collections.abc import Iterable

SHOWN = 10
"""Messages of one error that are printed."""


class UserError(ValueError):
    """A mistake in the input, not in the program: shown as one message without a traceback, exit code 2.

    The message says what was wrong, what was expected, and what to do. Several mistakes found at once are one error:
    `UserError(*messages)`, of which the first few are shown.
    """

    def __str__(self) -> str:
        if len(self.args) < 2:
            return super().__str__()
        more = [f"... and {len(self.args) - SHOWN} more"] if len(self.args) > SHOWN else []
        return "\n  ".join([f"{len(self.args)} mistakes:", *map(str, self.args[:SHOWN]), *more])


def refuse(messages: Iterable[str]) -> None:
    """Raises UserError with these messages, if there are any."""
    if found := tuple(messages):
        raise UserError(*found)


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a list: "method 'ssc1' is unknown. Did you mean 'sscl'? Known: ..."."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return UserError(f"{kind} '{name}' is unknown.{hint} Known: {', '.join(names)}.")
