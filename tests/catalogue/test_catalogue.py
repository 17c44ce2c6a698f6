"""Every entry of the catalogue through `check` and `prepare`: refused, warned of, or worked with as it must be.

`predict`, `evaluate`, `train` and hostile files: test_later_stages.py. What is promised: docs/reliability.md.
"""

import gzip
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from bad_inputs import CATALOGUE, IMAGE, make, sound
from harness import AS_A_USER, FOLDERS, SECONDS, Expected, digest, run, unprivileged, wrong_with


@pytest.fixture(scope="session")
def sound_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "set"
    sound(folder)
    return folder


@pytest.fixture(scope="session")
def sound_digest(sound_set: Path) -> str:
    outcome = run(sound_set, "check", sound_set)
    assert (outcome.code, "12 cases, 0 errors, 0 warnings" in outcome.text) == (0, True), outcome.text
    assert run(sound_set, "prepare", sound_set, "-o", sound_set.parent / "prepared").code == 0
    return digest(sound_set.parent / "prepared")


def test_the_catalogue_is_whole() -> None:
    """As many of each kind as the survey of silent failures lists that it is made from."""
    assert Counter(name[0] for name in CATALOGUE) == {
        "D": 9,
        "F": 12,
        "G": 19,
        "L": 10,
        "N": 14,
        "S": 6,
        "V": 7,
        "X": 5,
    }
    assert Counter(entry.must for entry in CATALOGUE.values()) == {"refuse": 52, "warn": 10, "work": 9, "same": 11}


@pytest.mark.parametrize("name", FOLDERS)
def test_an_entry(tmp_path: Path, name: str, sound_digest: str) -> None:
    entry = CATALOGUE[name]
    expected = Expected(entry.must, entry.files, entry.words)
    if name not in AS_A_USER:
        assert wrong_with(make(entry, tmp_path / name), expected, sound_digest) == []
        return
    with unprivileged() as folder:
        made = make(entry, folder / name)
        assert wrong_with(made, expected, sound_digest) == []
        made.chmod(0o755)


MEASURED = """
import resource, subprocess, sys
result = subprocess.run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(result.returncode)
"""


@pytest.mark.slow  # a process that imports torch
@pytest.mark.parametrize("constant", [True, False])
def test_a_refusal_takes_little_time_and_memory(tmp_path: Path, constant: bool) -> None:
    """The whole program on a small file that unpacks to 256 MB: of one value, and so that only its mask tells."""
    root = make(CATALOGUE["F10"], tmp_path / "set")
    if not constant:
        raw = bytearray(gzip.decompress((root / IMAGE).read_bytes()))
        raw[352::4096] = b"\1" * len(raw[352::4096])
        (root / IMAGE).write_bytes(gzip.compress(raw, 6))
    command = [sys.executable, "-m", "sscl.cli", "prepare", str(root), "-o", str(tmp_path / "out")]
    began = time.monotonic()
    result = subprocess.run([sys.executable, "-c", MEASURED, *command], capture_output=True, text=True, timeout=100)
    assert time.monotonic() - began < SECONDS
    assert (result.returncode, "Traceback" in result.stderr) == (2, False), result.stderr
    assert result.stderr.count("error:") == 1
    assert ("scan3" in result.stderr, "shape" in result.stderr) == (True, True)
    assert int(result.stdout.split()[-1]) < 1_000_000  # kB
    assert not (tmp_path / "out").exists()
