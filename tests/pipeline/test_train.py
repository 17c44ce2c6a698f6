"""`train`: what a seed decides, what survives every way to stop, and what is refused."""

import json
import logging
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from tiny_set import (
    GARBAGE,
    LABELLED,
    UNLABELLED,
    Tiny,
    assert_equal_weights,
    iterations,
    make_source,
    prepared,
    start,
    wait_for,
    weights,
)

from sscl.core.batch import Clock
from sscl.core.errors import UserError
from sscl.core.interrupt import Interrupted
from sscl.core.method import Schedule
from sscl.engine import checkpoint
from sscl.engine.run import cut_metrics, only_writer, read_recipe, write_recipe
from sscl.engine.train import Log, Trainer
from sscl.methods import METHODS, method_class
from sscl.stages.cost import Cost
from sscl.stages.dataset import open_dataset
from sscl.stages.recipe import resolve
from sscl.stages.train import EMPTY_STEPS, _pseudo_label_watch, dry_run, train

Train = Callable[..., Path]


def losses(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "/" in key} for line in lines]


def stop_after(iteration: int, number: int = signal.SIGTERM) -> Callable[[Log, int], None]:
    """An `on_step` that sends this process a signal during a step."""

    def on_step(log: Log, total: int) -> None:
        if log["iteration"] == iteration:
            os.kill(os.getpid(), number)

    return on_step


def begun(train_tiny: Train, out: Path, done: int = 3) -> Path:
    """A run of 6 iterations that was stopped, with checkpoints after each."""
    with pytest.raises(Interrupted):
        train_tiny(out, on_step=stop_after(done - 1), checkpoint_minutes=0)
    return out


# One seed, one result


def test_a_seed_decides_the_weights(trained: Path, train_tiny: Train, tmp_path: Path) -> None:
    assert_equal_weights(trained, train_tiny(tmp_path / "same"))
    other = weights(train_tiny(tmp_path / "other", seed=1))
    first = weights(trained)
    learnt = [name for name in first if name.endswith("weight") and first[name].ndim > 1]
    assert not any(torch.equal(first[name], other[name]) for name in learnt)


def test_the_schedule_says_whose_training_it_is(tiny: Tiny) -> None:
    """Shared: the preset's iterations and settings. Literature: the method's own, whatever the preset."""
    data = replace(open_dataset(tiny.dataset), preset="la-quick")

    def resolved(method: str, schedule: Literal["shared", "literature"]) -> tuple[int, str, float]:
        recipe = resolve(data, method, {}, None, 0, torch.device("cpu"), "float32", 1, schedule)
        return recipe.iterations, recipe.config["optimiser"]["schedule"]["kind"], recipe.config["dropout"]

    assert resolved("lg_er_mt", "shared") == (600, "poly", 0.0)
    assert resolved("ua_mt", "shared") == (600, "poly", 0.3)  # the dropout by which it measures uncertainty
    assert resolved("ua_mt", "literature") == (6000, "step", 0.5)
    assert resolved("sscl", "literature") == (34_000, "poly", 0.5)


def test_a_shortened_literature_schedule_decays_at_the_same_parts_of_the_run(tiny: Tiny) -> None:
    """Its 6000 iterations take a tenth of the rate at 2500 and at 5000; of 600 these are 250 and 500."""
    data = open_dataset(tiny.dataset)

    def every(method: str, iterations: int | None, settings: dict[str, Any]) -> int:
        recipe = resolve(
            data, method, settings, iterations, 0, torch.device("cpu"), "float32", 1, schedule="literature"
        )
        return int(recipe.config["optimiser"]["schedule"]["every"])

    for method in METHODS:
        literature = method_class(method).literature
        assert literature.settings_for(literature.iterations) == literature.settings
    assert every("ua_mt", None, {}) == every("ua_mt", 6000, {}) == 2500
    assert every("ua_mt", 600, {}) == 250
    assert every("ua_mt", 1, {}) == 1
    assert every("bcp", 34_000, {}) == 5000  # of 17,000, two phases
    assert every("ua_mt", 600, {"optimiser.schedule.every": 100}) == 100
    schedule = Schedule(kind="step", every=250)
    rates = [schedule.factor(Clock(i, 600, "train", i, 600)) for i in (249, 250, 499, 500, 599)]
    assert rates == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])


def test_a_teacher_that_finds_nothing_for_long_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    watch = _pseudo_label_watch()
    for iteration in range(3 * EMPTY_STEPS):
        found = 0.1 if iteration == EMPTY_STEPS // 2 else 0.0
        watch({"iteration": iteration, "student/pseudo_foreground": found})
        told = [record for record in caplog.records if "pretrain_share" in record.getMessage()]
        assert len(told) == (iteration >= EMPTY_STEPS // 2 + EMPTY_STEPS)
    watch({"iteration": 0, "student/loss": 0.0})  # a method without pseudo-labels


@pytest.mark.slow
def test_loader_processes_change_nothing(trained: Path, train_tiny: Train, tmp_path: Path) -> None:
    assert_equal_weights(trained, train_tiny(tmp_path / "run", workers=2))


@pytest.mark.slow
def test_a_killed_loader_process_ends_the_run_with_a_message(tiny: Tiny, tmp_path: Path) -> None:
    run = start(tiny, tmp_path / "run", "--workers", "2", iterations=2000)
    wait_for(tmp_path / "run", 2)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    workers = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(workers[-1]), signal.SIGKILL)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 2
    assert "a loader process died" in errors
    assert "Traceback" not in errors


def test_memory_layout_does_not_matter(trained: Path, train_tiny: Train, tmp_path: Path, monkeypatch: Any) -> None:
    """Of the first step: batch norm over the four voxels at the bottom amplifies rounding from one step to the next."""
    monkeypatch.setattr(torch, "channels_last_3d", torch.contiguous_format)
    plain = losses(train_tiny(tmp_path / "run"))
    assert losses(trained)[0] == pytest.approx(plain[0], abs=1e-5)
    assert losses(trained)[0].keys() >= {"student/loss", "reconstructor/loss"}


# Stop and go on


@pytest.mark.parametrize("done", [1, 2, 5])
def test_stopping_after_any_phase_and_going_on_changes_nothing(
    done: int, trained: Path, train_tiny: Train, tmp_path: Path
) -> None:
    """6 iterations are 1 of pre-training and 5 of formal training."""
    with pytest.raises(Interrupted, match=f"SIGTERM after iteration {done}; state saved") as stopped:
        train_tiny(tmp_path / "run", on_step=stop_after(done - 1))
    assert stopped.value.number == 15
    assert iterations(tmp_path / "run") == list(range(done))
    train_tiny(tmp_path / "run")
    assert_equal_weights(trained, tmp_path / "run")
    assert losses(trained) == losses(tmp_path / "run")


def test_a_signal_during_the_last_iteration_finishes_the_run(trained: Path, train_tiny: Train, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    assert_equal_weights(trained, train_tiny(tmp_path / "run", on_step=stop_after(5, signal.SIGINT)))
    assert (tmp_path / "run/stage.json").exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_finished_run_is_left_alone(train_tiny: Train, trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.*") if path.is_file() and path.name != ".lock"}
    train_tiny(run, on_step=lambda log, total: pytest.fail("trained on"))
    assert before == {path: path.stat().st_mtime_ns for path in before}
    (run / "stage.json").unlink()  # killed between the last checkpoint and this file
    train_tiny(run, on_step=lambda log, total: pytest.fail("trained on"))
    assert json.loads((run / "stage.json").read_text())["stage"] == "train"


def stop_at(iteration: int, tiny: Tiny, run: Path, number: int, code: int, iterations: int) -> None:
    process = start(tiny, run, iterations=iterations)
    wait_for(run, iteration)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert ("state saved. The same command goes on from there." in errors) == (number != signal.SIGKILL)
    assert "Traceback" not in errors


ENDS = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)]


def test_a_killed_process_ends_with_the_same_weights(tiny: Tiny, train_tiny: Train, tmp_path: Path) -> None:
    straight, run = train_tiny(tmp_path / "straight", iterations=12), tmp_path / "run"
    stop_at(2, tiny, run, *ENDS[-1], iterations=12)
    assert 2 <= len(iterations(run)) < 12
    train_tiny(run, iterations=12)
    assert_equal_weights(straight, run)
    assert losses(run) == losses(straight)


@pytest.mark.slow
def test_one_run_stopped_in_every_way_by_the_same_command(tiny: Tiny, train_tiny: Train, tmp_path: Path) -> None:
    straight, run = train_tiny(tmp_path / "straight", iterations=24), tmp_path / "run"
    for iteration, (number, code) in zip((3, 8, 13), ENDS, strict=True):
        stop_at(iteration, tiny, run, number, code, iterations=24)
    process = start(tiny, run, iterations=24)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "continuing" in errors
    assert_equal_weights(straight, run)
    assert iterations(run) == list(range(24))


def test_a_run_folder_can_be_moved(trained: Path, train_tiny: Train, tmp_path: Path) -> None:
    begun(train_tiny, tmp_path / "old").rename(tmp_path / "new")
    assert_equal_weights(trained, train_tiny(tmp_path / "new"))


# Checkpoints


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    trained: Path, train_tiny: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = begun(train_tiny, tmp_path / "run")
    older, newest = sorted((run / "checkpoints").glob("*.pt"))
    assert (older.stem, newest.stem) == ("00000002", "00000003")
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    os.utime(older, (0, 0))
    caplog.set_level(logging.INFO, "sscl")
    train_tiny(run)
    assert f"{newest} is incomplete or damaged; using the checkpoint before it" in caplog.text
    assert f"continuing {run} after iteration 2 of 6" in caplog.text
    assert iterations(run) == list(range(6))
    assert_equal_weights(trained, run)


def test_the_newest_checkpoint_is_that_of_the_highest_iteration(tmp_path: Path) -> None:
    for iteration in (9, 10, 100):
        checkpoint.save(tmp_path, {"iteration": iteration})
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["00000010.pt", "00000100.pt"]
    os.utime(tmp_path / "00000100.pt", (0, 0))
    state = checkpoint.newest(tmp_path, torch.device("cpu"))
    assert state == {"iteration": 100}


@pytest.mark.parametrize("manifest", [None, "", "{}", "[]", '{"sha256": 1}'])
def test_a_checkpoint_without_a_good_manifest_does_not_count(tmp_path: Path, manifest: str | None) -> None:
    for iteration in (1, 2):
        checkpoint.save(tmp_path, {"iteration": iteration})
    cut = tmp_path / "00000002.json"
    cut.unlink() if manifest is None else cut.write_text(manifest)
    assert checkpoint.newest(tmp_path, torch.device("cpu")) == {"iteration": 1}


# What is refused


def refused(words: str, run: Callable[[], Any]) -> None:
    with pytest.raises(UserError, match=words):
        run()


def test_other_settings_than_the_begun_run_are_refused_by_name(train_tiny: Train, tmp_path: Path) -> None:
    run = begun(train_tiny, tmp_path / "run")
    before = (run / "recipe.yaml").read_bytes()
    for words, options in {
        r"config\.lam: 0\.5 in the run, 0\.7 now": {"settings": {"lam": 0.7}},
        r"config\.optimiser\.learning_rate: 0\.01 in the run, 0\.1 now": {"settings": {"optimiser.learning_rate": 0.1}},
        "seed: 0 in the run, 1 now": {"seed": 1},
        "iterations: 6 in the run, 7 now": {"iterations": 7},
        "method: sscl in the run, vnet now": {"method": "vnet"},
    }.items():
        refused(words, lambda options=options: train_tiny(run, **options))
    assert (run / "recipe.yaml").read_bytes() == before
    assert iterations(run) == [0, 1, 2]


def test_another_number_of_threads_only_warns(
    train_tiny: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = begun(train_tiny, tmp_path / "run", done=5)
    write_recipe(run, read_recipe(run).model_copy(update={"threads": 7}))
    train_tiny(run)
    assert "bit equality is not promised: threads: 7 in the run, 1 now" in caplog.text
    assert read_recipe(run).threads == 7


def test_another_cpu_only_warns(
    trained: Path, train_tiny: Train, tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = read_recipe(trained).versions["cpu"]
    if "model name" in (info := Path("/proc/cpuinfo").read_text()):
        assert f": {model}\n" in info
    run = begun(train_tiny, tmp_path / "run", done=5)
    monkeypatch.setattr("sscl.stages.recipe.cpu_name", lambda: "Other CPU")
    train_tiny(run)
    assert f"bit equality is not promised: versions.cpu: {model} in the run, Other CPU now" in caplog.text


def test_a_data_set_that_changed_under_the_run_is_refused(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    dataset, run = prepared(source, tmp_path / "dataset"), tmp_path / "run"
    options: dict[str, Any] = {"settings": {"width": 2}, "iterations": 4, "threads": 1, "device": "cpu"}
    with pytest.raises(Interrupted):
        train(dataset, run, **options, on_step=stop_after(1))
    shutil.rmtree(dataset)
    prepared(source, dataset, foreground_share=0.5)
    refused(r"plan\.foreground_share: .* in the run, 0\.5 now", lambda: train(dataset, run, **options))
    shutil.rmtree(dataset)
    shutil.copy(source / "imagesTr/b1_0000.nii.gz", source / "imagesTr/b2_0000.nii.gz")
    prepared(source, dataset)
    refused("data_digest: .* in the run", lambda: train(dataset, run, **options))


def test_a_folder_with_something_else_in_it_is_refused_and_left_as_it_was(train_tiny: Train, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    refused("is not a run folder", lambda: train_tiny(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_a_killed_start_left_behind_is_no_obstacle(trained: Path, train_tiny: Train, tmp_path: Path) -> None:
    for name in (".recipe.yaml.abc.tmp", ".metrics.jsonl.abc.tmp", ".stage.json.abc.tmp", ".mine.tmp"):
        (tmp_path / name).write_text("method: ss")
    assert_equal_weights(trained, train_tiny(tmp_path))
    assert [path.name for path in tmp_path.glob(".*.tmp")] == [".mine.tmp"]


def test_a_damaged_recipe_is_named(train_tiny: Train, trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    for text in ("", "a: [", "- 1", "method: !!python/object/apply:os.mkdir [canary]"):
        (run / "recipe.yaml").write_text(text)
        refused(r"recipe\.yaml: damaged", lambda: train_tiny(run))


@pytest.mark.parametrize("line", [b"{}", b"[]", b"7", b"\xff\xfe", b"{"])
def test_a_damaged_log_is_cut_there(line: bytes, tmp_path: Path) -> None:
    good = b'{"iteration": 0}\n'
    (tmp_path / "metrics.jsonl").write_bytes(good + line + b'\n{"iteration": 2}\n')
    cut_metrics(tmp_path, 9)
    assert (tmp_path / "metrics.jsonl").read_bytes() == good


@pytest.mark.parametrize("name", ["dataset.json", "split.json", "plan.json", "stage.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_a_damaged_data_set_is_named(name: str, content: bytes, tiny: Tiny, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    for path in tiny.dataset.glob("*.json"):
        shutil.copy(path, dataset)
    (dataset / name).write_bytes(content)
    refused(rf"{name}: is not", lambda: open_dataset(dataset))


@pytest.mark.parametrize(("name", "key"), [("dataset.json", "cases"), ("stage.json", "inputs")])
def test_a_data_set_that_lacks_a_key_is_named(name: str, key: str, tiny: Tiny, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    for path in tiny.dataset.glob("*.json"):
        content = json.loads(path.read_text())
        (dataset / path.name).write_text(
            json.dumps({k: v for k, v in content.items() if (path.name, k) != (name, key)})
        )
    refused(rf"{name}: is not a JSON object with '{key}'", lambda: open_dataset(dataset))


def test_two_writers_are_refused(train_tiny: Train, tmp_path: Path) -> None:
    with only_writer(tmp_path):
        refused("in use by another process", lambda: train_tiny(tmp_path))
    assert not (tmp_path / "recipe.yaml").exists()


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("method 'ssc1' is unknown. Did you mean 'sscl'", {"method": "ssc1"}),
        ("setting 'lamb' is unknown. Did you mean 'lam'", {"settings": {"lamb": 1.0}}),
        ("optimiser: setting 'rate' is unknown", {"settings": {"optimiser.rate": 1.0}}),
        ("lam = 'much'", {"settings": {"lam": "much"}}),
        ("--iterations 0: expected 1 or more", {"iterations": 0}),
        ("1 iterations are too few for 2 phases", {"iterations": 1}),
        ("--iterations and --minutes exclude each other", {"minutes": 1.0}),
        ("--minutes 0: expected more than 0", {"minutes": 0.0, "iterations": None}),
        ("--seed -1: expected 0 or more", {"seed": -1}),
        ("--seed 9223372036854775808: expected a number under", {"seed": 2**63}),
        ("--checkpoint-minutes nan: expected 0 or more", {"checkpoint_minutes": float("nan")}),
        ("--checkpoint-minutes -1: expected 0 or more", {"checkpoint_minutes": -1.0}),
        ("--threads 0: expected 1 or more", {"threads": 0}),
        ("--workers -1: expected 0 or more", {"workers": -1}),
        ("--device tpu is unknown", {"device": "tpu"}),
        ("--device cuda:x is unknown", {"device": "cuda:x"}),
        ("--device cuda:99: this machine", {"device": "cuda:99"}),
        ("--precision half is unknown", {"precision": "half"}),
        ("void does not exist. `sscl prepare", {"dataset": Path("void")}),
        ("is not a prepared data set: dataset.json is missing", {"dataset": Path(__file__).parent}),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(
    words: str, options: dict[str, Any], train_tiny: Train, tmp_path: Path
) -> None:
    refused(words, lambda: train_tiny(tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


# Numbers that blow up


def test_a_loss_that_is_not_a_number_names_iteration_and_cases(train_tiny: Train, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(UserError) as caught:
        train_tiny(run, settings={"optimiser.learning_rate": 1e30}, checkpoint_minutes=0)
    message = str(caught.value)
    assert "became nan at iteration" in message
    cases = message.split("cases in the batch: ")[1].split(". ")[0].split(", ")
    assert len(cases) == 4
    assert set(cases[:2]) <= {*LABELLED}
    assert set(cases[2:]) <= {*UNLABELLED}
    saved = checkpoint.newest(run / "checkpoints", torch.device("cpu"))
    assert saved is not None
    assert all(t.isfinite().all() for name, t in saved["method"].items() if "running" not in name)


def test_weights_that_are_not_finite_are_never_saved(train_tiny: Train, tmp_path: Path, monkeypatch: Any) -> None:
    """Every loss is finite, but the last step's gradient was not."""

    def broken(trainer: Trainer, *arguments: Any) -> Log:
        log = step(trainer, *arguments)
        if trainer.iteration == 2:
            next(trainer.method.parameters()).data[0] = torch.nan
        return log

    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(UserError, match="no longer finite after iteration 2"):
        train_tiny(tmp_path / "run", method="vnet", iterations=2, checkpoint_minutes=0)
    saved = checkpoint.newest(tmp_path / "run/checkpoints", torch.device("cpu"))
    assert saved is not None
    assert saved["iteration"] == 1


# Length, cost, privacy


def test_minutes_fix_the_number_of_iterations_in_the_recipe(
    train_tiny: Train, tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sscl.stages.cost.TIMED_STEPS", 2)
    caplog.set_level(logging.INFO, "sscl")
    options: dict[str, Any] = {"iterations": None, "method": "vnet"}
    run = train_tiny(tmp_path / "run", minutes=0.01, **options)
    count = read_recipe(run).iterations
    assert count >= 2
    assert iterations(run) == list(range(count))
    monkeypatch.setattr("sscl.stages.train._cost", lambda *arguments: pytest.fail("timed again"))
    told = f"the run was begun with {count} iterations; --minutes is not timed again"
    assert told not in caplog.messages
    train_tiny(run, minutes=5.0, **options)
    assert caplog.messages.count(told) == 1
    assert read_recipe(run).iterations == count
    train_tiny(run, iterations=count, method="vnet")
    monkeypatch.setattr("sscl.stages.train._cost", lambda *arguments: Cost(6000, 0.6, 0, 0))
    recipe = read_recipe(train_tiny(tmp_path / "paper", minutes=0.04, schedule="literature", **options))
    assert (recipe.iterations, recipe.config["optimiser"]["schedule"]["every"]) == (4, 2)  # 2.4 s; 2500 of 6000


def test_a_dry_run_tells_the_cost_and_writes_nothing(tiny: Tiny, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sscl.stages.cost.TIMED_STEPS", 2)
    before = sorted(tiny.dataset.rglob("*"))
    options: dict[str, Any] = {"method": "vnet", "settings": {"width": 2}, "threads": 1, "device": "cpu"}
    cost = dry_run(tiny.dataset, **options)
    assert cost.iterations == 34_000
    assert cost.seconds == pytest.approx(34_000 * cost.seconds_per_iteration)
    assert 0.001 < cost.seconds_per_iteration < 10
    assert 2**26 < cost.peak_memory_bytes < 2**36
    assert cost.disk_bytes > 34_000 * 100
    assert dry_run(tiny.dataset, minutes=60, **options).iterations > 100
    assert list(tmp_path.iterdir()) == []
    assert sorted(tiny.dataset.rglob("*")) == before


@pytest.mark.parametrize(("first", "steps"), [(0.0, 4), (30.0, 2)])
def test_long_steps_are_timed_for_some_seconds_only(
    first: float, steps: int, tiny: Tiny, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Steps of 4 s, behind a first one: a clock that only they move passes 10 s with the third or with the first."""
    clock, done = [0.0], [0, 0]

    def step(trainer: Trainer, span: Any, loaded: Any) -> None:
        phase = trainer.spans.index(span)
        clock[0] += 4.0 if done[phase] else first
        done[phase] += 1

    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr("sscl.stages.cost.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    caplog.set_level(logging.INFO, "sscl")
    cost = dry_run(tiny.dataset, settings={"width": 2}, threads=1, device="cpu")
    assert done == [steps, steps]
    assert cost.seconds_per_iteration == pytest.approx(4.0)
    assert [line for line in caplog.messages if line.startswith("timing phase")] == [
        f"timing phase {name}: at most 11 steps, 2 where one takes long" for name in ("pretrain", "formal")
    ]


def test_masks_of_unlabelled_cases_are_never_opened(tiny: Tiny, trained: Path) -> None:
    """They cannot be read at all; the run went through, and used the scans of these cases."""
    for case in UNLABELLED:
        assert (tiny.source / f"labelsTr/{case}.nii.gz").read_bytes() == GARBAGE
        assert not (tiny.dataset / f"store/{case}.label.b2nd").exists()
    assert read_recipe(trained).unlabelled == UNLABELLED


def test_a_method_without_unlabelled_scans_trains_without_them(train_tiny: Train, tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    lists = json.loads((source / "split.json").read_text()) | {"unlabelled": []}
    (source / "split.json").write_text(json.dumps(lists))
    dataset = prepared(source, tmp_path / "dataset")
    assert iterations(train_tiny(tmp_path / "run", dataset=dataset, method="vnet", iterations=2)) == [0, 1]
    refused("there is none. Use --method vnet", lambda: train_tiny(tmp_path / "other", dataset=dataset))
