"""`sscl doctor` against facts from elsewhere."""

import shutil
import warnings
from collections import namedtuple
from pathlib import Path

import numpy
import pytest
import torch

from sscl.stages import doctor as stage
from sscl.stages.device import pick_precision
from sscl.stages.doctor import Row, doctor

Usage = namedtuple("Usage", "total used free")


def by_topic(rows: list[Row]) -> dict[str, Row]:
    return {row.topic: row for row in rows}


def test_rows_tell_what_is_installed(tmp_path: Path) -> None:
    rows = by_topic(doctor(tmp_path))
    assert torch.__version__ in rows["torch"].value
    assert f"numpy {numpy.__version__}" in rows["packages"].value
    assert rows["packages"].advice == ""
    assert str(tmp_path) in rows["disk"].value
    assert rows["threads"].value.startswith("1 of ")


def test_cuda_build_without_a_gpu_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gpu() -> bool:
        warnings.warn("The NVIDIA driver on your system is too old.\nMore.", stacklevel=1)
        return False

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", no_gpu)
    row = by_topic(doctor())["torch"]
    assert "CUDA 13.0" in row.value
    assert row.advice.endswith("finds none that it can use. The NVIDIA driver on your system is too old.")


def test_driver_with_a_cpu_build_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert "install a CUDA build" in by_topic(doctor())["torch"].advice


@pytest.mark.parametrize(("computes_bf16", "precision"), [(False, "float32"), (True, "bf16")])
def test_gpu_is_taken_with_bf16_only_where_it_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, computes_bf16: bool, precision: str
) -> None:
    card = namedtuple("Card", "name total_memory")("Card", 16 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: computes_bf16)
    rows = by_topic(doctor())
    assert rows["cuda:0"] == Row("cuda:0", "Card, 16.0 GiB")
    assert rows["will run"].value == f"on cuda in {precision}"


def test_cpu_runs_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert by_topic(doctor())["will run"].value == "on cpu in float32"


def test_docker_default_shared_memory_is_too_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(2**26, 0, 2**26))
    (row,) = stage._shared_memory(tmp_path)
    assert "--shm-size" in row.advice


def test_missing_package_gets_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_requirements", lambda extra=None: ["numpy", "no_such_package"])
    assert by_topic(list(stage._packages()))["packages"].advice == "Missing: pip install no_such_package"


def test_bf16_on_a_cpu_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", logger="sscl"):
        assert pick_precision("float32", torch.device("cpu")) == "float32"
        assert not caplog.records
        assert pick_precision("bf16", torch.device("cpu")) == "bf16"
    assert "not finite" in caplog.text
