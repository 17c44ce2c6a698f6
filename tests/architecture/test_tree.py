"""The README's tree, the size of files, and what may not be named in any of them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "sscl"


def tree_lines() -> list[str]:
    """Lines of the fenced block under the README's heading `## The tree`."""
    block = re.search(r"^## The tree\n.*?^```\w*\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert block, "README.md has no fenced block under '## The tree'"
    return [line for line in block[1].splitlines() if line.strip()]


def tree_paths(lines: list[str]) -> list[str]:
    """Paths that the tree names: each line's first word, below the lines that it is indented under.

    Python files that follow it at once are in that folder, or beside that file: `core/  batch.py config.py  the nouns`.
    """
    paths, parents = [], [(-1, "")]
    for line in lines:
        indent, words = len(line) - len(line.lstrip()), line.split()
        while parents[-1][0] >= indent:
            parents.pop()
        above, first = parents[-1][1], words[0]
        parents.append((indent, above + first))
        files = words[1 : next((i for i, word in enumerate(words) if i and not word.endswith(".py")), len(words))]
        folder = above + first if first.endswith("/") else above + first[: first.rfind("/") + 1]
        paths += [above + first, *(folder + file for file in files)]
    return paths


def tracked_files() -> list[Path]:
    """Files that git tracks and that are there. Skips outside a git checkout (an unpacked archive)."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [ROOT / name for name in names.split("\0") if name]
    assert paths, "git tracks nothing yet: git add first"
    return [path for path in paths if path.is_file()]


def test_tree_paths_reads_indentation_and_following_files() -> None:
    lines = [
        "Makefile   demo",
        "src/sscl/",
        "  core/  batch.py config.py  the nouns",
        "  cli.py api.py  arguments",
        "docs/<name>.md",
    ]
    assert tree_paths(lines) == [
        "Makefile",
        "src/sscl/",
        "src/sscl/core/",
        "src/sscl/core/batch.py",
        "src/sscl/core/config.py",
        "src/sscl/cli.py",
        "src/sscl/api.py",
        "docs/<name>.md",
    ]


def test_readme_tree_names_what_exists() -> None:
    patterns = [re.sub("<[^>]*>", "*", path).rstrip("/") for path in tree_paths(tree_lines())]
    assert [pattern for pattern in patterns if not list(ROOT.glob(pattern))] == []


def test_readme_tree_leaves_out_no_folder() -> None:
    tree = tree_paths(tree_lines())
    top_level = {path.relative_to(ROOT).parts[0] for path in tracked_files() if path.parent != ROOT}
    named = {path.split("/")[0] for path in tree}
    assert top_level - named == set()
    packages = {folder.name for folder in SOURCE.iterdir() if (folder / "__init__.py").exists()}
    assert {f"src/sscl/{name}/" for name in packages} - set(tree) == set()


def test_source_files_are_short() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in SOURCE.rglob("*.py")}
    assert {name: lines for name, lines in lengths.items() if lines >= 400} == {}


def test_the_example_in_contributing_is_the_file() -> None:
    whole, line = re.findall(r"^```python\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S)
    assert whole == (SOURCE / "methods" / "dtc.py").read_text()
    assert line.strip().removesuffix("),") in (SOURCE / "methods" / "__init__.py").read_text()


def test_no_file_names_a_package_index_or_a_folder_of_one_machine() -> None:
    """A checkout installs from wherever its user's pip is told to. Written in halves, because this file is read too."""
    forbidden = [
        "pypi" + ".org",
        "python" + "hosted.org",
        "pytorch" + ".org/whl",
        "/opt/" + "pypi",
        "/opt/" + "wheels",
        "/work" + "/",
    ]
    forbidden += ["--index" + "-url", "--extra-index" + "-url", "--find" + "-links"]
    found = [
        (str(path.relative_to(ROOT)), name)
        for path in tracked_files()
        for name in forbidden
        if name.encode() in path.read_bytes()
    ]
    assert found == []
