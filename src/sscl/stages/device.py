"""Which device, which precision, how many threads."""

import logging
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sscl.core.errors import UserError

logger = logging.getLogger("sscl")


def pick_device(name: str) -> torch.device:
    """auto: CUDA if there is one, else Apple's MPS, else the CPU.

    Raises:
        UserError: the device is not there.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in present.items() if there))
    match = re.fullmatch(r"(cpu|mps|cuda)(?::(\d+))?", name)
    if not match or (match[2] and match[1] != "cuda"):
        raise UserError(f"--device {name} is unknown. Known: auto, cpu, cuda, cuda:N, mps.")
    if not present[match[1]] or int(match[2] or 0) >= max(1, torch.cuda.device_count()):
        raise UserError(
            f"--device {name}: this machine or this torch build has none. `sscl doctor` tells what will run."
        )
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> str:
    """auto: bf16 where a GPU computes in it, else float32.

    Raises:
        UserError: unknown name.
    """
    if name == "auto":
        return (
            "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
        )
    if name not in ("float32", "bf16"):
        raise UserError(f"--precision {name} is unknown. Known: auto, float32, bf16.")
    if name == "bf16" and device.type == "cpu":
        logger.warning(
            "--precision bf16 on a CPU: torch's bf16 convolutions give gradients there that are not "
            "finite now and then. Leave it out."
        )
    return name


def set_threads(threads: int | None) -> int:
    """Use this many CPU threads, or OMP_NUM_THREADS, or all; returns the number, which the recipe records.

    Raises:
        UserError: less than one.
    """
    if threads is not None and threads < 1:
        raise UserError(f"--threads {threads}: expected 1 or more.")
    asked = os.environ.get("OMP_NUM_THREADS", "")
    count = threads or (int(asked) if asked.isdigit() else 0) or os.cpu_count() or 1
    torch.set_num_threads(count)
    return count


@contextmanager
def told_if_memory_ends(advice: str) -> Iterator[None]:
    """Raises UserError where the memory of the GPU, or of a CPU with a limit, does not suffice. Any other RuntimeError
    is none of memory, and stays what it is.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator: " not in str(error):
            raise
        said = " ".join(str(error).split())[:200]
        raise UserError(f"the memory does not suffice ({said}). {advice}") from None


def cpu_name() -> str:
    """The CPU's model, on which the last bits of a float depend."""
    info = Path("/proc/cpuinfo")  # Linux: platform.processor() says "x86_64", or nothing
    text = info.read_text(encoding="utf-8", errors="replace") if info.is_file() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return model[1].strip() if model else platform.processor() or platform.machine()


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory held so far: on the GPU there, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
