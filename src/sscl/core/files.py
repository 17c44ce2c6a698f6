"""Files that are either whole or not there."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from sscl.core.errors import UserError


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write` on a temporary file beside `path`, flush it to disk, then rename it to `path`.

    A crash or a full disk at any moment leaves the old file, or none, never half of the new one.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Atomic, UTF-8."""
    write_atomic(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Atomic, indented; NaN and infinity are refused, because JSON has none."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """A JSON file, with or without a byte-order mark.

    Raises:
        UserError: it cannot be read or is not JSON; names the line.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Check the path and its permissions.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text. Save it as UTF-8 JSON.") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: is not valid JSON: {error.msg}, line {error.lineno}, column {error.colno}. Mend that line, "
            "or make the file again."
        ) from None


def read_object(path: Path, *keys: str) -> dict[str, Any]:
    """A JSON file that holds an object with at least these keys.

    Raises:
        UserError: as `read_json`; or it holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict) or (missing := [key for key in keys if key not in content]):
        lacks = f" with '{missing[0]}'" if isinstance(content, dict) else ""
        raise UserError(f"{path}: is not a JSON object{lacks}. Make the file again.")
    return content


def sha256(path: Path) -> str:
    """Digest of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    """The rename itself reaches the disk only with the folder's entry."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
