"""Resume state on disk: tensors and plain values, whole or absent, verified before use, the newest two good kept."""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors
from torch import Tensor

from sscl.core.errors import UserError
from sscl.core.files import sha256, write_atomic, write_json

log = logging.getLogger("sscl")
KEEP = 2
_OURS = "[0-9]" * 8 + ".pt"
"""Names of checkpoints; other files of the folder are someone else's and are neither read nor removed."""


def save(folder: Path, state: dict[str, Any]) -> Path:
    """Write `folder`/<iteration>.pt and its manifest; then forget all but the newest two that are good.

    The manifest comes last: a checkpoint without one was cut short and does not count.

    Raises:
        UserError: it cannot be written, for instance on a full disk; the ones before are untouched.
    """
    folder.mkdir(exist_ok=True)
    for leftover in folder.glob(".[0-9]*.tmp"):  # of a process that was killed while writing
        leftover.unlink()
    path = folder / f"{state['iteration']:08d}.pt"
    try:
        digest = write_atomic(path, lambda file: torch.save(state, file))
        write_json(path.with_suffix(".json"), {"sha256": digest, "iteration": state["iteration"]})
    except (OSError, RuntimeError) as error:  # torch hides the system's error in one of its own
        if not path.with_suffix(".json").exists():
            path.unlink(missing_ok=True)  # it takes room and does not count
        free = shutil.disk_usage(folder).free
        raise UserError(
            f"{path}: cannot be written ({error.__context__ or error}); it needs {_bytes(state) / 2**20:.1f} MiB, the "
            f"disk has {free / 2**20:.1f} MiB free. The checkpoint before it is kept: make room and repeat the command."
        ) from None
    kept = [path]
    for old in sorted({*folder.glob(_OURS)} - {path}, reverse=True):
        try:
            if len(kept) < KEEP and _promised(old) == sha256(old):
                kept.append(old)
                continue
        except OSError:  # not to be read now: neither kept for good nor lost
            continue
        old.with_suffix(".json").unlink(missing_ok=True)
        old.unlink()
    return path


class _Scales:
    """A file that only knows how long it would be."""

    def __init__(self) -> None:
        self.size = 0

    def write(self, data: Any) -> int:
        written = memoryview(data).nbytes
        self.size += written
        return written

    def flush(self) -> None: ...


def _bytes(state: dict[str, Any]) -> int:
    """Of the file; for small networks its tensors are half of it."""
    scales = _Scales()
    torch.save(state, scales)  # type: ignore[arg-type]
    return scales.size


def newest(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """The state of the newest checkpoint that is complete and undamaged; None if there is none. Older by iteration,
    not by time; a damaged one is named in a warning and passed over.
    """
    for path in sorted(folder.glob(_OURS), reverse=True):
        if _is_good(path):
            return _loaded(path, device)
        log.warning("%s is incomplete or damaged; using the checkpoint before it", path)
    return None


def refuse_other_network(weights: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], path: Path) -> None:
    """Raises UserError unless both hold tensors of the same names and shapes; names the first that differ."""
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = [name for name, tensor in wanted.items() if shapes.get(name) != tuple(tensor.shape)]
    wrong += [name for name in weights if name not in wanted]
    if wrong:
        raise UserError(
            f"{path}: these weights belong to another network; the first that differ: {', '.join(wrong[:3])}. "
            "Use the model.json or recipe.yaml that was written with them."
        )


def _loaded(path: Path, device: torch.device) -> dict[str, Any]:
    """Tensors and plain values; anything else in the file is never run.

    Raises:
        UserError: the file holds something else, or is no checkpoint.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # whatever torch meets in bytes that it did not write
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: not a checkpoint of tensors and numbers, so it is unsafe and was not loaded ({said}). Get the "
            "run from its source again, or train anew."
        ) from None
    if not isinstance(state, dict) or type(state.get("iteration")) is not int:
        raise UserError(f"{path}: not a checkpoint of a run. Get the run from its source again, or train anew.")
    return state


@contextmanager
def fitting(folder: Path) -> Iterator[None]:
    """Meanwhile the newest state is taken over by the networks and optimisers that the run's recipe makes.

    Raises:
        UserError: it is not theirs.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # whatever torch meets in a state that it did not write
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder}: the newest checkpoint does not fit the recipe beside it ({type(error).__name__}: {said}). "
            "Get both from one run again, or train anew."
        ) from None


def _is_good(path: Path) -> bool:
    """Whether it is as it was written. One that cannot be read is not, for now."""
    try:
        return _promised(path) == sha256(path)
    except OSError:
        return False


def _promised(path: Path) -> object:
    """The digest in a checkpoint's manifest; None if that is missing or damaged itself."""
    try:
        return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """By which networks are known, wherever they lie: SHA-256 of the file that `sscl export` makes of them."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    return hashlib.sha256(safetensors(plain)).hexdigest()
