"""Whatever a file holds: it is read, or refused in one message that names it. No other exception gets out.

Random damage to every kind of file that is read, for 60 seconds in all (`make test-all`), 600 with SSCL_SOAK=1
(`make soak`), or SSCL_FUZZ_SECONDS. A failure names its input, which is made again by `damaged(file, content, seed)`.
Why not another program: docs/decisions/0011-fuzzing.md.
"""

import io
import json
import os
import random
import re
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bad_inputs import CANARY, describe, nifti, put
from damage import SHAPE, VOXELS, damaged, dicom_slice, h5_file, nrrd_file, untold
from harness import SECONDS as LONGEST
from harness import contents

from sscl.core.errors import UserError
from sscl.core.files import read_object
from sscl.data.layouts import discover
from sscl.stages.check import check
from sscl.stages.dataset import open_dataset
from sscl.stages.evaluate import evaluate
from sscl.stages.model import export, info, load_model
from sscl.stages.predict import predict
from sscl.stages.prepare import prepare
from sscl.stages.record import read_records, record
from sscl.stages.report import report
from sscl.stages.request import Request, assigned, check_assigned, opened
from sscl.stages.train import train
from sscl.studies.compare import compare
from sscl.studies.job import Job
from sscl.studies.suites import find_suite
from sscl.volumes.files import read_image, read_label

SECONDS = float(os.environ.get("SSCL_FUZZ_SECONDS", 600 if "SSCL_SOAK" in os.environ else 60))
MOST_MEMORY = 2**30
MM = (1.0, 1.0, 2.0)
SMALL = {"patch": (16, 16, 16), "stride": (16, 16, 16), "spacing_mm": (1.0, 1.0, 2.0)}
RUN = {"method": "vnet", "settings": {"width": 1}, "iterations": 2, "threads": 1, "device": "cpu"}
SUITE = (
    "title: few\npreset: la-quick\nseeds: 2\nrows:\n- {method: vnet, masks: [8, 16]}\n- {method: sscl, masks: all}\n"
)


def made(root: Path) -> Path:
    """A folder with a small one of everything that a command reads, and an empty one to work in."""
    (root / "here").mkdir(parents=True)
    for seed, case in enumerate("abcd"):
        image = np.random.default_rng(seed).integers(0, 999, (18, 17, 16)).astype(np.int16)
        put(root / f"set/imagesTr/{case}_0000.nii.gz", nifti(image, np.diag([*MM, 1])))
        put(root / f"set/labelsTr/{case}.nii.gz", nifti((image > 500).astype(np.uint8), np.diag([*MM, 1])))
    describe(root / "set", numTraining=4, labels={"background": 0, "egg": 1})
    lists = {"labelled": ["a", "b"], "unlabelled": ["c"], "development": ["d"]}
    put(root / "split.json", json.dumps(lists))
    put(root / "set/splits_final.json", json.dumps([{"train": ["a", "b"], "val": ["d"], "unlabelled": ["c"]}]))
    for case in "uvw":
        put(root / f"la/{case}/mri_norm2.h5", h5_file(root / "here"))
    put(root / "la/train.list", "u\nv\n")
    put(root / "la/test.list", "w\n")
    put(root / "suite.yaml", SUITE)
    check(root / "set", root / "check.json")
    prepare(root / "set", root / "data", settings=SMALL)
    for name, method in (("tested", "vnet"), ("other", "mean_teacher")):
        run = root / "runs" / name
        train(root / "data", run, **RUN | {"method": method})
        predict(run, [root / "data"], run / "predictions", split="development", threads=1, device="cpu")
        evaluate(run / "predictions", root / "data", split="development")
        record(run, run / "predictions", root / "records" / name)
    export(root / "runs/tested", root / "model")
    predict(root / "model", [root / "set/imagesTr/d_0000.nii.gz"], root / "masks", threads=1, device="cpu")
    put(root / "job.json", json.dumps({"name": "a", "dataset": "b", "run": "c", "record": "d", "method": "vnet"}))
    for name in ("nii/scan.nii", "gz/scan.nii.gz"):  # apart: twins are ambiguous
        put(root / name, nifti(VOXELS, np.diag([*MM, 1])))
    put(root / "scan.nrrd", nrrd_file(root / "here"))
    put(root / "scan.h5", h5_file(root / "here"))
    (root / "series").mkdir()
    for k in range(SHAPE[2]):
        dicom_slice(root / f"series/{k}.dcm", k)
    return root


# What reads the files


def scans(file: str) -> Callable[[Path], None]:
    """As a scan and as a mask; a scan that was read can be worked with."""

    def read(root: Path) -> None:
        image, label = read_image([root / file], 1, MM), read_label(root / file, MM)
        assert (image.array.dtype, image.array.ndim, np.isfinite(image.array).all()) == (np.float32, 4, True)
        assert np.isfinite(image.affine).all()
        assert min(image.spacing_mm) > 0
        assert label.array.dtype.kind == "i"

    return read


def described_set(root: Path) -> None:
    for split_file in (None, root / "split.json"):
        at = opened(root / "set", Request(split_file=split_file))
        split, _ = assigned(at)
        check_assigned(at, split)
        cases = [case for listed in split.lists().values() for case in listed]
        assert (len(cases), set(cases) <= set("abcd")) == (len(set(cases)), True)


def earlier_check(root: Path) -> None:
    assert check(root / "set", root / "check.json").errors == 0  # what is damaged is read again


def prepared(root: Path) -> None:
    data = open_dataset(root / "data")
    for cases in data.split.lists().values():
        for case in cases:
            data.image_paths(case)
    evaluate(root / "runs/tested/predictions", root / "data", root / "here/scores", split="development")
    train(root / "data", root / "here/run", **RUN)
    prepare(root / "set", root / "data", settings=SMALL)


def run_folder(root: Path) -> None:
    """As `predict` and as the next call of `train` read it."""
    load_model(root / "runs/tested", torch.device("cpu"))
    train(root / "data", root / "runs/tested", **RUN)


def model(root: Path) -> None:
    info(root / "model")
    load_model(root / "model", torch.device("cpu"))


def predicted_before(root: Path) -> None:
    scan = root / "set/imagesTr/d_0000.nii.gz"
    predict(root / "model", [scan], root / "masks", threads=1, device="cpu")


def mask(root: Path) -> None:
    evaluate(root / "runs/tested/predictions", root / "data", root / "here/scores", split="development")


def scored(root: Path) -> None:
    for row in compare(sorted((root / "runs").iterdir())).table[1:]:
        assert 0 <= float(row[4].split()[0]) <= 1


def page(root: Path) -> None:
    report([root / "runs/tested"], root / "here/report.html")


def kept(root: Path) -> None:
    read_records(root / "records")
    compare(sorted((root / "records").iterdir()))


def suite(root: Path) -> None:
    assert all(row.slug for row in find_suite(str(root / "suite.yaml")).rows)


def job(root: Path) -> None:
    Job.read(read_object(root / "job.json"), str(root / "job.json"))


@dataclass(frozen=True)
class Target:
    """Files of which one is damaged, and what reads them. strict: the message names the very file, not another one
    that does not fit to it."""

    files: tuple[str, ...]
    read: Callable[[Path], Any]
    strict: bool = False


RUN_FILES = ("runs/tested/predictions/scores/*", "runs/tested/recipe.yaml")
TARGETS = {
    "nifti": Target(("nii/scan.nii",), scans("nii/scan.nii"), strict=True),
    "gzip": Target(("gz/scan.nii.gz",), scans("gz/scan.nii.gz"), strict=True),
    "nrrd": Target(("scan.nrrd",), scans("scan.nrrd"), strict=True),
    "hdf5": Target(("scan.h5",), scans("scan.h5"), strict=True),
    "dicom": Target(("series/*.dcm",), scans("series")),
    "data set": Target(("set/*.json", "split.json"), described_set),
    "lists of names": Target(("la/*.list",), lambda root: discover(root / "la")),
    "check": Target(("check.json",), earlier_check),
    "prepared": Target(("data/*.json", "data/store/*.json"), prepared),
    "run": Target(("runs/tested/*.yaml", "runs/tested/stage.json", "runs/tested/metrics.jsonl"), run_folder),
    "checkpoint": Target(("runs/tested/checkpoints/*",), run_folder),
    "model": Target(("model/*",), model),
    "predictions": Target(("masks/stage.json",), predicted_before),
    "masks": Target(("runs/tested/predictions/*.*",), mask),
    "scores": Target(RUN_FILES, scored),
    "report": Target((*RUN_FILES, "runs/tested/metrics.jsonl", "data/dataset.json"), page),
    "records": Target(("records/tested/*",), kept),
    "suite": Target(("suite.yaml",), suite),
    "job": Target(("job.json",), job),
}


def peak_memory() -> int:
    """Bytes, of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def complaint(root: Path, name: str, number: int) -> str:
    """What goes wrong with this input; empty if all is as it should be. The damaged file is left as it is."""
    target, rng = TARGETS[name], random.Random(f"{name} {number}")
    path = rng.choice(sorted(path for pattern in target.files for path in root.glob(pattern) if path.is_file()))
    for file, content in damaged(path, rng).items():
        file.write_bytes(content)
    before, began, memory = contents(root), time.monotonic(), peak_memory()
    said, where = "", str(path.relative_to(root))
    try:
        target.read(root)
    except UserError as error:
        said = str(error)
    except Exception:
        return f"{where}: {traceback.format_exc()}"
    if (root / "here" / CANARY).exists():
        return f"{where}: code was run"
    shutil.rmtree(root / "here")
    (root / "here").mkdir()
    after = contents(root)
    if said and not any(
        part in said
        for part in (
            (path.name,) if target.strict else (path.name, str(root), "tested: ", "tested and ", "and tested ")
        )
    ):
        return f"{where}: names no file: {said}"
    if time.monotonic() - began > LONGEST:
        return f"{where}: took {time.monotonic() - began:.0f} s"
    if peak_memory() - memory > MOST_MEMORY:
        return f"{where}: took {(peak_memory() - memory) / 2**20:.0f} MiB"
    own = where.split("/")[0]
    if wrong := [
        file
        for file in {*before, *after}
        if before.get(file) != after.get(file) and file.split("/")[0] not in ("here", own)
    ]:
        return f"{where}: changed {wrong}"
    return ""


class Sound:
    """What a folder holds, to be put back."""

    def __init__(self, root: Path) -> None:
        self.root, self.listed = root, contents(root)
        self.files = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}

    def restore(self) -> None:
        now = contents(self.root)
        for name in reversed(now):
            if name not in self.listed:
                path = self.root / name
                path.rmdir() if path.is_dir() else path.unlink()
        for path, content in self.files.items():
            name = str(path.relative_to(self.root))
            if now.get(name) != self.listed[name]:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        self.listed = contents(self.root)


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Sound:
    return Sound(made(tmp_path_factory.mktemp("fuzz") / "root"))


FOUND = [  # of one file of a target, what is replaced, by what
    ("prepared", "data/dataset.json", r'"label": "\S+"', '"label": 1'),
    ("prepared", "data/dataset.json", r'"labels": \[', '"labels": [[],'),
    ("prepared", "data/dataset.json", r'"cases": \{', '"cases": {"x": "a",'),
    ("prepared", "data/split.json", '"d"', '"e"'),
    ("prepared", "data/stage.json", '"config": {', '"config": 0.5, "x": {'),
    ("prepared", "data/stage.json", r'"preset": \w+', '"preset": []'),
    ("run", "runs/tested/recipe.yaml", r"plan:\n( .*\n)+", "plan: x\n"),
    ("run", "runs/tested/recipe.yaml", "width: 1", "width: 2"),
    ("report", "runs/tested/recipe.yaml", "(?s).+", "[]"),
    ("predictions", "masks/stage.json", r'"probabilities": \{', '"probabilities": "x", "y": {'),
    ("run", "runs/tested/recipe.yaml", "width: 1", "width: x"),
    ("run", "runs/tested/recipe.yaml", "method: vnet", "method: x"),
    ("model", "model/model.json", '"config": {', '"config": 0.5, "x": {'),
    ("model", "model/model.json", '"iterations": 2', '"iterations": [2]'),
    ("model", "model/model.json", '"iterations": 2', '"x": 2'),
    ("model", "model/model.json", '"method": "vnet"', '"method": null'),
    ("model", "model/model.json", '"trained": {', '"trained": 1, "x": {'),
    ("model", "model/model.json", r'"channels": \[[^]]*\]', '"channels": []'),
    ("model", "model/model.json", '"method": "vnet"', '"method": "x"'),
    ("predictions", "masks/stage.json", '"config": {', '"config": null, "x": {'),
    ("predictions", "masks/stage.json", '"cases": {', '"cases": "", "x": {'),
    ("masks", "runs/tested/predictions/stage.json", '"config": {', '"config": "", "x": {'),
    ("report", "runs/tested/predictions/scores/definitions.txt", "medpy", "\x93"),
    ("report", "runs/tested/metrics.jsonl", "iteration", "\xff"),
    ("report", "runs/tested/predictions/scores/summary.csv", r"0\.\d", "0\x01"),
    ("report", "runs/tested/predictions/scores/stage.json", '"select": "last"', '"select": {}'),
    ("scores", "runs/tested/predictions/scores/scores.csv", "egg", "\x80"),
    ("scores", "runs/tested/predictions/scores/scores.csv", r"(?s)(.*\n)d,.*", r"\1\1"),
    ("scores", "runs/tested/predictions/scores/scores.csv", r"(d,egg,\w+),.*", r"\1"),
    ("scores", "runs/tested/predictions/scores/scores.csv", r"(d,egg,\w+),[^,]*", r"\1,nan"),
    ("records", "records/tested/scores.csv", "d,egg", "e,egg"),
    ("records", "records/tested/record.json", '"select": "last"', '"select": []'),
    ("records", "records/tested/record.json", '"engine"', '"x"'),
    ("records", "records/tested/recipe.yaml", "method: vnet", "method: x"),
    ("check", "check.json", r'"lowest": [^,]+', '"lowest": NaN'),
    ("suite", "suite.yaml", "la-quick", "none"),
    ("suite", "suite.yaml", "title: few", "title: &a [*a]"),
]


@pytest.mark.parametrize(("name", "file", "old", "new"), FOUND)
def test_what_was_found(name: str, file: str, old: str, new: str, sound: Sound) -> None:
    sound.restore()
    text = (sound.root / file).read_text("latin-1")
    changed = re.sub(old, new, text, count=1)
    assert changed != text
    for path, content in untold(sound.root / file, changed.encode("latin-1")).items():
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"{Path(file).name}|tested"):
        TARGETS[name].read(sound.root)


@pytest.mark.parametrize("change", [{"method": [1]}, {"method": {"x": 1}}, {"method": None}, {"optimisers": 3}])
def test_what_was_found_in_checkpoints(change: dict[str, Any], sound: Sound) -> None:
    sound.restore()
    path = max((sound.root / "runs/tested/checkpoints").glob("*.pt"))
    state = {key: value for key, value in (torch.load(path) | change).items() if value is not None}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    for file, content in untold(path, buffer.getvalue()).items():
        file.write_bytes(content)
    with pytest.raises(UserError, match="tested"):
        TARGETS["checkpoint"].read(sound.root)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_read_or_refused(name: str, sound: Sound, monkeypatch: pytest.MonkeyPatch) -> None:
    end, number = time.monotonic() + SECONDS / len(TARGETS), 0
    while time.monotonic() < end:
        sound.restore()
        monkeypatch.chdir(sound.root / "here")
        wrong = complaint(sound.root, name, number)
        assert not wrong, f"input {number} of {name!r}: {wrong}"
        number += 1
    sound.restore()
    print(f"{name}: {number} inputs")
    assert number
