"""The command line: arguments in, stages out, exit codes. Only this package prints."""

import logging

from cyclopts import CycloptsError
from rich.markup import escape

import sscl.cli.stages
import sscl.cli.studies  # noqa: F401  their commands join `app`
from sscl.cli.console import Log, app, err
from sscl.core.errors import UserError
from sscl.core.interrupt import Interrupted

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for a mistake in the input, 128 + signal for an interrupted run."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, handlers=[Log()])
    for noisy in ("numexpr", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        app(arguments, exit_on_error=False, print_error=False)
    except (UserError, CycloptsError) as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename or 'the system'}: {error.strerror or error}.")
    except SystemExit as end:  # cyclopts ends every command so
        return int(end.code or 0)
    except KeyboardInterrupt:
        return 130
    except Interrupted as error:
        err.print(escape(str(error)) + ". The same command goes on from there.")
        return 128 + error.number
    return 0


def _fail(message: str) -> int:
    err.print(f"[bold red]error:[/] {escape(message)}", highlight=False)
    return 2
