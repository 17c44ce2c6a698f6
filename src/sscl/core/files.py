"""Files that are either whole or not there."""

import errno
import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from sscl.core.errors import UserError

SEAL = "own_sha256"
"""The field of a sealed JSON file that holds the digest of all its others."""


class Shape(BaseModel):
    """What a JSON object must be for us to read it, see `read_object`; keys that are not named may be there too."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Sink:
    """A file that is written from its start to its end, and the digest of what should be in it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


@contextmanager
def named(path: Path) -> Iterator[None]:
    """What the system says of a write, for instance that the disk is full, has no name: it gets this one."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_atomic(path: Path, write: Callable[[Any], object]) -> str:
    """Call `write` on a temporary file beside `path`, flush it to disk, read it back, then rename it to `path`.

    A crash or a full disk at any moment leaves the old file, or none, never half of the new one. The file has `write`
    and `flush`, no more: it cannot be sought in.

    Returns:
        SHA-256 of what was written, hexadecimal.

    Raises:
        OSError: it cannot be written, or the disk gives other bytes back.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with named(path), os.fdopen(descriptor, "wb") as file:
            sink = _Sink(file)
            write(sink)
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):  # so that it is read from the disk, not from memory
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        digest = sink.digest.hexdigest()
        if sha256(temporary) != digest:
            raise OSError(errno.EIO, "the disk gives back other bytes than were written", str(path))
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    return digest


def remove_leftovers(folder: Path, *names: str) -> None:
    """What processes left that were killed while writing these files; for their only writer to call."""
    for name in names:
        for leftover in folder.glob(f".{name}.*.tmp"):
            leftover.unlink()


def write_text(path: Path, text: str) -> None:
    """Atomic, UTF-8."""
    write_atomic(path, lambda file: file.write(text.encode()))


def open_to_append(path: Path) -> TextIO:
    """A text file that grows line by line; made if there is none.

    Raises:
        UserError: a link: its target may be anyone's file.
    """
    if path.is_symlink():
        raise UserError(f"{path}: a link, and nothing is written through links. Remove it.")
    return path.open("a", encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Atomic, indented; NaN and infinity are refused, because JSON has none."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """As `write_json`, with the digest of what is in it: a manifest must not be damaged unnoticed either."""
    write_json(path, {**value, SEAL: json_digest(value)})


def read_sealed(path: Path, *keys: str, shape: type[Shape] = Shape) -> dict[str, Any]:
    """As `read_object`, without the digest. A file of an earlier version has none and is taken as it is.

    Raises:
        UserError: as `read_object`; or the content is not the one that was written.
    """
    content = read_object(path, *keys, shape=shape)
    if not unsealed(content):
        raise UserError(
            f"{path}: is not as it was written: its digest is another, so it is damaged or was changed by hand. "
            "Restore it, or make it again."
        )
    return content


def unsealed(content: dict[str, Any]) -> bool:
    """Take the digest out of the content of a sealed file; whether it fits, or there is none."""
    promised = content.pop(SEAL, None)
    return promised is None or promised == json_digest(content)


def json_digest(value: Any) -> str:
    """SHA-256 of plain values: neither the order of its keys nor how it is set counts."""
    plain = json.loads(json.dumps(value, default=str))  # dates of YAML, and keys that are numbers, become text
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def read_json(path: Path) -> Any:
    """A JSON file, with or without a byte-order mark.

    Raises:
        UserError: it cannot be read, is not JSON (names the line), or names a value twice.
    """
    text = read_text(path)
    try:
        return json.loads(text, parse_constant=_no_number, object_pairs_hook=_named_once)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: is not valid JSON: {error.msg}, line {error.lineno}, column {error.colno}. Mend that line, "
            "or make the file again."
        ) from None
    except (ValueError, RecursionError) as error:  # thousands of digits or brackets, a name twice
        raise UserError(f"{path}: is JSON that cannot be read: {error}. Mend it, or make the file again.") from None


def read_yaml(path: Path) -> Any:
    """Plain values of a YAML file; a tag that would make anything else is refused, and so are aliases.

    Raises:
        UserError: it cannot be read or is not such a file.
    """
    text = read_text(path)
    try:
        return PlainLoader(text).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{path}: damaged, or not plain YAML ({said}). Mend it.") from None


class PlainLoader(yaml.SafeLoader):
    """Without aliases: ten lines of them unfold to gigabytes, and one can hold itself."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*name); write its values out")
        return super().compose_node(parent, index)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two values under one name, JSON's reader would take the last and say nothing."""
    values = dict(pairs)
    if len(values) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{twice!r} is in it twice, and one of the two would be lost")
    return values


def read_text(path: Path) -> str:
    """UTF-8, with or without a byte-order mark.

    Raises:
        UserError: it cannot be read, or is no such text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Check the path and its permissions.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text. Save it as UTF-8.") from None


def read_object(path: Path, *keys: str, shape: type[Shape] = Shape) -> dict[str, Any]:
    """A JSON file that holds an object of this shape, and with these keys.

    Raises:
        UserError: as `read_json`; or it holds something else.
    """
    content = read_json(path)
    needed = (*(name for name, field in shape.model_fields.items() if field.is_required()), *keys)
    if not isinstance(content, dict) or (missing := [key for key in needed if key not in content]):
        lacks = f" with '{missing[0]}'" if isinstance(content, dict) else ""
        raise UserError(f"{path}: is not a JSON object{lacks}. Make the file again.")
    try:
        shape.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: damaged at '{where}': {first['msg']}. Make the file again.") from None
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
