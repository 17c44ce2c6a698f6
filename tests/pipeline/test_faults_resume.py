"""Training under faults: killed, stopped, dying inside a save, on a full or closed disk; and going on behind them.

What is damaged by hand (checkpoints cut in half, recipes, logs) is in `test_train.py`.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_set import Tiny, assert_equal_weights, files_of_at_most, iterations, start, wait_for

from sscl import cli
from sscl.core.errors import UserError
from sscl.core.files import sha256
from sscl.core.interrupt import Interrupted
from sscl.engine import checkpoint
from sscl.stages.cost import Cost

Train = Callable[..., Path]
Streams = pytest.CaptureFixture[str]
CPU = torch.device("cpu")

# Killed at any moment

TOTAL = 12
"""Iterations: 4 of pre-training, 8 of formal training; a checkpoint after each."""
NOISY = ("--set", "pretrain_share=0.3", "--set", "dropout=0.5")
"""Both phases, and random numbers in every step."""
KILLS = 5
CHAINS = range(10 if "SSCL_SOAK" in os.environ else 1)


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing happened to."""

    run: Path
    seconds: float


def final_digest(run: Path) -> str:
    """Of the last checkpoint: networks, teacher, optimisers."""
    path = run / f"checkpoints/{TOTAL:08d}.pt"
    digest = sha256(path)
    assert json.loads(path.with_suffix(".json").read_text()) == {"sha256": digest, "iteration": TOTAL}
    return digest


def numbers(run: Path) -> list[dict[str, object]]:
    """The log without its times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def saved(run: Path) -> int:
    """The iteration from which a run would go on; 0 before its first checkpoint."""
    state = checkpoint.newest(run / "checkpoints", CPU)
    return 0 if state is None else int(state["iteration"])


def done(run: Path, errors: str) -> int:
    """Iterations that a process finished before it died: those that it printed or logged."""
    logged = (run / "metrics.jsonl").read_bytes().count(b"\n") if (run / "metrics.jsonl").exists() else 0
    return max([logged, *(int(number) for number in re.findall(rf"(\d+)/{TOTAL},", errors))])


@pytest.fixture(scope="module")
def undisturbed(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    run, began = tmp_path_factory.mktemp("undisturbed") / "run", time.monotonic()
    process = start(tiny, run, *NOISY, iterations=TOTAL)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return Undisturbed(run, time.monotonic() - began)


def moments(run: Path, seconds: float, rng: random.Random) -> dict[str, Callable[[], bool]]:
    """When to kill a process that is about to start: at any time; with a checkpoint half written; at its very end."""
    halves, wanted = set[str](), rng.randint(1, 6)
    end, pause = time.monotonic() + rng.uniform(0, seconds), rng.uniform(0, 0.3)
    last: list[float] = []

    def half_written() -> bool:
        halves.update(path.name for path in (run / "checkpoints").glob(".*.tmp"))
        return len(halves) >= wanted

    def ending() -> bool:
        if not last and (run / f"checkpoints/{TOTAL:08d}.pt").exists():
            last.append(time.monotonic())
        return bool(last) and time.monotonic() > last[0] + pause

    return {"any": lambda: time.monotonic() > end, "save": half_written, "end": ending}


def killed(process: subprocess.Popen[str], moment: Callable[[], bool]) -> bool:
    """SIGKILL when `moment` has come; False if the process was ready before."""
    while process.poll() is None and not moment():
        time.sleep(0.002)
    process.kill()
    return process.wait() == -9


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("chain", CHAINS)
def test_killed_at_random_moments_and_moved_a_run_ends_with_the_same_weights(
    chain: int, tiny: Tiny, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Five kills; a run that gets ready before the fifth is compared, and another one begun."""
    rng, told, number, run = random.Random(chain), list[str](), 0, tmp_path / "run0"
    while True:
        kind = rng.choice(["any", "any", "save", "save", "end"])
        before, at = saved(run), moments(run, undisturbed.seconds, rng)[kind]
        process = start(tiny, run, *NOISY, iterations=TOTAL)
        was_killed = len(told) < KILLS and killed(process, at)
        _, errors = process.communicate()
        assert ("continuing" in errors) == (f"after iteration {before} of {TOTAL}" in errors)
        if was_killed:
            kept, finished = saved(run), done(run, errors)
            assert max(before, finished - 1) <= kept <= finished
            told.append(f"{kind} {finished}>{kept}")
        else:
            assert process.returncode == 0, errors
            assert final_digest(run) == final_digest(undisturbed.run)
            assert numbers(run) == numbers(undisturbed.run)
            assert list(run.rglob(".*.tmp")) == []
            if len(told) == KILLS:
                break
        number += 1
        following = tmp_path / f"run{number}"
        if was_killed and run.exists():
            run.rename(following)
        run = following
    print(f"kills {chain * KILLS + 1} to {chain * KILLS + KILLS} of {len(CHAINS) * KILLS}: {', '.join(told)}")


# Dying inside a save

DYING = """
import os, shutil, sys, torch
from pathlib import Path
from sscl.core import files
from sscl.engine import checkpoint

trace, fatal = [], [-1]

def fail():
    return len(trace) == fatal[0]

def dying(name, function):
    def call(*arguments, **options):
        if fail():
            os._exit(9)
        trace.append(name + " " + Path(str(arguments[-1])).name)
        return function(*arguments, **options)
    return call

def write(sink, data, whole=files._Sink.write):
    if fail():
        whole(sink, data[: len(data) // 2])
        sink.flush()
        os._exit(9)
    trace.append("write")
    return whole(sink, data)

def saves(folder):
    for iteration in (3, 4, 4):
        checkpoint.save(folder, state(iteration))

def state(k):
    return {"iteration": k, "x": torch.full((1000,), float(k))}

root = Path(sys.argv[1])
for iteration in (1, 2):
    checkpoint.save(root / "begun", state(iteration))
for name in ("fsync", "chmod", "replace", "unlink", "close"):
    setattr(os, name, dying(name, getattr(os, name)))
files._Sink.write = write
shutil.copytree(root / "begun", root / "whole")
trace.clear()
saves(root / "whole")
calls = [*trace]
for k in range(len(calls)):
    folder = shutil.copytree(root / "begun", root / str(k))
    if (child := os.fork()) == 0:
        trace.clear()
        fatal[0] = k
        saves(folder)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    expected = max([2] + [int(call[-6]) for call in calls[:k] if call.startswith("replace") and call.endswith(".json")])
    found = checkpoint.newest(folder, torch.device("cpu"))
    assert code == 9 and found and found["iteration"] == expected and (found["x"] == expected).all(), (k, calls)
    checkpoint.save(folder, state(5))
    names = sorted(path.name for path in folder.iterdir())
    stems = [f"{iteration:08d}" for iteration in (expected, 5)]
    assert names == [stem + end for stem in stems for end in (".json", ".pt")], (k, calls[k], names)
    shutil.rmtree(folder)
print(*(call.split()[0] for call in calls))
"""
"""A fork for each call: it ends there, in the middle where it writes, without any clean-up."""


@pytest.mark.slow
def test_dying_at_any_call_of_a_save_the_newest_complete_checkpoint_is_found(tmp_path: Path) -> None:
    """Saves of iterations 3, 4 and again 4, over checkpoints of 1 and 2, which are removed. A checkpoint counts from
    the rename of its manifest on, and not before.
    """
    result = subprocess.run([sys.executable, "-c", DYING, str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    one_file = "(write )+fsync chmod replace fsync close "  # into the file, the rename, into its folder
    assert re.fullmatch(f"(({one_file}){{2}}(unlink unlink )?){{3}}", result.stdout.replace("\n", " "))
    print(f"died at each of {len(result.stdout.split())} calls")


def test_a_manifest_that_cannot_be_written_leaves_no_half_checkpoint(tmp_path: Path, monkeypatch: Any) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    checkpoint.save(tmp_path, {"iteration": 1})
    monkeypatch.setattr(checkpoint, "write_json", full)
    with pytest.raises(UserError, match="No space left on device"):
        checkpoint.save(tmp_path, {"iteration": 2})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000001.json", "00000001.pt"]


# Damaged checkpoints, clocks


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_damaged_checkpoint_takes_no_good_ones_place(tmp_path: Path) -> None:
    """5 is damaged, so the run goes on from 2; behind the next saves two good ones must be there."""
    for iteration in (2, 5):
        checkpoint.save(tmp_path, {"iteration": iteration})
    cut(tmp_path / "00000005.pt")
    for iteration, expected in ((4, [2, 4]), (7, [4, 7])):
        checkpoint.save(tmp_path, {"iteration": iteration})
        assert [int(path.stem) for path in sorted(tmp_path.glob("*.pt"))] == expected
        assert checkpoint.newest(tmp_path, CPU) == {"iteration": iteration}


def test_without_an_undamaged_checkpoint_a_run_begins_anew_and_says_so(
    trained: Path, train_tiny: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    for path in (run / "checkpoints").glob("*.pt"):
        cut(path)
    train_tiny(run)
    assert f"{run} has no undamaged checkpoint any more: it begins anew" in caplog.text
    assert iterations(run) == list(range(6))
    assert_equal_weights(trained, run)


@pytest.mark.parametrize("ages", [(0, 0), (0, 86_400), (86_400, 0)])
def test_a_checkpoint_is_chosen_by_its_iteration_whatever_the_clock_said(tmp_path: Path, ages: tuple[int, int]) -> None:
    """Equal times, the right order, and a clock that was set back a day in between."""
    for iteration, age in zip((9, 10), ages, strict=True):
        checkpoint.save(tmp_path, {"iteration": iteration})
        for path in tmp_path.glob(f"{iteration:08d}.*"):
            os.utime(path, (age, age))
    assert checkpoint.newest(tmp_path, CPU) == {"iteration": 10}
    checkpoint.save(tmp_path, {"iteration": 11})
    assert [int(path.stem) for path in sorted(tmp_path.glob("*.pt"))] == [10, 11]


# Signals


@pytest.mark.parametrize(
    "call", ["fsync", *(pytest.param(call, marks=pytest.mark.slow) for call in ("replace", "unlink"))]
)
def test_sigterm_inside_a_save_waits_for_it(
    call: str, trained: Path, train_tiny: Train, tmp_path: Path, monkeypatch: Any
) -> None:
    """In the third save, whose iteration is then the last."""
    plain, run, seen = getattr(os, call), tmp_path / "run", list[str]()

    def signalled(*arguments: Any, **options: Any) -> Any:
        if (run / "checkpoints/00000002.json").exists() and not seen:
            seen.append(call)
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(*arguments, **options)

    monkeypatch.setattr(os, call, signalled)
    with pytest.raises(Interrupted, match="SIGTERM") as stopped:
        train_tiny(run, checkpoint_minutes=0)
    assert seen == [call]
    assert f"after iteration {saved(run)};" in str(stopped.value)
    assert 2 < saved(run) < 6
    assert list(run.rglob(".*.tmp")) == []
    monkeypatch.undo()
    train_tiny(run)
    assert_equal_weights(trained, run)


TWICE = """
import os, signal, sys
from pathlib import Path
from sscl.stages.train import train

def on_step(log, total):
    if log["iteration"] == 3:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

train(Path(sys.argv[1]), Path(sys.argv[2]), iterations=6, threads=1, device="cpu", settings={"width": 2},
      checkpoint_minutes=0, on_step=on_step)
"""


@pytest.mark.slow
def test_a_second_sigterm_acts_at_once_and_loses_no_more_than_an_interval(
    tiny: Tiny, trained: Path, train_tiny: Train, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ended = subprocess.run([sys.executable, "-c", TWICE, str(tiny.dataset), str(run)], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (-signal.SIGTERM, "")
    assert saved(run) == 3
    train_tiny(run)
    assert_equal_weights(trained, run)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_sigterm_to_every_process_as_a_batch_system_sends_it(
    workers: str, tiny: Tiny, train_tiny: Train, tmp_path: Path
) -> None:
    """In pre-training; the loader processes get it as well, and a run of 200 iterations is far from its end."""
    run, options = tmp_path / "run", ("--set", "pretrain_share=0.9", "--workers", workers)
    process = start(tiny, run, *options, iterations=200, process_group=0)
    wait_for(run, 2)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=300)  # until the last loader process has closed its end as well
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "Traceback" not in errors
    stopped = saved(run)
    assert f"stopped by SIGTERM after iteration {stopped}; state saved. The same command goes on from there." in errors
    assert 2 <= stopped < 180
    assert iterations(run) == list(range(stopped))


# Folders that are no run, or cannot be written


@pytest.mark.parametrize("made", [False, True])
def test_resuming_an_empty_or_mistyped_folder_is_refused_and_makes_nothing(
    made: bool, trained: Path, train_tiny: Train, tmp_path: Path
) -> None:
    run = tmp_path / "rnu"
    if made:
        run.mkdir()
    with pytest.raises(UserError, match=r"rnu is not a run folder: it has no recipe\.yaml"):
        train_tiny(run, resume=True)
    assert list(tmp_path.rglob("*")) == [run] * made
    mine = shutil.copytree(trained, tmp_path / "run")
    train_tiny(mine, resume=True)  # a finished one


def test_a_run_that_was_begun_by_minutes_keeps_its_validation_cases(
    train_tiny: Train, tmp_path: Path, monkeypatch: Any
) -> None:
    """Else the same command would be refused as one with other settings."""
    monkeypatch.setattr("sscl.stages.train._cost", lambda *arguments: Cost(6000, 0.6, 0, 0))
    options: dict[str, Any] = {"iterations": None, "minutes": 0.04, "validation": 1, "method": "vnet"}
    for _ in range(2):
        assert iterations(train_tiny(tmp_path / "run", **options)) == [0, 1, 2, 3]


# Full disks


def command(tiny: Tiny, run: Path, *options: str, minutes: str = "0") -> list[str]:
    words = ["train", str(tiny.dataset), "-o", str(run), "--iterations", "6", "--set", "width=2", "--threads", "1"]
    return [*words, "--device", "cpu", "--checkpoint-minutes", minutes, *options]


def refused(code: int, errors: str, *words: str) -> None:
    assert code == 2, errors
    assert "Traceback" not in errors
    assert [word for word in words if word not in errors] == []


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"not run: no disk may be mounted here ({mounted.stderr.decode().strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_checkpoint_that_may_not_be_so_large_leaves_the_old_one(
    tiny: Tiny, trained: Path, train_tiny: Train, tmp_path: Path, capsys: Streams
) -> None:
    run = tmp_path / "run"

    def stop(log: dict[str, Any], total: int) -> None:
        if log["iteration"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train_tiny(run, on_step=stop)
    before = {path: sha256(path) for path in (run / "checkpoints").iterdir()}
    with files_of_at_most(2**20):
        code = cli.main(command(tiny, run))
    refused(
        code, capsys.readouterr().err, "00000004.pt: cannot be written", "it needs 3.3 MiB", "MiB free", "make room"
    )
    assert {path: sha256(path) for path in (run / "checkpoints").iterdir()} == before
    train_tiny(run)
    assert_equal_weights(trained, run)


@pytest.mark.parametrize(("size", "kept", "words"), [("64k", 0, "needs 3.3 MiB"), ("5m", 1, "needs 3.3 MiB")])
def test_a_full_disk(
    size: str, kept: int, words: str, tiny: Tiny, trained: Path, train_tiny: Train, tmp_path: Path, capsys: Streams
) -> None:
    """Too small for a checkpoint, or for a second one beside the first."""
    with small_disk(tmp_path / "disk", size) as disk:
        code = cli.main(command(tiny, disk / "run"))
        refused(code, capsys.readouterr().err, f"{kept + 1:08d}.pt: cannot be written", words, "MiB free", "make room")
        assert saved(disk / "run") == kept
        assert len([*(disk / "run/checkpoints").iterdir()]) == 2 * kept
        shutil.copytree(disk / "run", tmp_path / "run")
    train_tiny(tmp_path / "run")
    assert_equal_weights(trained, tmp_path / "run")


def test_a_disk_without_room_for_the_log_or_the_recipe(
    tiny: Tiny, trained: Path, train_tiny: Train, tmp_path: Path, capsys: Streams
) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        (disk / "other").write_bytes(bytes(2**16))
        refused(cli.main(command(tiny, disk / "run")), capsys.readouterr().err, "recipe.yaml: No space left")
        assert [path.name for path in (disk / "run").iterdir()] == [".lock"]
        (disk / "other").write_bytes(b"")
        with pytest.raises(OSError, match="No space left") as stopped:
            train_tiny(disk / "run", on_step=lambda log, total: log["iteration"] == 2 and fill(disk))
        assert stopped.value.filename == str(disk / "run/metrics.jsonl")
        shutil.copytree(disk / "run", tmp_path / "run")
    train_tiny(tmp_path / "run")
    assert_equal_weights(trained, tmp_path / "run")


def fill(disk: Path) -> None:
    """Until nothing more fits."""
    with suppress(OSError), (disk / "other").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


# Nobody reads


@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["2>&1 | head -1", ">&- 2>&-"])
def test_a_run_that_nobody_reads_ends_as_it_should(redirection: str, tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    """A reader that leaves; no output at all."""
    words = [sys.executable, "-m", "sscl.cli", *command(tiny, tmp_path / "run")]
    shell = f'"$@" {redirection}; echo "code ${{PIPESTATUS[0]}}"'
    ended = subprocess.run(["bash", "-c", shell, "bash", *words], capture_output=True, text=True)
    assert "Traceback" not in ended.stdout + ended.stderr
    assert "code 0" in ended.stdout, ended.stderr
    assert_equal_weights(trained, tmp_path / "run")
    assert (tmp_path / "run/stage.json").exists()
