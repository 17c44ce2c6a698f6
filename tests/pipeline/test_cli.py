"""The command line: what is printed where, exit codes, messages without tracebacks; and the Python front door."""

import logging
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_set import SETTINGS, Tiny

from sscl import cli
from sscl.cli.console import following, say, training_progress
from sscl.cli.stages import gathered
from sscl.core.config import Config
from sscl.core.interrupt import Interrupted
from sscl.engine.progress import LINES
from sscl.methods import METHODS, method_class
from sscl.stages.cost import Cost
from sscl.stages.model import export

COMMANDS = [
    "check", "prepare", "train", "export", "info", "predict", "evaluate", "report", "figures", "demo", "benchmark",
    "compare", "doctor", "methods",
]  # fmt: skip
Streams = pytest.CaptureFixture[str]


def run(capsys: Streams, *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    code = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


# Help


def test_help_lists_every_command_and_every_command_has_help(capsys: Streams) -> None:
    code, out, err = run(capsys, "--help")
    assert (code, err) == (0, "")
    assert [name for name in COMMANDS if f" {name} " not in out] == []
    for name in COMMANDS:
        code, out, err = run(capsys, name, "--help")
        assert (code, err) == (0, "")
        assert f"Usage: sscl {name}" in out
        assert "--no-" not in out


def test_every_option_is_explained() -> None:
    arguments = [
        (name, argument.name, argument.parameter.help)
        for name in ("check", "prepare", "train", "predict", "evaluate", "demo", "benchmark", "compare", "figures")
        for argument in cli.app[name].assemble_argument_collection(parse_docstring=True)
        if not argument.children  # those of a dataclass are listed themselves
    ]
    assert len(arguments) > 40
    assert [(name, option) for name, option, text in arguments if not text] == []


@pytest.mark.slow
@pytest.mark.parametrize("start", [[sys.executable, "-m", "sscl.cli"], [Path(sys.executable).with_name("sscl")]])
def test_both_ways_to_start(start: list[str], tmp_path: Path) -> None:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*start, *arguments], cwd=tmp_path, capture_output=True, text=True)

    assert call("--version").stdout == "0.1.0\n"
    wrong = call("trian")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "Did you mean" in wrong.stderr


def test_findings_that_differ_in_the_file_only_are_told_once() -> None:
    same = [("error", f"{k}.h5: holds no voxel size.") for k in range(4)]
    other = [("warning", f"{k}.h5: is small.") for k in range(3)]
    assert gathered(same + other) == [
        ["error", "0.h5: holds no voxel size. The same of 3 more; --json lists them."],
        *([grade, message] for grade, message in other),
    ]


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian", "x"], ['Unknown command "trian"', 'Did you mean "train"']),
        (["train", "x", "--methd", "vnet"], ["--methd", "Did you mean --method"]),
        (["predict", "x", "--larges-component"], ["--larges-component", "Did you mean --largest-component"]),
        (
            ["train", "DATASET", "-o", "run", "--method", "mean_techer"],
            ["'mean_techer'", "Did you mean 'mean_teacher'"],
        ),
        (["train", "DATASET", "-o", "run", "--set", "lamb=1"], ["'lamb'", "Did you mean 'lam'"]),
        (["train", "DATASET", "-o", "run", "--set", "lam"], ["--set lam: expected name=value"]),
        (["train", "DATASET", "-o", "run", "--iterations", "many"], ["--iterations", "many"]),
        (["train", "DATASET", "-o", "run", "--precision", "bf61"], ["--precision", "bf16"]),
        (["train", "DATASET"], ["train needs -o RUN"]),
        (["prepare", "SOURCE"], ["prepare needs -o DATASET, the data set to make", " -o DATASET."]),
        (["export", "RUN"], ["export needs -o MODEL, the folder to make", " -o MODEL."]),
        (["train"], ["train needs a data set", "sscl prepare"]),
        (["prepare", "SOURCE", "-o", "out", "--preset", "la_quick"], ["'la_quick'", "Did you mean 'la-quick'"]),
        (["prepare", "void", "-o", "out"], ["void"]),
        (["train", "void", "-o", "run"], ["void does not exist", "sscl prepare"]),
        (["train", "SOURCE", "-o", "run"], ["is not a prepared data set", "sscl prepare"]),
        (["train", "DATASET", "-o", "SOURCE"], ["is not a run folder"]),
        (["export", "DATASET", "-o", "model"], ["is not a run folder"]),
        (["info", "void"], ["void is neither a run nor a model"]),
        (["predict", "void", "scan.nii.gz", "-o", "out"], ["void is neither a run nor a model"]),
        (["predict", "RUN", "scan.nii.gz", "-o", "out"], ["scan.nii.gz"]),
        (["evaluate", "void", "void"], ["void"]),
        (["report"], ["at least one run"]),
    ],
)
def test_a_mistake_is_one_message_and_code_2(
    arguments: list[str], words: list[str], tiny: Tiny, trained: Path, tmp_path: Path, monkeypatch: Any, capsys: Streams
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"DATASET": tiny.dataset, "SOURCE": tiny.source, "RUN": trained}
    code, out, err = run(capsys, *(places.get(argument, argument) for argument in arguments))
    assert (code, out) == (2, "")
    assert [word for word in words if word not in err] == []
    assert "error: " in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (PermissionError(13, "Permission denied", "run"), 2, "error: run: Permission denied."),
        (OSError(28, "No space left on device"), 2, "error: the system: No space left on device."),
        (KeyboardInterrupt(), 130, ""),
        (
            Interrupted(signal.SIGTERM, " after 7"),
            143,
            "stopped by SIGTERM after 7. The same command goes on",
        ),
        (Interrupted(signal.SIGINT, " after 7"), 130, "stopped by SIGINT after 7. The same command goes on"),
    ],
)
def test_what_is_no_mistake_of_the_program_has_no_traceback(
    error: BaseException, code: int, message: str, monkeypatch: Any, capsys: Streams
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr("sscl.stages.model.info", fail)
    found, out, err = run(capsys, "info", "x")
    assert (found, out) == (code, "")
    assert err.startswith(message)
    assert "Traceback" not in err


def test_a_mistake_of_the_program_keeps_its_traceback(monkeypatch: Any, capsys: Streams) -> None:
    monkeypatch.setattr("sscl.stages.model.info", lambda model: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(capsys, "info", "x")


# What is printed


def test_results_go_to_stdout_and_progress_to_stderr(
    tiny: Tiny, tmp_path: Path, capsys: Streams, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sscl")
    options = ["--set", "width=2", "--threads", "1", "--device", "cpu", "--iterations", "4"]
    code, out, err = run(capsys, "train", tiny.dataset, "-o", tmp_path / "run", *options)
    assert code == 0
    assert out == f"{tmp_path / 'run'}: 4 iterations of sscl. Next: sscl predict {tmp_path / 'run'}\n"
    lines = err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["formal 2/4", "formal 3/4", "formal 4/4"]
    assert all(" left, " in line and "student/loss " in line for line in lines)
    assert "\x1b" not in out + err
    assert "\r" not in out + err
    code, out, err = run(capsys, "predict", tmp_path / "run", tiny.scan("t1"), "-o", tmp_path / "out", "--threads", "1")
    assert (code, err) == (0, "1/1 t1\n")
    assert out == f"{tmp_path / 'out'}: 1 masks. Next: sscl evaluate {tmp_path / 'out'} REFERENCE_MASKS\n"
    again = run(capsys, "predict", tmp_path / "run", tiny.scan("t1"), "-o", tmp_path / "out", "--threads", "1")
    assert again == (0, out, "")
    assert [line for line in caplog.messages if "t1" in line] == ["1/1 t1: done before"]


def test_each_command_names_the_next_one_of_the_readme(
    tiny: Tiny, tmp_path: Path, monkeypatch: Any, capsys: Streams
) -> None:
    """From a folder to a report, by the README's own names: what a command calls the next one is its next line."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    way, elsewhere = (
        [line.split("#")[0].strip() for line in block.splitlines() if line.startswith("sscl ")]
        for block in re.findall(r"```sh\n(.*?)```", readme, re.DOTALL)[:2]
    )
    assert [line.split()[1] for line in way] == ["check", "prepare", "train", "predict", "evaluate", "report"]
    way = way[1:]  # prepare begins with the check
    monkeypatch.chdir(tmp_path)
    settings = [f"--set={key}={','.join(map(str, value))}" for key, value in SETTINGS.items()]
    more = {
        "prepare": ["--split", str(tiny.source / "split.json"), *settings],
        "train": ["--iterations", "2", "--threads", "1", "--set", "width=2"],
        "predict": ["--threads", "1"],
    }

    def told(line: str) -> str:
        """What the command names as the next one."""
        words = [str(tiny.source) if word == "SCANS" else word for word in line.split()[1:]]
        kept = words[: words.index("--labelled")] if "--labelled" in words else words
        code, out, err = run(capsys, *kept, *more.get(words[0], []))
        assert code == 0, err
        return out.rpartition("Next: ")[2].strip().replace(f"{tmp_path}/", "")

    assert [told(line) for line in way[:-1]] == way[1:]
    assert told(elsewhere[0]) == elsewhere[1]
    labelled = "--split labelled"
    assert told(f"sscl predict runs/sscl {labelled} -o known") == f"sscl evaluate known dataset {labelled}"


def test_a_path_with_a_space_can_be_copied(capsys: Streams) -> None:
    say(following("predict", Path("my runs/sscl")))
    assert capsys.readouterr().out == "Next: sscl predict 'my runs/sscl'\n"


def test_a_long_run_prints_about_twenty_lines(capsys: Streams) -> None:
    with training_progress("sscl") as on_step:
        for iteration in range(1000):
            on_step({"iteration": iteration, "phase": "formal", "student/loss": 0.5}, 1000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == LINES
    assert lines[-1] == "formal 1000/1000, 0 s left, student/loss 0.500"


def test_methods_are_plain_lines(capsys: Streams) -> None:
    code, out, err = run(capsys, "methods")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == ["method", *METHODS]
    assert "V-Net, supervised: Milletari et al., 3DV" in out


@pytest.mark.parametrize("method", METHODS)
def test_explain_prints_equations_settings_and_defaults(method: str, capsys: Streams) -> None:
    code, out, err = run(capsys, "train", "--method", method, "--explain")
    assert (code, err) == (0, "")
    assert f"{method} ({METHODS[method].paper})" in out
    assert "\nA step: " in out
    config, literature = method_class(method).Config(), method_class(method).literature
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert str(config.optimiser.learning_rate) in lines["optimiser.learning_rate"]
    groups = {name for name in type(config).model_fields if isinstance(getattr(config, name), Config)}
    assert type(config).model_fields.keys() - groups <= lines.keys()
    assert {f"{group}.learning_rate" for group in groups} <= lines.keys()
    assert all(str(value) in lines[path] for path, value in literature.settings.items())
    assert f"{literature.iterations} iterations" in out


def test_doctor_says_what_will_run(capsys: Streams) -> None:
    code, out, err = run(capsys, "doctor")
    assert (code, err) == (0, "")
    assert {"torch", "threads", "memory", "disk"} <= {line.split()[0] for line in out.splitlines()}
    assert "will run" in out


def test_info_shows_the_card(trained: Path, tmp_path: Path, capsys: Streams) -> None:
    code, out, _ = run(capsys, "info", export(trained, tmp_path / "model"))
    assert code == 0
    assert "method: sscl\n" in out
    assert "weights_sha256: " in out


def test_a_dry_run_is_one_line(monkeypatch: Any, capsys: Streams) -> None:
    monkeypatch.setattr("sscl.stages.train.dry_run", lambda *a, **k: Cost(1000, 0.36, 3 * 2**29, 5 * 2**20))
    code, out, err = run(capsys, "train", "x", "--dry-run")
    assert (code, out, err) == (0, "1000 iterations at 0.36 s: 6.0 min; memory 1.5 GiB; disk 5 MiB\n", "")


def test_names_are_not_taken_for_markup(tmp_path: Path, capsys: Streams) -> None:
    _, _, err = run(capsys, "info", tmp_path / "[bold]x[/bold]")
    assert "[bold]x[/bold]" in err


# From Python


def test_the_front_door_shadows_no_package() -> None:
    script = """
import sscl
from sscl.api import evaluate, export, predict, prepare, report, train
from types import FunctionType, ModuleType
assert all(type(f) is FunctionType for f in (evaluate, export, predict, prepare, report, train))
assert type(sscl.report) is ModuleType
import sscl.report.html
assert type(sscl.report) is ModuleType
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_front_door_leads_to_the_stages(tiny: Tiny, tmp_path: Path) -> None:
    import sscl.api

    result = sscl.api.prepare(tiny.source, tiny.dataset, **prepared_with(tiny))
    assert result.skipped
    assert result.split.labelled == ("a1", "a2", "a3")


def prepared_with(tiny: Tiny) -> dict[str, Any]:
    from tiny_set import SETTINGS

    return {"split_file": tiny.source / "split.json", "settings": SETTINGS}
