"""What this machine has, what will run on it, and what stands in the way."""

import os
import platform
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from sscl.core.memory import main_memory_bytes
from sscl.stages.device import cpu_name, pick_device, pick_precision

GIB = 2**30
SHARED_MEMORY = Path("/dev/shm")
"""Where loader processes hand batches over (Linux)."""


@dataclass(frozen=True)
class Row:
    """One finding. `advice` is empty where all is well, else what to do."""

    topic: str
    value: str
    advice: str = ""


def doctor(folder: Path = Path()) -> list[Row]:
    """Look at this machine. Changes nothing and never fails because something is missing: that is a finding.

    folder: where runs will be written; its free disk space is told.
    """
    # Why a GPU cannot be used (driver too old, card not in this build) torch tells only by warnings, at every question.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        devices = [*_devices(), _choice()]
    said = dict.fromkeys(str(warning.message).strip().splitlines()[0] for warning in caught)
    return [
        Row("sscl", _version("sscl")),
        Row("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        _torch_build(any(row.topic.startswith("cuda") for row in devices), " ".join(said)),
        *devices,
        Row("threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores"),
        _memory(),
        *_shared_memory(SHARED_MEMORY),
        _disk(folder),
        *_packages(),
    ]


def _torch_build(gpu_found: bool, said: str) -> Row:
    """The build of torch against the hardware: a CUDA build without a GPU, or a GPU that the build cannot use.

    said: torch's own warnings while it looked for devices.
    """
    built_for = torch.version.cuda or torch.version.hip
    advice = said
    if built_for and not gpu_found:
        advice = f"This torch is built for a GPU but finds none that it can use. {said or 'Fine if there is none.'}"
    if not built_for and shutil.which("nvidia-smi"):
        advice = "There is an NVIDIA driver, but this torch is built for the CPU: install a CUDA build of torch."
    kind = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {built_for}" if built_for else "CPU only"
    return Row("torch", f"{torch.__version__} ({kind})", advice)


def _devices() -> Iterator[Row]:
    """Every device that this build of torch can use."""
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            yield Row(f"cuda:{index}", f"{facts.name}, {facts.total_memory / GIB:.1f} GiB")
    if torch.backends.mps.is_available():
        yield Row("mps", "Apple GPU")
    yield Row("cpu", cpu_name())


def _choice() -> Row:
    """What training and prediction take when nothing else is asked for."""
    device = pick_device("auto")
    return Row("will run", f"on {device.type} in {pick_precision('auto', device)}")


def _memory() -> Row:
    size = main_memory_bytes()
    if size is None:
        return Row("memory", "unknown")
    return Row("memory", f"{size / GIB:.1f} GiB", "Under 4 GiB: choose a small patch." if size < 4 * GIB else "")


def _shared_memory(folder: Path) -> Iterator[Row]:
    if folder.is_dir():
        free = shutil.disk_usage(folder).free
        # Containers often start with 64 MB, and a loader process that finds it full dies without a message.
        advice = "Small for loader processes: start the container with --shm-size=1g." if free < GIB / 4 else ""
        yield Row(str(folder), f"{free / GIB:.1f} GiB free", advice)


def _disk(folder: Path) -> Row:
    free = shutil.disk_usage(folder).free
    return Row("disk", f"{free / GIB:.1f} GiB free in {folder.resolve()}", "Nearly full." if free < GIB else "")


def _packages() -> Iterator[Row]:
    """Versions of what sscl needs, then of what it can use, both as its own metadata lists them."""
    needed = _requirements()
    yield Row(
        "packages",
        ", ".join(f"{name} {_version(name)}" for name in needed if name != "torch"),
        _install_line([name for name in needed if not _version(name)]),
    )
    for name in _requirements("tensorboard"):
        version = _version(name)
        yield Row(name, version or "not installed", "" if version else 'Optional: pip install "sscl[tensorboard]"')


def _requirements(extra: str | None = None) -> list[str]:
    """Names of the packages that sscl requires, or that one of its extras does."""
    found = []
    for line in metadata.requires("sscl") or []:
        of_extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        if (of_extra[1] if of_extra else None) == extra and (name := re.match(r"[\w.-]+", line)):
            found.append(name[0])
    return found


def _version(package: str) -> str:
    """Installed version, empty if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _install_line(missing: list[str]) -> str:
    return f"Missing: pip install {' '.join(missing)}" if missing else ""
