"""Every artefact, damaged in every way: refused by name or made again. One writer a folder; nothing outside of it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
import pytest
from tiny_set import TEST, assert_equal_weights, ball, make_source, prepared, save_nifti

from sscl import cli
from sscl.core.errors import UserError
from sscl.core.files import read_sealed, write_sealed
from sscl.data.store import CaseStore
from sscl.engine import checkpoint
from sscl.engine.run import only_writer
from sscl.stages.dataset import open_dataset
from sscl.stages.evaluate import evaluate
from sscl.stages.figures import figures
from sscl.stages.folder import built
from sscl.stages.model import export
from sscl.stages.predict import predict
from sscl.stages.prepare import prepare
from sscl.stages.record import read_result, record
from sscl.stages.report import report
from sscl.stages.train import train
from sscl.studies import job as study
from sscl.studies.compare import compare
from sscl.volumes.files import read_label

CPU = {"threads": 1, "device": "cpu"}
VNET = ("--method", "vnet", "--iterations", "2", "--set", "width=2", "--threads", "1", "--device", "cpu")


def make_all(root: Path, seed: int, share: float) -> Path:
    """One of each artefact. Two with other seeds and shares differ in every file."""
    source = make_source(root / "source")
    if seed:  # other scans and another split, of the same names
        for kind in ("imagesTr/{}_0000.nii.gz", "labelsTr/{}.nii.gz"):
            for one, two in (("a1", "a2"), ("b2", "b3"), ("t1", "t2")):
                exchange(source / kind.format(one), source / kind.format(two))
        lists = json.loads((source / "split.json").read_text())
        (source / "split.json").write_text(json.dumps(lists | {"unlabelled": lists["unlabelled"][::-1]}))
    (root / "source/dataset.json").write_text((root / "source/dataset.json").read_text().replace("tiny", f"tiny{seed}"))
    prepared(source, root / "data", foreground_share=share)
    assert cli.main(["check", str(source), "--split", str(source / "split.json"), "-o", str(root / "check.json")]) == 0
    train(root / "data", root / "run", method="vnet", settings={"width": 2}, iterations=2, seed=seed, **CPU)
    predict(root / "run", [root / "data"], root / "run/predictions", probabilities=True, **CPU)
    evaluate(root / "run/predictions", root / "data", tolerance_mm=2 + seed)
    record(root / "run", root / "run/predictions", root / "record")
    export(root / "run", root / "model")
    return root


def exchange(one: Path, two: Path) -> None:
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return make_all(tmp_path_factory.mktemp("sound"), 0, 0.25)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return make_all(tmp_path_factory.mktemp("other"), 1, 0.5)


@pytest.fixture
def root(sound: Path, tmp_path: Path) -> Path:
    """A copy; the run's recipe still names the data set that it was trained on."""
    return shutil.copytree(sound, tmp_path / "root")


@dataclass(frozen=True)
class Artefact:
    """A file, a command that reads it, and a change of one byte after which it can still be parsed (empty: the tenth
    byte from its end). `but`: damage to another outcome than `refused` by the name of the file: by that of its `folder`
    (where the file is gone, or contradicts the one that is named), `made again`, or `works`.
    """

    file: str
    command: tuple[str, ...]
    change: tuple[bytes, bytes] = (b"", b"")
    but: Mapping[str, str] = field(default_factory=dict)


TRAIN = ("train", "data", "-o", "new", *VNET)
AGAIN = ("train", "data", "-o", "run", *VNET)
PREPARE = ("prepare", "source", "-o", "data", "--split", "source/split.json")
PREDICT = ("predict", "run", "data", "-o", "run/predictions", "--probabilities", "--threads", "1", "--device", "cpu")
EVALUATE = ("evaluate", "run/predictions", "data")
REPORT = ("report", "run", "-o", "report.html")
COMPARE = ("compare", "run")
CHECK = ("check", "source", "--split", "source/split.json", "-o", "check.json")
ALWAYS = dict.fromkeys(("changed", "cut", "missing", "swapped"), "made again")

ARTEFACTS = [
    Artefact("data/dataset.json", TRAIN, (b'"MRI"', b'"MRJ"')),
    Artefact("data/dataset.json", EVALUATE, (b'"MRI"', b'"MRJ"'), but={"missing": "folder"}),
    Artefact("data/split.json", TRAIN, (b'"b3"', b'"b7"')),
    Artefact("data/split.json", EVALUATE, (b'"b3"', b'"b7"')),
    Artefact("data/plan.json", TRAIN, (b"0.25", b"0.35")),
    Artefact("data/stage.json", TRAIN, (b'"preset": null', b'"preset": 0   '), but={"swapped": "folder"}),
    Artefact("data/store/sha256.json", TRAIN, (b"a1.image", b"a9.image")),
    Artefact("data/store/a1.image.b2nd", TRAIN),
    Artefact("data/store/a1.label.b2nd", TRAIN),
    Artefact("data/store/b2.image.b2nd", ("prepare", "data")),
    Artefact("run/recipe.yaml", AGAIN, (b"seed: 0", b"seed: 7"), but={"changed": "folder", "swapped": "folder"}),
    Artefact("run/recipe.yaml", ("predict", "run", "data", "-o", "new"), (b"- 8\n", b"- 4\n")),
    Artefact("run/checkpoints/00000002.pt", AGAIN, but=ALWAYS),
    Artefact("run/checkpoints/00000002.json", AGAIN, (b'": "', b'": "0'), but=ALWAYS),
    Artefact("run/metrics.jsonl", REPORT, (b"0.01", b"0.02")),
    Artefact("run/stage.json", REPORT, (b'"float32"', b'"float33"'), but={"missing": "works", "swapped": "folder"}),
    Artefact("model/model.json", ("info", "model"), (b'"average"', b'"avarage"')),
    Artefact("model/weights.safetensors", ("info", "model")),
    Artefact("run/predictions/t1.nii.gz", EVALUATE),
    Artefact("run/predictions/t1.nii.gz", PREDICT, but=ALWAYS),
    Artefact("run/predictions/t1.nii.gz", REPORT, but={"missing": "works"}),
    Artefact("run/predictions/t1.npz", PREDICT, but=ALWAYS),
    Artefact("run/predictions/stage.json", EVALUATE, (b'"last"', b'"lost"'), but={"missing": "works"}),
    Artefact("run/predictions/stage.json", PREDICT, (b'"last"', b'"lost"'), {"missing": "folder", "swapped": "folder"}),
    Artefact("run/predictions/scores/scores.csv", REPORT, (b"ok", b"ik")),
    Artefact("run/predictions/scores/scores.csv", COMPARE, (b"t2", b"t3"), but={"missing": "folder"}),
    Artefact("run/predictions/scores/summary.csv", REPORT, (b"dice", b"dide")),
    Artefact("run/predictions/scores/definitions.txt", REPORT),
    Artefact("run/predictions/scores/stage.json", REPORT, (b'"last"', b'"best"'), but={"swapped": "folder"}),
    Artefact("record/recipe.yaml", ("compare", "record"), (b"seed: 0", b"seed: 7"), but={"missing": "folder"}),
    Artefact("record/scores.csv", ("compare", "record"), (b"t2", b"t3"), but={"missing": "folder"}),
    Artefact("record/record.json", ("compare", "record"), (b'"last"', b'"best"'), but={"swapped": "folder"}),
    Artefact("check.json", CHECK, (b'"lowest": 2', b'"lowest": 3'), but=ALWAYS | {"cut": "refused"}),
]


def damage(path: Path, how: str, change: tuple[bytes, bytes], instead: Path) -> None:
    content = path.read_bytes()
    if how == "changed":
        old, new = change
        changed = content.replace(old, new, 1) if old else content[:-10] + bytes([content[-10] ^ 1]) + content[-9:]
        assert changed != content
        path.write_bytes(changed)
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "missing":
        path.unlink()
    else:
        assert instead.read_bytes() != content
        shutil.copy(instead, path)


def placed(root: Path, command: tuple[str, ...]) -> list[str]:
    """What names something in `root`, there or to be made, becomes its path; the command itself stays."""
    names = {"source", "data", "run", "model", "record", "new", "check.json", "report.html"}
    return [command[0], *(str(root / part) if part.split("/")[0] in names else part for part in command[1:])]


@pytest.mark.parametrize("how", ["changed", "cut", "missing", "swapped"])
@pytest.mark.parametrize("artefact", ARTEFACTS, ids=lambda one: f"{one.file}:{one.command[0]}")
def test_damage(
    artefact: Artefact, how: str, sound: Path, other: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = root / artefact.file
    damage(path, how, artefact.change, other / artefact.file)
    outcome = artefact.but.get(how, "refused")
    if artefact.command == ("prepare", "data"):
        config = json.loads((sound / "data/stage.json").read_text())["config"]
        with pytest.raises(UserError, match=path.name.split(".")[0]):
            prepare(
                sound / "source", root / "data", split_file=sound / "source/split.json", settings=config["settings"]
            )
        return
    code = cli.main(placed(root, artefact.command))
    said = "".join(capsys.readouterr().err.split())
    assert "Traceback" not in said
    if outcome in ("refused", "folder"):
        assert code == 2, said
        assert (path.name if outcome == "refused" else str(root / artefact.file.split("/")[0])) in said
    else:
        assert code == 0, said
    if outcome == "made again":
        if path.parent.name == "checkpoints":
            assert_equal_weights(sound / "run", root / "run")
        elif path.suffix == ".json":
            now, before = read_sealed(path), read_sealed(sound / artefact.file)
            assert len(now.pop("known")) == len(before.pop("known")) == 8  # by path and content
            assert now | {"source": before["source"]} == before
        else:
            assert read(path).tolist() == read(sound / artefact.file).tolist()


def read(path: Path) -> np.ndarray:
    return np.load(path)["probabilities"] if path.suffix == ".npz" else read_label(path).array


# Files that are whole, and of another time than what they belong to


def test_masks_that_were_predicted_again_after_scoring(root: Path, other: Path) -> None:
    """From another scan of the same name: masks and predict's notes agree, the scores are of the masks before."""
    scan = root / "source/imagesTr/t1_0000.nii.gz"
    save_nifti(scan, ball((24, 24, 20), 99)[0])
    mask = root / "run/predictions/t1.nii.gz"
    predict(root / "run", [scan, root / "source/imagesTr/t2_0000.nii.gz"], mask.parent, **CPU)
    shutil.copy(other / "run/predictions/t1.nii.gz", mask)
    stage = read_sealed(mask.parent / "stage.json")
    stage["cases"]["t1"] = checkpoint.sha256(mask)
    write_sealed(mask.parent / "stage.json", stage)
    for reader in (
        lambda: report([root / "run"], root / "report.html"),
        lambda: read_result(root / "run"),
        lambda: record(root / "run", mask.parent, root / "new"),
    ):
        with pytest.raises(UserError, match=r"t1\.nii\.gz: is not the mask that was scored.*evaluate"):
            reader()
    assert not (root / "new").exists()


def test_a_reference_that_was_changed_after_scoring(root: Path) -> None:
    truth = root / "truth"
    shutil.copytree(root / "source/labelsTr", truth, ignore=lambda folder, names: [n for n in names if n[0] != "t"])
    evaluate(root / "run/predictions", truth)
    read_result(root / "run")
    shutil.copy(truth / "t2.nii.gz", truth / "t1.nii.gz")
    with pytest.raises(UserError, match=r"truth/t1\.nii\.gz: was changed since masks were scored"):
        read_result(root / "run")


def test_runs_that_were_scored_against_other_masks_of_the_same_names(root: Path) -> None:
    """A copy in another format is no other mask. Earlier records do not tell theirs."""
    run, other, truth = root / "run", shutil.copytree(root / "run", root / "other"), root / "truth"
    truth.mkdir()
    for case in TEST:
        nibabel.save(nibabel.load(root / f"source/labelsTr/{case}.nii.gz"), truth / f"{case}.nii")
    evaluate(other / "predictions", truth)
    report([run, other], root / "report.html")
    shutil.copy(truth / "t2.nii", truth / "t1.nii")
    evaluate(other / "predictions", truth)
    kept = record(other, other / "predictions", root / "kept")
    for reader in (
        lambda: compare([run, other]),
        lambda: compare([root / "record", kept]),
        lambda: report([run, other], root / "report.html"),
        lambda: figures([run, other], root / "figures"),
    ):
        with pytest.raises(UserError, match=r"t1: \w+ and \w+ were scored against different reference masks"):
            reader()
    facts = read_sealed(kept / "record.json")
    del facts["scored_against"]
    write_sealed(kept / "record.json", facts)
    with pytest.raises(UserError, match="a second run of seed 0"):
        compare([root / "record", kept])


def test_masks_of_a_run_that_was_trained_again(root: Path, other: Path) -> None:
    """Here by taking the run of another seed, with its checkpoints, under masks that were there."""
    for name in ("recipe.yaml", "metrics.jsonl", "stage.json"):
        shutil.copy(other / "run" / name, root / "run" / name)
    shutil.rmtree(root / "run/checkpoints")
    shutil.copytree(other / "run/checkpoints", root / "run/checkpoints")
    with pytest.raises(UserError, match=r"predictions: its masks are by other weights than .*trained further"):
        report([root / "run"], root / "report.html")
    with pytest.raises(UserError, match="predictions of another model"):
        predict(root / "run", [root / "data"], root / "run/predictions", **CPU)


def test_a_checkpoint_of_another_run_with_its_manifest(root: Path, other: Path) -> None:
    """The networks are alike: nothing else would tell."""
    for name in ("00000002.pt", "00000002.json"):
        shutil.copy(other / "run/checkpoints" / name, root / "run/checkpoints" / name)
    for command in (AGAIN, ("predict", "run", "data", "-o", "new"), ("export", "run", "-o", "new")):
        assert cli.main(placed(root, command)) == 2
    with pytest.raises(UserError, match=r"iteration 2 belongs to another run, or recipe\.yaml was changed"):
        export(root / "run", root / "new")
    assert not (root / "new").exists()


def test_a_finished_run_without_checkpoints_is_not_finished(root: Path) -> None:
    """Until it is trained again its stage.json would be that of a run that is gone."""
    shutil.rmtree(root / "run/checkpoints")

    def stop(*_: object) -> None:
        assert not (root / "run/stage.json").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(root / "data", root / "run", method="vnet", settings={"width": 2}, iterations=2, on_step=stop, **CPU)


@pytest.mark.parametrize("left", [(), ("scores.csv",), ("scores.csv", "summary.csv", "definitions.txt")])
def test_a_benchmark_scores_again_what_was_half_scored(left: tuple[str, ...], root: Path) -> None:
    """Killed while `evaluate` wrote: the same command again makes the scores whole, and only then."""
    scores = root / "run/predictions/scores"
    sound = (scores / "scores.csv").read_text()
    for path in scores.glob("[!.]*"):
        if path.name not in left:
            path.unlink()
    job = study.Job(
        name="x", dataset=str(root / "data"), run=str(root / "run"), record=str(root / "again"), method="vnet",
        settings={"width": 2}, iterations=2, **CPU,
    )  # fmt: skip
    openings = root / "data/openings.jsonl"
    before = len(openings.read_text().splitlines())
    study.execute(job)
    study.execute(job)
    assert (root / "again/scores.csv").read_text() == sound
    assert len(openings.read_text().splitlines()) == before + 1


def test_a_half_written_record_is_none(root: Path) -> None:
    (root / "record/record.json").unlink()
    with pytest.raises(UserError, match=r"record\.json"):
        read_result(root / "record")


@pytest.mark.parametrize("name", ["images/t1_0000.nii.gz", "masks/t1.nii.gz"])
def test_a_cropped_scan_that_is_another_one(name: str, root: Path) -> None:
    """As `prepare` with a -literature preset leaves them: `predict` and `evaluate` read them from the data set."""
    data = root / "data"
    facts, stage = json.loads((data / "dataset.json").read_text()), read_sealed(data / "stage.json")
    facts["source"] = "cropped"
    for case, files in facts["cases"].items():
        for kind, old, new in (
            ("images", files["image"][0], f"images/{case}_0000.nii.gz"),
            ("masks", files["label"], f"masks/{case}.nii.gz"),
        ):
            (data / "cropped" / kind).mkdir(parents=True, exist_ok=True)
            shutil.copy(root / "source" / old, data / "cropped" / new)
            stage["files"][f"cropped/{new}"] = checkpoint.sha256(data / "cropped" / new)
        facts["cases"][case] = {"image": [f"images/{case}_0000.nii.gz"], "label": f"masks/{case}.nii.gz"}
    (data / "dataset.json").write_text(json.dumps(facts))
    stage["files"]["dataset.json"] = checkpoint.sha256(data / "dataset.json")
    write_sealed(data / "stage.json", stage)
    assert open_dataset(data).image_paths("t1") == [data / "cropped/images/t1_0000.nii.gz"]
    evaluate(root / "run/predictions", data)
    shutil.copy(data / "cropped" / name.replace("t1", "t2"), data / "cropped" / name)
    with pytest.raises(UserError, match=r"t1[_0]*\.nii\.gz: is not as it was written"):
        (open_dataset(data).image_paths("t1"), evaluate(root / "run/predictions", data))


def test_files_of_earlier_versions_are_read(root: Path) -> None:
    """Without digests of their own and of the files beside them."""
    for path in [*root.glob("*/stage.json"), root / "record/record.json", root / "model/model.json"]:
        content = read_sealed(path)
        path.write_text(json.dumps({key: value for key, value in content.items() if key != "files"}))
    open_dataset(root / "data")
    report([root / "run"], root / "report.html")
    assert read_result(root / "record").rows
    assert cli.main(["info", str(root / "model")]) == 0


# Two writers


@pytest.mark.parametrize(
    ("folder", "command"), [("run", AGAIN), ("run/predictions", PREDICT), ("run/predictions/scores", EVALUATE)]
)
def test_a_second_writer_is_refused(
    folder: str, command: tuple[str, ...], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in (root / folder).rglob("*") if path.is_file()}

    before = contents()
    with only_writer(root / folder):
        assert cli.main(placed(root, command)) == 2
    assert "in use by another process" in " ".join(capsys.readouterr().err.split())
    assert contents() == before
    assert cli.main(placed(root, command)) == 0


def test_two_that_prepare_one_folder(tmp_path: Path) -> None:
    """The first to be done has it, and the other one says so."""

    def make(late: Path) -> None:
        (late / "x").write_text("late")
        (tmp_path / "out").mkdir()
        (tmp_path / "out/x").write_text("first")

    with pytest.raises(UserError, match="another process has made it"), built(tmp_path / "out") as late:
        make(late)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out/x").read_text() == "first"


def holder(folder: Path) -> "subprocess.Popen[str]":
    """A process that holds the lock of a folder."""
    script = """
import sys, time
from pathlib import Path
from sscl.engine.run import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_lock_of_a_killed_process_needs_no_cleaning(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with holder(folder) as process:
        with pytest.raises(UserError, match="in use"), only_writer(folder):
            pass
        moved = folder.rename(tmp_path / "moved")
        with pytest.raises(UserError, match="in use"), only_writer(moved):
            pass
        process.kill()
    assert (moved / ".lock").exists()
    with only_writer(moved):
        pass


@pytest.mark.parametrize("how", ["moved", "moved, and another one in its place", "lock removed"])
def test_a_run_that_is_moved_while_it_trains(how: str, root: Path) -> None:
    """Nothing is written to where it was: that may be another run by then."""
    run, moved = root / "new", root / "moved"

    def move(*_: object) -> None:
        if how == "lock removed":
            (run / ".lock").unlink(missing_ok=True)
        elif not moved.exists():
            run.rename(moved)
            if how != "moved":
                run.mkdir()

    options = {"method": "vnet", "settings": {"width": 2}, "iterations": 2, **CPU}
    with pytest.raises(UserError, match=r"new was moved, or its \.lock removed"):
        train(root / "data", run, on_step=move, **options)
    assert not (run / "checkpoints").exists()
    train(root / "data", run if how == "lock removed" else moved, **options)


def test_a_disk_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    with only_writer(tmp_path):
        pass
    assert "has no locks" in caplog.text


# Nothing outside


def test_names_of_cases_lead_nowhere(root: Path, tmp_path: Path) -> None:
    """In the split of a data set, from which `predict` makes names of files; with notes that fit."""
    lists = json.loads((root / "data/split.json").read_text())
    (root / "data/split.json").write_text(json.dumps(lists | {"test": ["../../evil"]}))
    stage = read_sealed(root / "data/stage.json")
    stage["files"]["split.json"] = checkpoint.sha256(root / "data/split.json")
    write_sealed(root / "data/stage.json", stage)
    with pytest.raises(UserError, match=r"split\.json.*'\.\./\.\./evil'"):
        predict(root / "run", [root / "data"], root / "new", **CPU)
    assert not list(tmp_path.rglob("*evil*"))


def test_a_store_reads_its_own_files_only(root: Path) -> None:
    shutil.copy(root / "data/store/a1.image.b2nd", root / "a1.image.b2nd")
    for case in ("../../a1", "../a1", "zz"):
        with pytest.raises(UserError, match="missing or damaged"):
            CaseStore(root / "data/store").image(case)
    shutil.copy(root / "data/store/a1.image.b2nd", root / "data/store/a9.image.b2nd")
    with pytest.raises(UserError, match="digest"):
        CaseStore(root / "data/store").image("a9")


@pytest.mark.parametrize(
    ("link", "command"),
    [("new/.lock", TRAIN), ("run/predictions/.lock", PREDICT), ("data/openings.jsonl", EVALUATE)],
)
@pytest.mark.parametrize("content", ["mine", None])
def test_nothing_is_written_through_a_link(
    link: str, command: tuple[str, ...], content: str | None, root: Path, tmp_path: Path
) -> None:
    """Neither into a file that is there nor to make one."""
    target = tmp_path / "thesis"
    if content:
        target.write_text(content)
    (root / link).parent.mkdir(exist_ok=True)
    (root / link).unlink(missing_ok=True)
    (root / link).symlink_to(target)
    assert cli.main(placed(root, command)) == 2
    assert (target.read_text() if target.exists() else None) == content


def test_a_log_that_is_a_link(root: Path, tmp_path: Path) -> None:
    (root / "run/metrics.jsonl").unlink()
    (root / "run/metrics.jsonl").symlink_to(tmp_path / "thesis")
    shutil.rmtree(root / "run/checkpoints")
    assert cli.main(placed(root, AGAIN)) == 2
    assert not (tmp_path / "thesis").exists()


def test_someone_elses_files_among_the_checkpoints_stay(tmp_path: Path) -> None:
    """The folder may be a link to where other weights lie."""
    (tmp_path / "model.pt").write_text("mine")
    (tmp_path / ".cache.tmp").write_text("mine")
    for iteration in range(1, 5):
        checkpoint.save(tmp_path, {"iteration": iteration})
    names = sorted(path.name for path in tmp_path.glob("*.pt"))
    assert names == ["00000003.pt", "00000004.pt", "model.pt"]
    assert (tmp_path / ".cache.tmp").exists()


def test_settings_of_a_suite_name_no_folder(root: Path, tmp_path: Path) -> None:
    """NAME of `runs/NAME` holds their values."""
    rows = [{"method": "sscl", "masks": 2, "settings": {"pseudo": "/../../../../evil"}}]
    (tmp_path / "suite.yaml").write_text(json.dumps({"title": "x", "rows": rows}))
    command = ["benchmark", str(tmp_path / "suite.yaml"), str(root / "source"), "-o", str(root / "out")]
    assert cli.main([*command, "--pool", "1:3", "--test", "7:8", "--device", "cpu"]) == 2
    assert not list(tmp_path.rglob("*evil*"))
    assert os.listdir(root / "out") == ["data_2"]  # noqa: PTH208 - hidden ones, too
