"""Runs as jobs of a SLURM cluster: a real one for the slow tests, which say so where there is none."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_set import Tiny

from sscl import cli
from sscl.core.errors import UserError
from sscl.studies import cluster
from sscl.studies.benchmark import Cases, Planned, plan
from sscl.studies.cluster import read_resources, submit
from sscl.studies.job import Job
from sscl.studies.suites import Row, Suite

LIMIT_SECONDS = 180
ITERATIONS = 4
ENDLESS = 100_000
SMALL = {"time": "5", "cpus_per_task": "1", "gpus_per_node": "0"}


@pytest.fixture
def slurm() -> None:
    """Skips where no SLURM answers."""
    if importlib.util.find_spec("submitit") is None:
        pytest.skip("submitit is not installed: pip install 'sscl[slurm]'")
    if not (shutil.which("sbatch") and shutil.which("sinfo")):
        pytest.skip("no SLURM on this machine: sbatch and sinfo are missing")
    asked = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, check=False)
    if asked.returncode:
        pytest.skip(f"no SLURM on this machine: {asked.stderr.strip().splitlines()[-1]}")


@pytest.fixture
def source(tiny: Tiny, tmp_path: Path) -> Path:
    """The tiny scans with readable masks: a benchmark draws its own split."""
    root = tmp_path / "source"
    shutil.copytree(tiny.source, root)
    (root / "split.json").unlink()
    for mask in root.glob("labelsTr/b*"):
        shutil.copy(root / "labelsTr/a1.nii.gz", mask)
    return root


def planned_run(source: Path, out: Path, iterations: int = ITERATIONS, device: str = "cpu") -> list[Planned]:
    suite = Suite(title="tiny", preset=None, rows=(Row(method="vnet", masks=3, settings={"width": 2}),))
    cases = Cases("1:6", test="7:8")
    return plan(suite, source, out, cases, iterations=iterations, device=device, elsewhere=True)


def some_run(tmp_path: Path, done: bool = False) -> Planned:
    paths = {"dataset": str(tmp_path / "data"), "run": str(tmp_path / "runs/x"), "record": str(tmp_path / "records/x")}
    return Planned(Row(method="vnet", masks=3), Job(name="x", method="vnet", device="cpu", **paths), done, 0.0)


def wait_for(path: Path, logs: Path) -> None:
    end = time.monotonic() + LIMIT_SECONDS
    while not path.exists():
        assert time.monotonic() < end, [log.read_text() for log in logs.glob("*_log.err")]
        time.sleep(0.5)


def number(line: str) -> str:
    return line.rpartition(" ")[2]


def wait_for_end(job: str) -> None:
    end = time.monotonic() + LIMIT_SECONDS
    while job in subprocess.run(["squeue", "-h", "-o", "%i"], capture_output=True, text=True, check=True).stdout:
        assert time.monotonic() < end, f"job {job} goes on"
        time.sleep(0.5)


# With SLURM


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_a_job_leaves_its_record_and_is_then_done(source: Path, tmp_path: Path) -> None:
    out, logs = tmp_path / "out", tmp_path / "out/slurm"
    (item,) = planned_run(source, out)
    (line,) = submit([item], logs, SMALL)
    assert line.startswith(f"{item.job.name}: SLURM job ")
    wait_for(Path(item.job.record) / "record.json", logs)
    wait_for_end(number(line))
    assert {path.name for path in Path(item.job.record).iterdir()} == {
        "recipe.yaml", "metrics.csv", "scores.csv", "summary.csv", "record.json",
    }  # fmt: skip
    (again,) = planned_run(source, out)
    assert again.done
    (auto,) = planned_run(source, out, device="auto")  # where the login node cannot know the precision
    assert auto.done
    assert submit([again], logs) == []


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_a_stopped_job_saves_and_is_handed_over_again(source: Path, tmp_path: Path) -> None:
    out, logs = tmp_path / "out", tmp_path / "out/slurm"
    (item,) = planned_run(source, out, ENDLESS)
    (line,) = submit([item], logs, SMALL)
    try:
        wait_for(Path(item.job.run) / "metrics.jsonl", logs)
        assert submit([item], logs) == [f"{item.job.name}: in the queue already, SLURM job {number(line)}"]
    finally:
        subprocess.run(["scancel", number(line)], check=True)
    wait_for_end(number(line))
    assert "state saved" in (logs / f"{number(line)}_0_log.err").read_text()
    assert list((Path(item.job.run) / "checkpoints").glob("*.pt"))
    (item,) = planned_run(source, out, ENDLESS)
    (second,) = submit([item], logs, SMALL)
    log = logs / f"{number(second)}_0_log.err"
    try:
        wait_for(log, logs)
        end = time.monotonic() + LIMIT_SECONDS
        while "continuing" not in log.read_text():
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.5)
    finally:
        subprocess.run(["scancel", number(second)], check=True)
    wait_for_end(number(second))


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_a_mistake_leaves_one_clear_line(tmp_path: Path) -> None:
    (line,) = submit([some_run(tmp_path)], tmp_path / "slurm", SMALL)
    wait_for_end(number(line))
    text = (tmp_path / "slurm" / f"{number(line)}_0_log.err").read_text()
    assert "error: " in text
    assert str(tmp_path / "data") in text
    assert "Traceback" not in text


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_what_sbatch_refuses_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sbatch refused x: .*[Ii]nvalid partition.*--slurm-set partition"):
        submit([some_run(tmp_path)], tmp_path / "slurm", {"partition": "no_such_partition"})


# Without: submitit's own script, handed to an sbatch that only gives it a number


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Submits a run; the lines of the script that sbatch got."""
    pytest.importorskip("submitit")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {"sbatch": "echo Submitted batch job 7", "squeue": "", "srun": ""}.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)

    def lines(*pairs: str, device: str = "auto") -> list[str]:
        item = some_run(tmp_path)
        item = replace(item, job=item.job.override({"device": device}, "x"))
        assert submit([item], tmp_path / "slurm", read_resources(pairs)) == ["x: SLURM job 7"]
        return (tmp_path / "slurm/7_submission.sh").read_text().splitlines()

    return lines


def test_a_job_asks_for_the_usual_unless_told(script: Callable[..., list[str]], tmp_path: Path) -> None:
    usual = script()
    assert {"#SBATCH --time=1440", "#SBATCH --cpus-per-task=4", "#SBATCH --gpus-per-node=1"} <= set(usual)
    assert not any("partition" in line or "account" in line for line in usual)
    told = script("partition=gpu", "account=lab=1", "time=720", "cpus_per_task=8", "mem=32G", "gpus_per_node=a100:1")
    for line in ("partition=gpu", "account=lab=1", "time=720", "cpus-per-task=8", "mem=32G", "gpus-per-node=a100:1"):
        assert f"#SBATCH --{line}" in told
    assert f"#SBATCH --signal=TERM@{cluster.SAVE_SECONDS}" in told
    assert [line for line in told if line.startswith("srun ") and " --cpus-per-task=8 " in line]
    assert json.loads((tmp_path / "logs/x.json").read_text())["threads"] == 8


@pytest.mark.parametrize(
    ("pairs", "device"),
    [(("gpus_per_node=0",), "auto"), ((), "cpu"), (("gres=gpu:1",), "auto")],
)
def test_no_gpu_is_asked_for_twice_or_in_vain(
    pairs: tuple[str, ...], device: str, script: Callable[..., list[str]]
) -> None:
    lines = script(*pairs, device=device)
    assert not any("gpus" in line for line in lines)
    assert ("#SBATCH --gres=gpu:1" in lines) == (pairs == ("gres=gpu:1",))


def test_submitit_knows_all_that_may_be_set(script: Callable[..., list[str]]) -> None:
    numbers = {"time", "cpus_per_task"}
    lines = script(*(f"{name}={3 if name in numbers else 'x'}" for name in cluster.KNOWN))
    wanted = {f"#SBATCH --{name.replace('_', '-')}={3 if name in numbers else 'x'}" for name in cluster.KNOWN}
    assert wanted <= set(lines)


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("partitoin=gpu", "--slurm-set 'partitoin' is unknown. Did you mean 'partition'"),
        ("ntasks_per_node=2", "--slurm-set 'ntasks_per_node' is unknown"),  # would train each run twice
        ("partition", "--slurm-set partition: expected name=value"),
        ("time=12:00:00", "--slurm-set time=12:00:00: expected a whole number of minutes, for instance time=720"),
        ("cpus_per_task=0", "--slurm-set cpus_per_task=0: expected a whole number, 1 or more"),
    ],
)
def test_what_may_not_be_set_is_refused(pair: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is prepared."""
    assert cli.main(["benchmark", "table4", "void", "-o", "void", "--slurm", "--slurm-set", pair]) == 2
    assert words in capsys.readouterr().err
    assert cli.main(["benchmark", "table4", "void", "-o", "void", "--slurm-set", "mem=1G"]) == 2
    assert "--slurm-set has no effect without --slurm" in capsys.readouterr().err


def test_no_sbatch_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setattr(cluster.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"no sbatch on this machine.*login node, or use --jobs"):
        submit([some_run(tmp_path)], tmp_path / "slurm")


def test_no_submitit_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install 'sscl\[slurm\]'"):
        submit([some_run(tmp_path)], tmp_path / "slurm")


def test_slurm_that_does_not_answer_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    failed = subprocess.CompletedProcess([], 1, "", "squeue: error: x\nslurm_load_jobs error: no controller\n")
    monkeypatch.setattr(cluster.shutil, "which", lambda name: name)
    monkeypatch.setattr(cluster.subprocess, "run", lambda *arguments, **options: failed)
    with pytest.raises(UserError, match="does not answer: slurm_load_jobs error: no controller"):
        submit([some_run(tmp_path)], tmp_path / "slurm")


def test_what_is_done_needs_no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert submit([some_run(tmp_path, done=True)], tmp_path / "slurm") == []
