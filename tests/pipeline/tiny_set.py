"""A tiny data set on disk: 3 labelled, 3 unlabelled, 2 test cases; runs on it, and what to compare them by."""

import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray

from sscl.core.files import read_sealed
from sscl.stages.prepare import prepare

LABELLED, UNLABELLED, TEST = ("a1", "a2", "a3"), ("b1", "b2", "b3"), ("t1", "t2")
GARBAGE = b"no mask: whoever opens this file fails"
SETTINGS = {"patch": (16, 16, 16), "stride": (8, 8, 8), "spacing_mm": (1.0, 1.0, 1.0)}


@dataclass(frozen=True)
class Tiny:
    """Where everything is."""

    source: Path
    dataset: Path

    def scan(self, case: str) -> Path:
        return self.source / "imagesTr" / f"{case}_0000.nii.gz"


def ball(shape: tuple[int, ...], seed: int) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """A bright ball in noise, and where it is."""
    rng = np.random.default_rng(seed)
    centre = np.array(shape) / 2 + rng.uniform(-2, 2, 3)
    distance = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(np.indices(shape), centre, strict=True)))
    mask = (distance < min(shape) / 3).astype(np.uint8)
    return (300.0 * mask + rng.normal(500, 60, shape)).astype(np.int16), mask


def save_nifti(path: Path, array: NDArray[Any], affine: NDArray[Any] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def make_source(root: Path) -> Path:
    """nnU-Net's layout. The masks of the unlabelled cases are unreadable."""
    for seed, case in enumerate((*LABELLED, *UNLABELLED, *TEST)):
        image, mask = ball((24, 24, 20), seed)
        save_nifti(root / f"imagesTr/{case}_0000.nii.gz", image)
        save_nifti(root / f"labelsTr/{case}.nii.gz", mask)
    for case in UNLABELLED:
        (root / f"labelsTr/{case}.nii.gz").write_bytes(GARBAGE)
    facts = {"name": "tiny", "channel_names": {"0": "MRI"}, "labels": {"background": 0, "organ": 1}}
    (root / "dataset.json").write_text(json.dumps(facts | {"file_ending": ".nii.gz"}))
    split = {"labelled": LABELLED, "unlabelled": UNLABELLED, "development": [], "test": TEST}
    (root / "split.json").write_text(json.dumps(split))
    return root


def prepared(source: Path, out: Path, **settings: Any) -> Path:
    return prepare(source, out, split_file=source / "split.json", settings={**SETTINGS, **settings}).out


def weights(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of a run's newest checkpoint: networks and optimisers, by name."""
    newest = max((run / "checkpoints").glob("*.pt"))
    flat: dict[str, torch.Tensor] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, torch.Tensor):
            flat[name] = value
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{name}/{key}")

    walk(torch.load(newest, weights_only=True), newest.stem)
    return flat


def assert_equal_weights(first: Path, second: Path) -> None:
    """Bit for bit."""
    one, two = weights(first), weights(second)
    assert one.keys() == two.keys()
    assert len(one) > 100
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def iterations(run: Path) -> list[int]:
    return [json.loads(line)["iteration"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def start(
    tiny: Tiny, out: Path, *options: str, iterations: int, process_group: int | None = None
) -> subprocess.Popen[str]:
    """`sscl train`, a checkpoint after each iteration."""
    command = ["train", str(tiny.dataset), "-o", str(out), "--iterations", str(iterations), "--set", "width=2"]
    command += ["--threads", "1", "--device", "cpu", "--checkpoint-minutes", "0", *options]
    return subprocess.Popen(
        [sys.executable, "-m", "sscl.cli", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=process_group,
    )


def wait_for(run: Path, iteration: int) -> None:
    """Until there is a checkpoint of this or a later iteration."""
    deadline = time.monotonic() + 300
    while not any(int(path.stem) >= iteration for path in (run / "checkpoints").glob("*.json") if path.stem.isdigit()):
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.01)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes, those in shared memory included."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def copied_record(record: Path, to: Path) -> Path:
    """Without its digests, as those of earlier versions, so that a test may change what it holds."""
    shutil.copytree(record, to)
    facts = read_sealed(to / "record.json")
    (to / "record.json").write_text(json.dumps({key: value for key, value in facts.items() if key != "files"}))
    return to
