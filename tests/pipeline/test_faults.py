"""Faults while training: what a run does when numbers, files, memory or settings go wrong in the midst of it.

Killed processes, full disks and resuming: test_faults_resume.py. Faults while predicting: test_predict.py.
"""

import gc
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_set import LABELLED, UNLABELLED, Tiny, assert_equal_weights, files_of_at_most, make_source, prepared

from sscl.core.errors import UserError
from sscl.core.interrupt import Interrupted
from sscl.core.plan import Plan
from sscl.data.patches import Draw, Loaded, PatchLoader
from sscl.data.store import CaseStore
from sscl.data.workers import _Draws
from sscl.engine.run import read_recipe
from sscl.engine.train import Log, Trainer
from sscl.stages.train import dry_run, train

Train = Callable[..., Path]
SOAK = "SSCL_SOAK" in os.environ


def refused(words: str, run: Callable[[], Any]) -> str:
    with pytest.raises(UserError, match=words) as caught:
        run()
    return str(caught.value)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def begun(train_tiny: Train, out: Path, done: int, **options: Any) -> Path:
    """A run of 6 iterations that was stopped after some."""

    def stop(log: Log, total: int) -> None:
        if log["iteration"] == done - 1:
            os.kill(os.getpid(), 15)

    with pytest.raises(Interrupted):
        train_tiny(out, on_step=stop, **options)
    return out


# R10, R11, R17, R19: loader processes and memory


def _loader(dataset: Path) -> PatchLoader:
    plan = Plan.read(json.loads((dataset / "plan.json").read_text()), "plan.json")
    return PatchLoader(CaseStore(dataset / "store"), LABELLED, UNLABELLED, plan, 0)


@pytest.mark.parametrize("draw", [Draw(range(2), range(2)), Draw(range(2), range(0))])
def test_a_batch_that_shared_memory_cannot_hold_is_told(draw: Draw, tiny: Tiny) -> None:
    """torch's sending thread would drop it, and the run would wait for it for ever."""
    process = _Draws(partial(_loader, tiny.dataset), workers=1)
    sent = process[draw]
    assert isinstance(sent, Loaded)
    assert sent.batch.labelled.is_shared()
    assert sent.batch.label.is_shared()
    with files_of_at_most(4096):
        error = process[draw]
    assert isinstance(error, UserError)
    assert "no shared memory for a batch" in str(error)
    assert "--workers 0" in str(error)


@pytest.mark.slow
def test_a_small_shared_memory_ends_the_run_with_a_message(tiny: Tiny, tmp_path: Path) -> None:
    """As in a container, whose /dev/shm has 64 MB unless it is given more; these batches are of 160 kB."""
    mount = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=200k tmpfs /dev/shm && exec "$0" "$@"']
    if shutil.which("unshare") is None or subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("not run: this user may not mount a small /dev/shm")
    command = [sys.executable, "-m", "sscl.cli", "train", tiny.dataset, "-o", tmp_path / "run", "--iterations", "9"]
    options = ["--set", "width=2", "--threads", "1", "--device", "cpu", "--workers", "2"]
    result = subprocess.run([*mount, *map(str, command), *options], capture_output=True, text=True, timeout=600)
    assert result.returncode == 2, result.stderr
    assert "no shared memory for a batch" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")  # where there are two cores
def test_a_run_goes_on_with_another_number_of_loader_processes(
    trained: Path, train_tiny: Train, tmp_path: Path
) -> None:
    """None, then four, then two."""
    run = begun(train_tiny, tmp_path / "run", 2)
    begun(train_tiny, run, 4, workers=4)
    assert_equal_weights(trained, train_tiny(run, workers=2))


TOO_MUCH = {
    "GPU": lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")),
    "CPU": lambda: torch.empty(2**60),
}


@pytest.mark.parametrize("place", TOO_MUCH)
def test_memory_that_does_not_suffice_is_told_with_advice(
    place: str, train_tiny: Train, tiny: Tiny, tmp_path: Path, monkeypatch: Any
) -> None:
    """Of a GPU by the error that torch raises there, of a CPU by asking for an exabyte."""
    monkeypatch.setattr(Trainer, "step", lambda *arguments: TOO_MUCH[place]())
    words = (
        r"the memory does not suffice \(.*ry to|the memory does not suffice \(.*allocate.*smaller patch.*--device cpu"
    )
    refused(words, lambda: train_tiny(tmp_path / "run"))
    refused(words, lambda: dry_run(tiny.dataset, settings={"width": 2}, threads=1, device="cpu"))


def test_a_patch_that_a_norm_cannot_train_on_is_told_with_advice(tiny: Tiny, tmp_path: Path) -> None:
    """URPC's network has instance norm, and halves these patches of 16 voxels to a single one."""
    options = {"method": "urpc", "settings": {"width": 2}, "iterations": 2, "threads": 1, "device": "cpu"}
    words = r"a single voxel is left.*larger patch \(--set patch=32,32,32\)"
    refused(words, lambda: train(tiny.dataset, tmp_path / "run", **options))
    refused(words, lambda: dry_run(tiny.dataset, **options))


def test_another_error_of_torch_is_not_taken_for_one_of_memory(
    train_tiny: Train, tmp_path: Path, monkeypatch: Any
) -> None:
    def fail(*arguments: Any) -> Log:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Trainer, "step", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        train_tiny(tmp_path / "run")


@pytest.mark.slow
def test_no_loader_process_outlives_a_run_without_memory(tiny: Tiny, tmp_path: Path) -> None:
    script = """
import sys, torch
from pathlib import Path
from sscl.cli import main
from sscl.engine.train import Trainer

def step(trainer, span, loaded):
    print(*Path("/proc/self/task").glob("*/children").__next__().read_text().split(), flush=True)
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

Trainer.step = step
sys.exit(main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", script, "train", tiny.dataset, "-o", tmp_path / "run", "--iterations", "9"]
    options = ["--set", "width=2", "--threads", "1", "--device", "cpu", "--workers", "2"]
    result = subprocess.run([*map(str, command), *options], capture_output=True, text=True, timeout=600)
    assert result.returncode == 2, result.stderr
    assert "the memory does not suffice" in result.stderr
    children = result.stdout.split()
    assert len(children) >= 2
    deadline = time.monotonic() + 30  # Python's own resource tracker ends when it notices that the run has
    while left := [pid for pid in children if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


# R12: a loss that is no number


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("k", [2, 5])
def test_a_bad_loss_stops_there_and_the_last_good_weights_stay(
    k: int, bad: float, trained: Path, train_tiny: Train, tmp_path: Path, monkeypatch: Any
) -> None:
    """One voxel of a crop of iteration k. The same command, the voxel mended, ends with the undisturbed weights."""
    load, cases = PatchLoader.load, []

    def spoiled(loader: PatchLoader, draw: Draw) -> Loaded:
        loaded = load(loader, draw)
        if len(cases) == k:
            loaded.batch.labelled[0, 0, 8, 8, 8] = bad
        cases.append(loaded.cases)
        return loaded

    run = tmp_path / "run"
    monkeypatch.setattr(PatchLoader, "load", spoiled)
    message = refused("the loss of", lambda: train_tiny(run, checkpoint_minutes=0))
    assert f"at iteration {k}; cases in the batch: {', '.join(cases[k])}. " in message
    assert len(cases) == k + 1
    assert max(path.name for path in (run / "checkpoints").glob("*.pt")) == f"{k:08d}.pt"
    good = contents(run / "checkpoints")
    monkeypatch.setattr(PatchLoader, "load", load)
    straight = begun(train_tiny, tmp_path / "straight", k, checkpoint_minutes=0)
    assert contents(straight / "checkpoints") == good
    assert_equal_weights(trained, train_tiny(run))


# R13, R18: resume under other conditions; single ones are in test_train.py


def test_all_differences_to_the_begun_run_are_listed(tmp_path: Path) -> None:
    source, run = make_source(tmp_path / "source"), tmp_path / "run"
    prepared(source, tmp_path / "dataset")
    prepared(source, tmp_path / "other", patch=(32, 16, 16), spacing_mm=(1.0, 1.0, 2.0))
    options: dict[str, Any] = {"iterations": 6, "threads": 1, "device": "cpu", "method": "vnet"}
    begun(partial(train, tmp_path / "dataset", settings={"width": 2}, **options), run, 1)
    before = contents(run / "checkpoints"), (run / "recipe.yaml").read_bytes(), (run / "metrics.jsonl").read_bytes()
    settings = {"width": 2, "optimiser.learning_rate": 0.1}
    message = refused("other settings", lambda: train(tmp_path / "other", run, settings=settings, **options))
    lines = [line.strip() for line in message.splitlines()]
    assert "config.optimiser.learning_rate: 0.01 in the run, 0.1 now" in lines
    assert "plan.patch: [16, 16, 16] in the run, [32, 16, 16] now" in lines
    assert "plan.spacing_mm: [1.0, 1.0, 1.0] in the run, [1.0, 1.0, 2.0] now" in lines
    assert any(line.startswith("data_digest: ") for line in lines)
    assert before == (
        contents(run / "checkpoints"),
        (run / "recipe.yaml").read_bytes(),
        (run / "metrics.jsonl").read_bytes(),
    )


def test_a_moved_data_set_is_told_and_changes_nothing(
    trained: Path, train_tiny: Train, tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moved = shutil.copytree(tiny.dataset, tmp_path / "moved")
    run = begun(train_tiny, tmp_path / "run", 3)
    assert_equal_weights(trained, train_tiny(run, dataset=moved))
    assert f"dataset: {read_recipe(run).dataset} in the run, {moved} now" in caplog.text


# R15, R16: the stored volumes


@pytest.mark.parametrize(
    ("field", "value"),
    [("spacing_mm", [1.0, 1.0, 2.0]), ("intensity", {"window": [0, 500], "scaling": "unit"}), ("patch", [32, 16, 16])],
)
def test_another_plan_never_meets_the_stored_volumes_of_the_old_one(
    field: str, value: Any, tiny: Tiny, train_tiny: Train, tmp_path: Path
) -> None:
    """By `prepare` into the same folder, and by an editor."""
    dataset = shutil.copytree(tiny.dataset, tmp_path / "dataset")
    before = contents(dataset / "store")
    settings = value if field == "intensity" else {field: tuple(value)}
    refused(r"was prepared from other settings \(settings\)", lambda: prepared(tiny.source, dataset, **settings))
    plan = json.loads((dataset / "plan.json").read_text())
    (dataset / "plan.json").write_text(json.dumps(plan | {field: value}))
    refused(
        r"plan\.json: is not as it was written.* prepare it again",
        lambda: train_tiny(tmp_path / "run", dataset=dataset),
    )
    assert not (tmp_path / "run").exists()
    assert contents(dataset / "store") == before


def _flip(content: bytes) -> bytes:
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


@pytest.mark.parametrize("name", ["a1.image.b2nd", "a2.label.b2nd", "b3.image.b2nd"])
@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], _flip])
def test_a_damaged_stored_volume_is_named_and_the_advice_helps(
    name: str, damage: Callable[[bytes], bytes], tiny: Tiny, trained: Path, train_tiny: Train, tmp_path: Path
) -> None:
    dataset = shutil.copytree(tiny.dataset, tmp_path / "dataset")
    path = dataset / "store" / name
    path.write_bytes(damage(path.read_bytes()))
    told = rf"{name}: missing or damaged .*Prepare the data set again"
    refused(told, lambda: train_tiny(tmp_path / "run", dataset=dataset))
    refused(
        rf"{name}: missing or damaged .*Prepare the data set again\. Delete .* before",
        lambda: prepared(tiny.source, dataset),
    )
    shutil.rmtree(dataset)
    prepared(tiny.source, dataset)
    assert contents(dataset / "store") == contents(tiny.dataset / "store")


# R23: a million iterations


FLAT = """
import gc, json, os, resource, sys
from pathlib import Path
from sscl.stages.train import train

def held():
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    shared = Path("/proc/self/maps").read_text().count("/dev/shm/")
    return resident, sys.getallocatedblocks(), len(os.listdir("/proc/self/fd")), shared

dataset, out, iterations = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
seen = []

def on_step(log, total):
    if log["iteration"] in (99, total - 1):
        seen.append(held())

options = {"threads": 1, "device": "cpu", "settings": {"width": 2}, "checkpoint_minutes": 0.02}
train(dataset, out, iterations=iterations, on_step=on_step, **options)
print(json.dumps(seen))
"""


@pytest.mark.slow
@pytest.mark.soak
def test_memory_and_descriptors_stay_flat(tiny: Tiny, tmp_path: Path) -> None:
    """300 iterations with a checkpoint a second; 5000 with SSCL_SOAK=1. Growth since the hundredth."""
    iterations = 5000 if SOAK else 300
    command = [sys.executable, "-c", FLAT, str(tiny.dataset), str(tmp_path / "run"), str(iterations)]
    began = time.monotonic()
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    first, last = json.loads(result.stdout)
    grown = [after - before for before, after in zip(first, last, strict=True)]
    resident, blocks, descriptors, shared = grown
    print(f"{iterations} iterations, {time.monotonic() - began:.0f} s: {resident} bytes, {blocks} objects")
    assert (descriptors, shared) == (0, 0)
    assert resident <= 4 * 2**20  # the system gives it in steps of 2 MiB or more
    assert blocks < 2000


def test_a_loader_keeps_nothing_of_the_epochs_behind_it(tiny: Tiny) -> None:
    """Three cases are an epoch and a half a batch: over a million orders of the cases in a million iterations."""
    loader = _loader(tiny.dataset)
    kept = []
    for k in range(500):
        loader.load(Draw(range(2 * k, 2 * k + 2), range(2 * k, 2 * k + 2)))
        if k in (99, 499):
            gc.collect()
            kept.append(sys.getallocatedblocks())
    assert kept[1] - kept[0] < 100
