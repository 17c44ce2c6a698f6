"""What every stage leaves behind, and what it clears away."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_set import Tiny

import sscl
from sscl.stages import folder
from sscl.stages.evaluate import evaluate
from sscl.stages.folder import built, commit, write_stage
from sscl.stages.predict import predict

KEYS = {"stage", "config", "inputs", "versions", "commit", "seconds"}


def test_every_stage_tells_the_same(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    predict(trained, [tiny.scan("t1")], tmp_path, threads=1, device="cpu")
    evaluate(tmp_path, tiny.dataset)
    (tiny.dataset / "openings.jsonl").unlink()
    stages = {
        name: json.loads((place / "stage.json").read_text())
        for name, place in {
            "prepare": tiny.dataset,
            "train": trained,
            "predict": tmp_path,
            "evaluate": tmp_path / "scores",
        }.items()
    }
    for name, stage in stages.items():
        assert stage["stage"] == name
        assert stage.keys() >= KEYS
        assert stage["config"]
        assert stage["inputs"]
        assert stage["seconds"] >= 0
        assert stage["versions"].keys() - {"torch"} == {"sscl", "numpy", "python"}
        assert ("torch" in stage["versions"]) == (name in ("train", "predict"))


def test_commit_is_that_of_the_checkout() -> None:
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    name = subprocess.run(["git", "log", "-1", "--format=%H"], cwd=root, capture_output=True, text=True).stdout.strip()
    assert len(name) == 40
    assert commit() == name


def test_commit_of_an_installed_package_is_not_that_of_the_users_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """site-packages lies in the work tree of another project; and where there is no git, nothing fails."""
    commit.cache_clear()
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setattr(sscl, "__file__", str(tmp_path / "venv/lib/python3/site-packages/sscl/__init__.py"))
    assert commit() is None
    commit.cache_clear()
    monkeypatch.setattr(sscl, "__file__", str(tmp_path / "src/sscl/__init__.py"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() is None
    monkeypatch.undo()
    commit.cache_clear()


def test_further_keys_win(tmp_path: Path) -> None:
    write_stage(tmp_path, "x", config={}, inputs={}, began=time.monotonic(), seconds=7, more=[1])
    stage = json.loads((tmp_path / "stage.json").read_text())
    assert stage.keys() == KEYS | {"more", "own_sha256"}
    assert stage["seconds"] == 7


def test_a_process_that_is_ended_leaves_nothing_half_built(tmp_path: Path) -> None:
    def half() -> None:
        with built(tmp_path / "out") as folder:
            (folder / "half").write_text("x")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"):
        half()
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_a_killed_process_left_half_built_is_cleared_away(tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from sscl.stages.folder import built
with built(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("x")
    os.kill(os.getpid(), 9)
"""
    out = tmp_path / "data[1]"
    assert subprocess.run([sys.executable, "-c", script, str(out)]).returncode == -9
    (left,) = tmp_path.iterdir()
    assert (left / "half").exists()
    kept = [f".data[1].{os.getppid()}.tmp", ".other.999999999.tmp", ".data[1].tmp", f".x.data[1].{2**31}.tmp"]
    for name in kept:
        (tmp_path / name).mkdir()
    (tmp_path / f".data[1].{os.getpid()}.tmp").mkdir()  # of a process that had this one's number
    with built(out) as place:
        (place / "whole").write_text("x")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "data[1]"])
    assert [path.name for path in out.iterdir()] == ["whole"]


def test_only_a_process_that_runs_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(error: type[OSError] | None) -> Callable[[int, int], None]:
        def kill(pid: int, number: int) -> None:
            assert number == 0
            if error:
                raise error

        return kill

    for error, expected in ((None, True), (PermissionError, True), (ProcessLookupError, False)):
        monkeypatch.setattr(os, "kill", answer(error))
        assert folder._runs(1) is expected
