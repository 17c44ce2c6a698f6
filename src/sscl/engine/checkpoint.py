"""Resume state on disk: tensors and plain values, whole or absent, verified before use, the newest two kept."""

import json
import logging
from pathlib import Path
from typing import Any

import torch

from sscl.core.files import sha256, write_atomic, write_json

log = logging.getLogger("sscl")
KEEP = 2


def save(folder: Path, state: dict[str, Any]) -> Path:
    """Write `folder`/<iteration>.pt and its manifest; then forget all but the newest two.

    The manifest comes last: a checkpoint without one was cut short and does not count.
    """
    folder.mkdir(exist_ok=True)
    path = folder / f"{state['iteration']:08d}.pt"
    write_atomic(path, lambda file: torch.save(state, file))
    write_json(path.with_suffix(".json"), {"sha256": sha256(path), "iteration": state["iteration"]})
    for old in sorted(folder.glob("*.pt"))[:-KEEP]:
        old.with_suffix(".json").unlink(missing_ok=True)
        old.unlink()
    return path


def newest(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """The state of the newest checkpoint that is complete and undamaged; None if there is none. Older by iteration,
    not by time; a damaged one is named in a warning and passed over.
    """
    for path in sorted(folder.glob("*.pt"), reverse=True):
        manifest = path.with_suffix(".json")
        if manifest.exists() and json.loads(manifest.read_text()).get("sha256") == sha256(path):
            return torch.load(path, map_location=device, weights_only=True)
        log.warning("%s is incomplete or damaged; using the checkpoint before it", path)
    return None
