"""Nothing in the program can run code that a file holds, or unpack an archive."""

import ast
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).parents[2] / "src").rglob("*.py"))
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy", "code"}
ARCHIVES = {"zipfile", "tarfile"}
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.startfile", "shutil.unpack_archive",
    "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "torch.jit.load", "torch.hub.load",
    "torch.package.PackageImporter",
}  # fmt: skip


def forbidden(source: str) -> list[str]:
    """What is not allowed in a module, each with its line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found += [(node.lineno, name.name) for name in names if name.name.split(".")[0] in MODULES | ARCHIVES]
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in MODULES | ARCHIVES:
                found.append((node.lineno, module))
            case ast.ImportFrom(module=str(module), names=names):  # by a name of its own no call would be seen
                whole = [f"{module}.{name.name}" for name in names]
                found += [(node.lineno, name) for name in whole if name in CALLS | {"torch.load"}]
            case ast.Call(func=func, keywords=keywords):
                called = ast.unparse(func)
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in keywords}
                unsafe = (
                    called in CALLS
                    or (called == "torch.load" and given.get("weights_only") != "True")
                    or given.get("allow_pickle", "False") != "False"
                    or given.get("shell", "False") != "False"
                )
                found += [(node.lineno, called)] if unsafe else []
    return [f"line {line}: {what}" for line, what in found]


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from dill import loads", "import zipfile as z", "import tarfile", "eval('1')", "exec(text)",
        "yaml.load(text, Loader=yaml.Loader)", "yaml.unsafe_load(text)", "torch.load(path)", "os.system('ls')",
        "torch.load(path, weights_only=False)", "np.load(path, allow_pickle=True)", "shutil.unpack_archive(path)",
        "subprocess.run('ls', shell=True)", "from torch import load", "from yaml import load as l",
        "from os import system",
    ],
)  # fmt: skip
def test_what_is_forbidden_is_found(source: str) -> None:
    assert len(forbidden(source)) == 1


@pytest.mark.parametrize("source", ["yaml.safe_load(t)", "torch.load(p, weights_only=True)", "module.eval()"])
def test_what_is_allowed_is_not(source: str) -> None:
    assert forbidden(source) == []


def test_no_module_runs_what_a_file_holds() -> None:
    assert len(SOURCES) > 100
    assert {path.name: wrong for path in SOURCES if (wrong := forbidden(path.read_text(encoding="utf-8")))} == {}
