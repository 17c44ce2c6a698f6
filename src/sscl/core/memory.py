"""How much memory there is, and what would not fit in it."""

import os
from pathlib import Path

from sscl.core.errors import UserError


def main_memory_bytes() -> int | None:
    """What this process may use: a container's limit counts, not only what the machine has. None: unknown (Windows)."""
    try:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text(encoding="ascii").strip()).isdigit():
        size = min(size, int(text))
    return size


def refuse_beyond_memory(needed_bytes: int, path: Path) -> None:
    """Say so before memory is taken: a system that runs out of it ends processes without a message.

    Raises:
        UserError: this machine has less.
    """
    if lack := lacking_memory(needed_bytes):
        raise UserError(
            f"{path}: too large: reading it takes {lack}. If its size is right, crop it, or use a larger machine."
        )


def lacking_memory(needed_bytes: int) -> str | None:
    """How much memory something takes and how much there is, if it does not fit."""
    there = main_memory_bytes()
    if there is None or needed_bytes <= there:
        return None
    return f"{needed_bytes / 1e9:.1f} GB of memory, this machine has {there / 1e9:.1f} GB"
