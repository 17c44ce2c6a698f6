"""Which modules load which."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def python(code: str) -> str:
    """Output of a fresh interpreter: this one has long imported torch."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("module", ["sscl", "sscl.volumes.files", "sscl.metrics.table", "sscl.report.html", "sscl.cli"])
def test_module_does_not_load_torch(module: str) -> None:
    assert python(f"import sys, {module}; print('torch' in sys.modules)") == "False\n"


def test_help_is_shown_without_loading_torch() -> None:
    code = """
import sys
sys.argv = ["sscl", "--help"]
from sscl.cli import main
try:
    main()
except SystemExit as end:
    assert end.code in (0, None), end.code
print("torch" in sys.modules)
"""
    *help_lines, torch_loaded = python(code).splitlines()
    assert "prepare" in "\n".join(help_lines)
    assert torch_loaded == "False"


def test_import_contracts_hold() -> None:
    result = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
