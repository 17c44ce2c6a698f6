"""A stage's output folder, whole or not there, and what its inputs are known by."""

import hashlib
import logging
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from sscl.core.errors import UserError
from sscl.core.files import sha256

logger = logging.getLogger("sscl")


@contextmanager
def built(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` in the end, or vanishes."""
    folder = out.parent / f".{out.name}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True)
        yield folder
        if out.exists():
            out.rmdir()
        folder.rename(out)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written: {error.strerror or error}. Check free space and permissions."
        ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Once(logging.Filter):
    """Keeps every warning, and lets each through once: some files are read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: dict[str, None] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        fresh = record.levelno < logging.WARNING or message not in self.messages
        if fresh and record.levelno >= logging.WARNING:
            self.messages[message] = None
        return fresh


@contextmanager
def collected_warnings() -> Iterator[Collection[str]]:
    """The warnings that are logged meanwhile, for `stage.json` and the report."""
    once = _Once()
    logger.addFilter(once)
    try:
        yield once.messages.keys()
    finally:
        logger.removeFilter(once)


def digest(path: Path) -> str:
    """Of a file, or of all files of a DICOM folder."""
    try:
        if path.is_file():
            return sha256(path)
        lines = [f"{file.relative_to(path)} {sha256(file)}" for file in sorted(path.rglob("*")) if file.is_file()]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}. Check its permissions.") from None
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def size(path: Path) -> int:
    return (
        path.stat().st_size
        if path.is_file()
        else sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    )
