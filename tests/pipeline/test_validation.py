"""`train --validation`, `predict --select best`: the best weights by masks that training never sees."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from tiny_set import (
    LABELLED,
    TEST,
    UNLABELLED,
    Tiny,
    assert_equal_weights,
    copied_record,
    make_source,
    prepared,
    weights,
)

from sscl import cli
from sscl.core.errors import UserError
from sscl.core.files import read_sealed, sha256, write_sealed
from sscl.core.interrupt import Interrupted
from sscl.core.method import Method
from sscl.core.plan import Plan
from sscl.data.store import DIGESTS, CaseStore, write_case, write_digests
from sscl.engine import checkpoint
from sscl.engine.run import read_recipe
from sscl.engine.train import Log
from sscl.engine.validation import Validation, mean_dice
from sscl.methods import METHODS, method_class
from sscl.report.tables import dice_by_case
from sscl.stages.dataset import open_dataset
from sscl.stages.evaluate import evaluate
from sscl.stages.model import export, info, load_model
from sscl.stages.predict import predict
from sscl.stages.recipe import resolve
from sscl.stages.record import identity, read_records, read_result, record
from sscl.stages.train import dry_run
from sscl.studies.compare import compare, gains, grouped

RECORDS = Path(__file__).parents[2] / "docs" / "results" / "runs"
CPU = torch.device("cpu")
LEARNS: dict[str, Any] = {"method": "vnet", "settings": {"dropout": 0.0, "optimiser.learning_rate": 0.05}}
"""Dice rises from 0.2 to 0.8 within 12 iterations."""

Train = Callable[..., Path]


def logged(run: Path) -> list[float | None]:
    return [json.loads(line).get("validation/dice") for line in (run / "metrics.jsonl").read_text().splitlines()]


def state_of(run: Path) -> dict[str, Any]:
    state = checkpoint.newest(run / "checkpoints", CPU)
    assert state is not None
    return state


def planted(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> list[dict[str, torch.Tensor]]:
    """Validation finds these scores one after another; returns what grows: the weights that it found them for."""
    seen: list[dict[str, torch.Tensor]] = []
    following = iter(scores)

    def dice(self: Validation, method: Method) -> float:
        seen.append({name: tensor.clone() for name, tensor in method.state_dict().items()})
        return next(following)

    monkeypatch.setattr(Validation, "dice", dice)
    return seen


@pytest.fixture(scope="module")
def learnt(train_tiny: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("learnt") / "run", iterations=12, validation=1, **LEARNS)


# What is scored, and when


def test_mean_dice_by_hand() -> None:
    label = np.array([0, 1, 1, 2, -1, -1], np.int8).reshape(6, 1, 1)
    found = np.array([1, 1, 0, 2, 1, 2]).reshape(6, 1, 1)
    assert mean_dice(found, label, 3) == pytest.approx((2 * 1 / (2 + 2) + 1) / 2)
    assert mean_dice(found, label, 4) == pytest.approx((0.5 + 1 + 1) / 3)  # class 3 is rightly nowhere
    assert mean_dice(np.where(found == 0, 3, found), label, 4) == pytest.approx((0.5 + 1 + 0) / 3)


def test_it_scores_the_masks_that_predict_writes(learnt: Path, tiny: Tiny, tmp_path: Path) -> None:
    """The data set's grid is here the scans' own; the store holds float16."""
    masks = tmp_path / "masks"
    predict(learnt, [tiny.dataset], masks, split="labelled", threads=1, device="cpu")
    rows = evaluate(masks, tiny.dataset, split="labelled").scores
    (expected,) = (row.values["dice"] for row in rows if row.case == LABELLED[-1])
    found = logged(learnt)[-1]
    assert found == pytest.approx(expected, abs=0.003)
    assert found is not None
    assert 0.5 < found < 1


def test_twenty_times_a_run_the_last_iteration_included() -> None:
    def due(iterations: int, cases: tuple[str, ...] = ("a",)) -> list[int]:
        found = Validation(CaseStore(Path()), cases, _plan(), iterations, CPU)
        found.dice = lambda method: 0.0  # type: ignore[method-assign]
        method = build("vnet")
        return [n for n in range(iterations + 1) if found.after(n, method)]

    assert due(60) == list(range(3, 61, 3))
    assert due(7) == [1, 2, 3, 4, 5, 6, 7]
    assert len(due(33)) == 20
    assert due(33)[-1] == 33
    assert due(60, ()) == []


def _plan() -> Plan:
    return Plan(
        channels=("MR",), labels=("background", "organ"), spacing_mm=(1, 1, 1), patch=(32, 32, 16), stride=(32, 32, 16)
    )


def build(name: str) -> Method:
    torch.manual_seed(0)
    cls = method_class(name)
    return cls(cls.Config(width=2), 1, 2)


# Training does not notice


def test_a_run_trains_on_what_is_left_as_if_there_were_no_more(learnt: Path, train_tiny: Train, tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    lists = json.loads((source / "split.json").read_text()) | {"labelled": LABELLED[:-1]}
    (source / "split.json").write_text(json.dumps(lists))
    without = train_tiny(tmp_path / "without", dataset=prepared(source, tmp_path / "dataset"), iterations=12, **LEARNS)
    recipe = read_recipe(learnt)
    assert (recipe.labelled, recipe.validation) == (LABELLED[:-1], LABELLED[-1:])
    assert read_recipe(without).validation == ()
    with_validation, alone = weights(learnt), weights(without)
    assert alone.keys() == {name for name in with_validation if "/best/" not in name} < with_validation.keys()
    assert [name for name in alone if not torch.equal(alone[name], with_validation[name])] == []


def test_semi_supervised_training_does_not_notice_either(
    train_tiny: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SSCL, with its teacher, dropout and noise; once with validations, once without."""
    validated = train_tiny(tmp_path / "validated", validation=1)
    assert None not in logged(validated)
    monkeypatch.setattr("sscl.engine.validation.VALIDATIONS", 0)
    train_tiny(tmp_path / "never", validation=1)
    one, two = state_of(validated), state_of(tmp_path / "never")
    assert "best" not in two
    assert read_recipe(validated).unlabelled == UNLABELLED
    assert all(torch.equal(one["method"][name], two["method"][name]) for name in two["method"])


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_left_as_it_was(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, 40, 32, 16)).astype(np.float32)
    write_digests(tmp_path, write_case(tmp_path, "a", image, (image[0] > 0).astype(np.int8)))
    method = build(name).train()
    before = {key: tensor.clone() for key, tensor in method.state_dict().items()}
    score = Validation(CaseStore(tmp_path), ("a",), _plan(), 1, CPU).dice(method)
    assert 0 <= score <= 1
    assert all(module.training for module in method.modules())
    assert all(torch.equal(tensor, before[key]) for key, tensor in method.state_dict().items())


@pytest.fixture
def copied(tiny: Tiny, tmp_path: Path) -> Path:
    """The data set, to be spoiled."""
    return shutil.copytree(tiny.dataset, tmp_path / "copied")


def spoil(dataset: Path, case: str) -> None:
    """Another scan, and a mask that is the wrong way round, as if they had been prepared so."""
    label: NDArray[np.int8] = np.asarray(CaseStore(dataset / "store").label(case)[:])
    image = np.random.default_rng(1).normal(size=(1, *label.shape)).astype(np.float32)
    store = dataset / "store"
    digests = json.loads((store / DIGESTS).read_text()) | write_case(store, case, image, (1 - label).astype(np.int8))
    write_digests(store, digests)
    stage = read_sealed(dataset / "stage.json")
    stage["files"][f"store/{DIGESTS}"] = sha256(store / DIGESTS)
    write_sealed(dataset / "stage.json", stage)


def test_validation_cases_never_reach_training(learnt: Path, copied: Path, train_tiny: Train, tmp_path: Path) -> None:
    spoil(copied, LABELLED[-1])
    run = train_tiny(tmp_path / "run", dataset=copied, iterations=12, validation=1, **LEARNS)
    assert logged(run) != logged(learnt)
    one, two = state_of(learnt)["method"], state_of(run)["method"]
    assert all(torch.equal(one[name], two[name]) for name in one)
    spoil(copied, LABELLED[0])  # what is trained on would be noticed
    other = state_of(train_tiny(tmp_path / "other", dataset=copied, iterations=12, validation=1, **LEARNS))["method"]
    assert not any(torch.equal(one[name], other[name]) for name in one if name.endswith("conv.weight"))


def test_test_and_development_cases_are_never_opened(train_tiny: Train, tmp_path: Path) -> None:
    """Their files are gone, and the store never held them."""
    source = make_source(tmp_path / "source")
    lists = json.loads((source / "split.json").read_text()) | {"development": TEST[:1], "test": TEST[1:]}
    (source / "split.json").write_text(json.dumps(lists))
    dataset = prepared(source, tmp_path / "dataset")
    shutil.rmtree(source)
    stored = {path.name.split(".")[0] for path in (dataset / "store").glob("*.b2nd")}
    assert stored == {*LABELLED, *UNLABELLED}
    run = train_tiny(tmp_path / "run", dataset=dataset, validation=2, iterations=3, **LEARNS)
    assert read_recipe(run).validation == LABELLED[1:]
    assert None not in logged(run)
    assert not (dataset / "openings.jsonl").exists()


# Which weights are kept


def test_the_best_weights_are_kept_the_later_of_equal_ones(
    train_tiny: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen = planted(monkeypatch, [0.1, 0.5, 0.3, 0.5, 0.2, 0.4])
    run = train_tiny(tmp_path / "run", validation=1)
    assert logged(run) == [0.1, 0.5, 0.3, 0.5, 0.2, 0.4]
    best = state_of(run)["best"]
    assert (best["iteration"], best["dice"]) == (4, 0.5)
    assert best["weights"].keys() < seen[3].keys()  # not the teacher
    for select, expected in (("best", seen[3]), ("last", seen[5])):
        model = export(run, tmp_path / select, select=select)  # type: ignore[arg-type]
        for place, wish in ((run, select), (model, None)):
            state = load_model(place, CPU, wish).method.state_dict()  # type: ignore[arg-type]
            assert all(torch.equal(state[name], expected[name]) for name in state)
    changed = [name for name in best["weights"] if not torch.equal(seen[3][name], seen[5][name])]
    assert len(changed) > 20
    card = info(tmp_path / "best")["trained"]
    assert (card["iterations"], card["of"], card["select"], card["validation"]) == (4, 6, "best", 1)
    assert caplog.messages == []  # least of all that the run was not finished


def test_it_is_told_which_weights_are_the_best(learnt: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "sscl")
    export(learnt, tmp_path / "model", select="best")
    scores = [score for score in logged(learnt) if score is not None]
    assert caplog.messages == [f"{learnt}: the weights after iteration 12, validation Dice {max(scores):.3f}"]


# Stop and go on


@pytest.fixture
def rises_and_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dice nearest to 0.3 counts as the best: in the middle of the run, and still a fact about the weights."""
    found = Validation.dice
    monkeypatch.setattr(Validation, "dice", lambda self, method: 1 - abs(found(self, method) - 0.3))


def stop_after(iteration: int, error: type[BaseException]) -> Callable[[Log, int], None]:
    def on_step(log: Log, total: int) -> None:
        if log["iteration"] == iteration:
            raise error

    return on_step


@pytest.mark.usefixtures("rises_and_falls")
@pytest.mark.parametrize("killed_after", [3, 7])
def test_a_killed_run_finds_the_same_best(killed_after: int, train_tiny: Train, tmp_path: Path) -> None:
    """Killed before the best iteration and behind it, in an iteration that no checkpoint has seen."""
    options: dict[str, Any] = {"iterations": 12, "validation": 1, **LEARNS}
    straight, run = train_tiny(tmp_path / "straight", **options), tmp_path / "run"
    best = state_of(straight)["best"]
    assert 4 < best["iteration"] < 8
    with pytest.raises(KeyboardInterrupt):
        train_tiny(run, on_step=stop_after(killed_after, KeyboardInterrupt), checkpoint_minutes=0, **options)
    assert state_of(run)["iteration"] == killed_after
    train_tiny(run, **options)
    assert_equal_weights(straight, run)
    assert {key: state_of(run)["best"][key] for key in ("iteration", "dice")} == {
        key: best[key] for key in ("iteration", "dice")
    }
    assert logged(run) == logged(straight)


def test_a_best_that_no_checkpoint_has_seen_is_forgotten(
    train_tiny: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on where the same iterations do not score the same, as on another machine."""
    seen = planted(monkeypatch, [0.1, 0.5, 0.3, 0.9])
    with pytest.raises(KeyboardInterrupt):
        train_tiny(tmp_path / "run", validation=1, on_step=stop_after(3, KeyboardInterrupt), checkpoint_minutes=0)
    planted(monkeypatch, [0.4, 0.2, 0.3])
    train_tiny(tmp_path / "run", validation=1)
    best = state_of(tmp_path / "run")["best"]
    assert (best["iteration"], best["dice"]) == (2, 0.5)
    assert all(torch.equal(tensor, seen[1][name]) for name, tensor in best["weights"].items())


def test_a_stopped_run_saves_its_best_and_has_it_before_its_end(
    train_tiny: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    planted(monkeypatch, [0.2, 0.6, 0.3])

    def stop(log: Log, total: int) -> None:
        if log["iteration"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train_tiny(tmp_path / "run", validation=1, on_step=stop)
    export(tmp_path / "run", tmp_path / "model", select="best")
    assert info(tmp_path / "model")["trained"]["iterations"] == 2
    assert f"{tmp_path / 'run'} is not finished: iteration 3 of 6" in caplog.messages


# What is refused


def refused(words: str, run: Callable[[], Any]) -> None:
    with pytest.raises(UserError, match=words):
        run()


def test_no_case_left_to_train_on(train_tiny: Train, tmp_path: Path) -> None:
    for count in (3, 4):
        words = rf"--validation {count}: .* has 3 labelled cases, and one at least must be left .* Give at most 2,"
        refused(words, lambda count=count: train_tiny(tmp_path / "run", validation=count))
    refused("--validation -1: expected 0 or more", lambda: train_tiny(tmp_path / "run", validation=-1))
    assert not (tmp_path / "run").exists()


def test_the_command_line_hands_it_on(
    trained: Path, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", str(tiny.dataset), "--method", "vnet", "--iterations", "1", "--validation", "3"]
    for command, words in (
        ([*train, "-o", str(tmp_path / "run"), "--set", "width=2"], "--validation 3: "),
        ([*train, "--dry-run", "--set", "width=2"], "--validation 3: "),
        (["export", str(trained), "-o", str(tmp_path / "model"), "--select", "best"], "--select best: "),
    ):
        assert cli.main(command) == 2
        assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_begun_with_other_validation_is_refused(
    learnt: Path, trained: Path, train_tiny: Train, tmp_path: Path
) -> None:
    refused(
        r"begun with other settings:\n  labelled: .*\n  validation: \['a3'\] in the run, \[\] now",
        lambda: train_tiny(learnt, iterations=12, **LEARNS),
    )
    run = shutil.copytree(trained, tmp_path / "run")
    refused(r"validation: \[\] in the run, \['a3'\] now", lambda: train_tiny(run, validation=1))


def test_the_best_of_what_has_none(
    trained: Path, learnt: Path, tiny: Tiny, train_tiny: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "--select best: .* was trained without validation.*--validation N"
    refused(words, lambda: predict(trained, [tiny.dataset], tmp_path / "masks", select="best", device="cpu"))
    refused(words, lambda: export(trained, tmp_path / "model", select="best"))
    assert list(tmp_path.iterdir()) == []
    last, best = export(learnt, tmp_path / "last"), export(learnt, tmp_path / "best", select="best")
    refused("holds the last weights of its run, not the best ones", lambda: load_model(last, CPU, "best"))
    refused("holds the best weights of its run, not the last ones", lambda: load_model(best, CPU, "last"))
    monkeypatch.setattr("sscl.engine.validation.VALIDATIONS", 1)
    stop = stop_after(3, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        train_tiny(tmp_path / "run", validation=1, on_step=stop, checkpoint_minutes=0)
    words = "--select best: .* was not validated yet after 3 of 6 iterations"
    refused(words, lambda: load_model(tmp_path / "run", CPU, "best"))


# What is told of it


@pytest.fixture(scope="module")
def scored(learnt: Path, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, predicted and scored with its best weights by the command line."""
    run = shutil.copytree(learnt, tmp_path_factory.mktemp("scored") / "run")
    assert cli.main(["predict", str(run), "--select", "best", "--threads", "1", "--device", "cpu"]) == 0
    assert cli.main(["evaluate", str(run / "predictions"), str(tiny.dataset)]) == 0
    return run


def test_predictions_scores_and_records_say_which_weights(scored: Path, learnt: Path, tmp_path: Path) -> None:
    assert json.loads((scored / "predictions/stage.json").read_text())["config"]["select"] == "best"
    assert json.loads((scored / "predictions/scores/stage.json").read_text())["select"] == "best"
    out = record(scored, scored / "predictions", tmp_path / "record")
    assert json.loads((out / "record.json").read_text())["select"] == "best"
    assert read_result(scored).select == read_result(out).select == "best"
    assert read_result(out).identity == identity(read_recipe(learnt), select="best") != identity(read_recipe(learnt))


def test_the_report_says_it_and_draws_the_curve(scored: Path, tmp_path: Path) -> None:
    assert cli.main(["report", str(scored), "-o", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "run: not the last weights, but those best on its validation cases (a3)." in page
    assert "validation/dice" in page


def test_a_folder_of_the_last_weights_is_not_mixed_with_the_best(
    learnt: Path, trained: Path, tiny: Tiny, tmp_path: Path
) -> None:
    """Here they are even the same weights."""
    options: dict[str, Any] = {"threads": 1, "device": "cpu"}
    predict(learnt, [tiny.dataset], tmp_path, **options)
    refused(
        "another model or other settings", lambda: predict(learnt, [tiny.dataset], tmp_path, select="best", **options)
    )
    stage = json.loads((tmp_path / "stage.json").read_text())
    assert stage["config"].pop("select") == "last"
    del stage["own_sha256"]
    (tmp_path / "stage.json").write_text(json.dumps(stage))  # as the first versions wrote it
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.nii.gz")}
    predict(learnt, [tiny.dataset], tmp_path, **options)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_recipe_without_the_field_is_one_without_validation(tiny: Tiny, tmp_path: Path) -> None:
    recipe = resolve(open_dataset(tiny.dataset), "vnet", {}, 6, 0, CPU, "float32", 1)
    values = recipe.model_dump(mode="json")
    del values["validation"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    assert read_recipe(tmp_path) == recipe
    assert identity(read_recipe(tmp_path)) == identity(recipe)
    assert all(result.recipe.validation == () and result.select == "last" for result in read_records(RECORDS))


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Records of two methods, each with its last weights and, as if there had been validation, with its best ones."""
    for name in ("vnet_8_0", "mean_teacher_8_0"):
        copied_record(RECORDS / name, tmp_path / name)
        for number, field in (("best", {"select": "best"}), ("validated", {})):
            copy = copied_record(RECORDS / name, tmp_path / f"{name}_{number}")
            facts = json.loads((copy / "record.json").read_text())
            (copy / "record.json").write_text(json.dumps(facts | field))
            recipe = yaml.safe_load((copy / "recipe.yaml").read_text())
            moved = {"labelled": recipe["labelled"][:-2], "validation": recipe["labelled"][-2:]}
            (copy / "recipe.yaml").write_text(yaml.safe_dump(recipe | moved))
    return tmp_path


def test_best_and_last_are_never_one_group_nor_baseline_of_each_other(kept: Path) -> None:
    groups = grouped(read_records(kept))
    assert sorted((group.label, group.masks) for group in groups) == [
        ("mean_teacher", 6),
        ("mean_teacher", 8),
        ("mean_teacher, best on 2 further masks", 6),
        ("vnet", 6),
        ("vnet", 8),
        ("vnet, best on 2 further masks", 6),
    ]
    pairs = {(gain.ours.label, gain.ours.masks, gain.baseline.label, gain.baseline.masks) for gain in gains(groups)}
    assert pairs == {
        ("mean_teacher", 8, "vnet", 8),
        ("mean_teacher", 6, "vnet", 6),
        ("mean_teacher, best on 2 further masks", 6, "vnet, best on 2 further masks", 6),
    }
    shutil.rmtree(kept / "vnet_8_0_best")
    answers = compare([kept]).answers
    assert any("seeds, settings and --validation." in answer for answer in answers)
    rows = read_result(kept / "vnet_8_0").rows
    assert dice_by_case(rows) == dice_by_case(read_result(kept / "vnet_8_0_validated").rows)


def test_a_dry_run_counts_the_validations(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sscl.stages.cost.TIMED_STEPS", 2)
    options: dict[str, Any] = {"method": "vnet", "settings": {"width": 2}, "threads": 1, "device": "cpu"}
    plain, cost = (dry_run(tiny.dataset, iterations=40, validation=count, **options) for count in (0, 1))
    assert plain.validation_seconds == 0
    assert cost.validation_seconds > 0
    assert cost.seconds == pytest.approx(40 * cost.seconds_per_iteration + cost.validation_seconds)
    assert cost.disk_bytes > plain.disk_bytes
