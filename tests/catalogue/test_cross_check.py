"""The same through another program's folders, made by what SSCL_BAD_INPUTS names, which also tells what it expects."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from harness import AS_A_USER, FOLDERS, Expected, digest, run, unprivileged, wrong_with

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "SSCL_BAD_INPUTS" not in os.environ:
        pytest.skip("SSCL_BAD_INPUTS is not set")
    out = tmp_path_factory.mktemp("others")
    command = [sys.executable, os.environ["SSCL_BAD_INPUTS"], str(out)]
    result = subprocess.run(command, capture_output=True, text=True)
    if "ModuleNotFoundError" in result.stderr:
        pytest.skip(f"the generator needs what is not installed: {result.stderr.splitlines()[-1]}")
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture(scope="session")
def facts(made: Path) -> dict[str, dict[str, Any]]:
    return {one["id"]: one for one in json.loads((made / "expectations.json").read_text())}


@pytest.fixture(scope="session")
def their_digest(made: Path) -> str:
    assert run(made, "prepare", made / "valid", "-o", made / "prepared").code == 0
    return digest(made / "prepared")


def test_it_knows_the_same_entries(facts: dict[str, dict[str, Any]]) -> None:
    assert set(facts) == set(FOLDERS) | {"X01", "X02", "X04", "X05"}


@pytest.mark.parametrize("name", FOLDERS)
def test_an_entry(tmp_path: Path, name: str, made: Path, facts: dict[str, dict[str, Any]], their_digest: str) -> None:
    one = facts[name]
    source, files = made / one["folder"], tuple(one["files"])
    must = {"error": "refuse", "warn": "warn", "ok": "same" if one["same_as_valid"] else "work"}[one["verdict"]]
    if name == "V12" and equal_scans(source / files[0], made / "valid" / files[0]):
        must = "same"  # it writes its NaN into a copy of the array, so that the scan is sound; ours really has them
    expected = Expected(must, files, tuple(one["words"]))  # type: ignore[arg-type]
    if name not in AS_A_USER:
        shutil.copytree(source, tmp_path / "source", symlinks=True)
        assert wrong_with(tmp_path / "source", expected, their_digest) == []
        return
    with unprivileged() as folder:
        user = os.geteuid()
        os.seteuid(os.getuid())  # root copies what nobody else can read
        shutil.copytree(source, folder / "source", symlinks=True)
        os.seteuid(user)
        assert wrong_with(folder / "source", expected, their_digest) == []


def equal_scans(one: Path, other: Path) -> bool:
    return np.array_equal(*(np.asarray(nibabel.load(path).dataobj, np.float32) for path in (one, other)))
