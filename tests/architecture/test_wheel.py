"""What a user installs is whole, and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import sscl

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT))
    (path,) = folder.glob(f"sscl-{sscl.__version__}-py3-none-any.whl")
    return path


def run(*arguments: str, cwd: Path = ROOT) -> str:
    result = subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_wheel_holds_the_package_and_its_licence_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"sscl", f"sscl-{sscl.__version__}.dist-info"}
    source = ROOT / "src"
    files = [path for path in (source / "sscl").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {name for name in names if name.startswith("sscl/")} == {
        path.relative_to(source).as_posix() for path in files
    }
    assert "sscl/py.typed" in names
    assert f"sscl-{sscl.__version__}.dist-info/licenses/LICENSE" in names


@pytest.mark.slow
def test_wheel_installs_and_imports_from_elsewhere(wheel: Path, tmp_path: Path) -> None:
    run("-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", str(tmp_path / "site"), str(wheel))
    # -P and the path in front: neither this checkout nor its editable install may answer.
    code = "import sys; sys.path.insert(0, 'site'); import sscl, sscl.cli; print(sscl.__file__)"
    file = run("-P", "-c", code, cwd=tmp_path).strip()
    assert (tmp_path / file).is_relative_to(tmp_path / "site")
