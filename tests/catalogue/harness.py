"""Commands on a folder, and whether what they do is what an entry of the catalogue asks for."""

import contextlib
import hashlib
import io
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import blosc2
import pytest
from bad_inputs import CANARY, CATALOGUE, Must

from sscl import cli

SECONDS = 20
"""No refusal may take longer."""
FOLDERS = sorted(name for name in CATALOGUE if not name.startswith("X") or name == "X06")
"""The entries that are folders of scans."""
AS_A_USER = ("F19", "N22")
"""Those that root would not notice."""


@dataclass(frozen=True)
class Expected:
    """See `bad_inputs.Must`."""

    must: Must
    files: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """Of a command: exit code, everything that it said, without the path of the folder."""

    code: int | None
    text: str
    seconds: float


def run(root: Path, *arguments: object) -> Outcome:
    """A command of `sscl`, in this process."""
    said = io.StringIO()
    handler, logger, began = logging.StreamHandler(said), logging.getLogger("sscl"), time.monotonic()
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = cli.main([str(argument) for argument in arguments])
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    return Outcome(code, said.getvalue().replace(str(root), ""), time.monotonic() - began)


def complaints(expected: Expected, outcome: Outcome) -> list[str]:
    """What is not as it should be; nothing, if the command did right."""
    wrong = []
    if outcome.seconds > SECONDS:
        wrong.append(f"took {outcome.seconds:.0f} s")
    if outcome.code not in (0, 2):
        wrong.append(f"exit code {outcome.code}")
    if "Traceback" in outcome.text:
        wrong.append("a traceback")
    if expected.must == "refuse" and outcome.code != 2:
        wrong.append("not refused")
    if expected.must in ("work", "same") and outcome.code != 0:
        wrong.append("refused")
    if expected.must == "refuse" and not any(file in outcome.text for file in expected.files):
        wrong.append(f"names none of {expected.files}")
    if expected.must in ("refuse", "warn") and not any(word in outcome.text for word in expected.words):
        wrong.append(f"says none of {expected.words}")
    return [*wrong, outcome.text] if wrong else []


def contents(root: Path) -> dict[str, object]:
    """Everything in a folder, by what can be told without opening it."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        link = path.readlink() if path.is_symlink() else None
        found[str(path.relative_to(root))] = link or (
            path.lstat().st_size,
            path.lstat().st_mtime_ns,
            path.lstat().st_mode,
        )
    return found


def digest(dataset: Path) -> str:
    """Of all that training reads, but for the names of the cases: voxels, masks, plan, sizes of the lists."""
    parts = []
    for path in sorted((dataset / "store").glob("*.b2nd")):
        array = blosc2.open(str(path))[:]
        kind = path.name.split(".")[-2]
        parts.append(f"{kind} {array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}")
    lists = json.loads((dataset / "split.json").read_text())
    whole = [sorted(parts), (dataset / "plan.json").read_text(), [len(cases) for cases in lists.values()]]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


def wrong_with(root: Path, expected: Expected, sound_digest: str) -> list[str]:
    """Run `check` and `prepare` on a folder; all that is not as it should be."""
    before, out = contents(root), root.parent / "prepared"
    wrong = complaints(expected, run(root, "check", root))
    prepared = run(root, "prepare", root, "-o", out)
    wrong += complaints(expected, prepared)
    if contents(root) != before:
        wrong.append("the folder was changed")
    if prepared.code and [path.name for path in root.parent.iterdir() if path != root]:
        wrong.append("something half-written is left")
    if expected.must == "same" and not prepared.code and digest(out) != sound_digest:
        wrong.append("not what the sound set gives")
    if (root.parent / CANARY).exists():
        wrong.append("code was run")
    return wrong


@contextlib.contextmanager
def unprivileged() -> Iterator[Path]:
    """A folder, and this process as a user that is not root: root reads and writes everything."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        if os.geteuid() != 0:
            yield folder
            return
        try:
            os.setegid(65534)
            os.seteuid(65534)
        except OSError as error:
            os.setegid(0)
            pytest.skip(f"not run: root may not become another user here ({error.strerror})")
        try:
            yield folder
        finally:
            os.seteuid(0)
            os.setegid(0)
