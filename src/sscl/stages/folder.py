"""A stage's output folder, whole or not there; its stage.json; and what inputs are known by."""

import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy
from pydantic import Field

import sscl
from sscl.core.errors import UserError
from sscl.core.files import Shape, read_sealed, sha256, write_sealed
from sscl.core.interrupt import unwound
from sscl.volumes.files import is_volume

logger = logging.getLogger("sscl")
T = TypeVar("T")

STAGE = "stage.json"
SILENT_SECONDS = 10.0
"""So long a command reads cases without telling how far it is."""


class Stage(Shape):
    """What is read of `stage.json`; every stage writes some of it."""

    stage: str = ""
    config: dict[str, Any] = Field(default_factory=dict)
    inputs: dict[str, str | list[str]] = Field(default_factory=dict)
    seconds: float = 0
    warnings: list[str] = Field(default_factory=list)
    labels: list[str] = Field(default_factory=list)
    cases: dict[str, str] = Field(default_factory=dict)
    select: Literal["last", "best"] | None = None
    peak_memory_bytes: int | None = None
    files: dict[str, str] = Field(default_factory=dict)
    masks: dict[str, str] = Field(default_factory=dict)
    scored_against: dict[str, str] = Field(default_factory=dict)
    probabilities: dict[str, str] = Field(default_factory=dict)
    weights: dict[str, str] = Field(default_factory=dict)
    recipe: str | None = None


def resolved(path: Path) -> Path:
    """Without links.

    Raises:
        UserError: a link that leads to itself; from Python 3.13 on it stays as it is.
    """
    try:
        return path.resolve()
    except RuntimeError:
        raise UserError(f"{path}: a link that leads to itself. Remove it, or give another path.") from None


@contextmanager
def built(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` in the end, or vanishes."""
    folder = out.parent / f".{out.name}.{os.getpid()}.tmp"
    _remove_leftovers(out)
    try:
        with unwound():
            folder.mkdir(parents=True)
            yield folder
            if out.exists() and any(out.iterdir()):
                raise UserError(f"{out}: another process has made it meanwhile; it was left as it is. Give another -o.")
            folder.rename(out)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written: {error.strerror or error}. Check free space and permissions."
        ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def refuse_read_only(out: Path, *inside: str) -> None:
    """Before hours of work: `out`, what is already there of `inside`, or the folder in which `out` will be made.

    Raises:
        UserError: one of them cannot be written.
    """
    place = next(path for path in (out, *out.absolute().parents) if path.exists())
    for folder in (place, *(out / name for name in inside if (out / name).exists())):
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            raise UserError(f"{folder}: nothing can be written there. Change its permissions, or give another -o.")


def refuse_foreign(out: Path, stage: str) -> None:
    """Where a folder needs not be new.

    Raises:
        UserError: it is another stage's, or holds scans, masks or a data set.
    """
    if (out / STAGE).is_file() and read_stage(out).get("stage", stage) != stage:
        raise UserError(f"{out}: the folder of another stage; its {STAGE} would be lost. Choose another folder.")
    for path in sorted(out.iterdir()) if out.is_dir() else ():
        if path.name == "dataset.json" or (path.is_file() and is_volume(path)):
            raise UserError(
                f"{path}: scans or masks lie in this folder, so nothing else is written to it. Give another -o."
            )


def _remove_leftovers(out: Path) -> None:
    """Temporary folders for `out` of processes that were killed, which could not clean up."""
    for folder in out.parent.iterdir() if out.parent.is_dir() else ():
        match = re.fullmatch(rf"\.{re.escape(out.name)}\.(\d+)\.tmp", folder.name)
        if match and not _runs(int(match[1])):
            shutil.rmtree(folder, ignore_errors=True)


def _runs(pid: int) -> bool:
    """Whether there is such a process, other than this one."""
    if os.name != "posix":
        return True  # os.kill would end it there
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return pid != os.getpid()


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


def counted(items: Iterable[T], done: str) -> Iterator[T]:
    """The items one by one; where they take long, tells now and then how many are done: "read 40 of 1000 cases"."""
    every, told = tuple(items), time.monotonic()
    for number, item in enumerate(every):
        if time.monotonic() - told > SILENT_SECONDS:
            told = time.monotonic()
            logger.info("%s %d of %d cases", done, number, len(every))
        yield item


@contextmanager
def captured_warnings() -> Iterator[list[str]]:
    """The warnings that are logged meanwhile, which then go nowhere else."""
    caught: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            caught.append(record.getMessage())
        return record.levelno < logging.WARNING

    logger.addFilter(keep)
    try:
        yield caught
    finally:
        logger.removeFilter(keep)


@contextmanager
def collected_warnings() -> Iterator[Collection[str]]:
    """The warnings that are logged meanwhile, for `stage.json` and the report."""
    once = _Once()
    logger.addFilter(once)
    try:
        yield once.messages.keys()
    finally:
        logger.removeFilter(once)


def write_stage(
    out: Path,
    stage: str,
    *,
    config: Mapping[str, Any],
    inputs: Mapping[str, Any],
    began: float,
    uses_torch: bool = False,
    files: Sequence[str] = (),
    **more: Any,
) -> None:
    """`stage.json`: which stage made the folder, how, from what, with what; the same keys for every stage.

    Args:
        config: the settings.
        inputs: what was read, to digests.
        began: `time.monotonic()` at the start.
        files: of the folder, written already, whose digests are noted for `require_files`.
        more: further keys; they win.
    """
    facts = {
        "stage": stage,
        "config": config,
        "inputs": inputs,
        "versions": versions(uses_torch),
        "commit": commit(),
        "seconds": round(time.monotonic() - began, 2),
        **({"files": {name: sha256(out / name) for name in files}} if files else {}),
    }
    write_sealed(out / STAGE, facts | more)


def read_stage(folder: Path, *keys: str) -> dict[str, Any]:
    """Raises UserError for a stage.json that is missing, damaged, or lacks one of the keys."""
    return read_sealed(folder / STAGE, *keys, shape=Stage)


def require_files(folder: Path, noted: Mapping[str, Any], names: Sequence[str], again: str) -> None:
    """Compare files of a folder with the digests that are noted under `files`; earlier versions noted none.

    Args:
        names: which; those in the manifest are not followed, because they could lead elsewhere.
        again: what to do if one is not as it was.

    Raises:
        UserError: one is missing, damaged, or of another time than the manifest.
    """
    promised = noted.get("files")
    if not isinstance(promised, dict):
        return
    for name in names:
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path}: is missing. {again}")
        if promised.get(name) != sha256(path):
            raise UserError(f"{path}: is not as it was written (its digest is another): damaged, or changed. {again}")


def versions(uses_torch: bool) -> dict[str, str]:
    """Of this package and what its numbers depend on."""
    found = {"sscl": sscl.__version__, "numpy": numpy.__version__, "python": platform.python_version()}
    if uses_torch:
        import torch

        found["torch"] = str(torch.__version__)
    return found


@cache
def commit() -> str | None:
    """Of the checkout that this package runs from; None for an installed one, or without git."""
    root = Path(sscl.__file__).resolve().parents[2]
    if not (root / ".git").exists():  # site-packages may lie in the work tree of another project
        return None
    try:
        found = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    except OSError:
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def digest(path: Path) -> str:
    """Of a file, or of all files of a DICOM folder."""
    try:
        if path.is_file():
            return sha256(path)
        lines = [f"{file.relative_to(path)} {sha256(file)}" for file in sorted(path.rglob("*")) if file.is_file()]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}. Check its permissions.") from None
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
