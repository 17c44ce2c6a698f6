"""Benchmarks: what is planned, run, kept and not repeated; what the comparison says and what it does not claim."""

import copy
import csv
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
import yaml
from tiny_set import Tiny, copied_record
from torch.utils.flop_counter import FlopCounterMode

from sscl import cli
from sscl.core.errors import UserError
from sscl.core.files import read_sealed, write_sealed
from sscl.engine.run import METRICS, only_writer
from sscl.methods import LABELLED_DIFFERS, METHODS, method_class
from sscl.nets.vnet import VNet
from sscl.report.published import TITLES, departing, published
from sscl.report.statistics import holm, wilcoxon
from sscl.stages.record import identity, read_records, read_result
from sscl.studies import benchmark
from sscl.studies.benchmark import Cases, Planned
from sscl.studies.compare import compare, gains, grouped
from sscl.studies.suites import SUITES, Suite, find_suite
from sscl.studies.tables import results, threshold_points, write_tables

RECORDS = Path(__file__).parents[2] / "docs" / "results" / "runs"
CASES = Cases(pool="1:6", test="7:8")


def suite(tmp_path: Path, *rows: dict[str, Any]) -> Suite:
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump({"title": "tiny", "rows": [copy.deepcopy(row) for row in rows]}))
    return find_suite(str(path))


SMALL = {"width": 2}
ROWS = (
    {"method": "vnet", "masks": [2, 3], "settings": SMALL},
    {"method": "mean_teacher", "masks": 3, "settings": SMALL},
    {"method": "dtc", "masks": 3, "settings": {**SMALL, "optimiser.learning_rate": 1e30}},
)


def planned(suite: Suite, tiny: Tiny, out: Path, **options: Any) -> list[Planned]:
    return benchmark.plan(suite, tiny.source, out, CASES, iterations=4, device="cpu", threads=1, **options)


@pytest.mark.slow
def test_a_sweep_runs_goes_on_and_repeats_nothing(tiny: Tiny, tmp_path: Path) -> None:
    chosen, out = suite(tmp_path, *ROWS), tmp_path / "out"
    plan = planned(chosen, tiny, out)
    names = [item.job.name for item in plan]
    assert names == [
        "vnet_width-2_2_0", "vnet_width-2_3_0", "mean_teacher_width-2_3_0",
        "dtc_optimiser.learning_rate-1e+30_width-2_3_0",
    ]  # fmt: skip
    outcomes = benchmark.run(plan, 1)
    # the run that fails says why and stops no other
    assert [bool(outcome.error) for outcome in outcomes] == [False, False, False, True]
    assert "became nan" in outcomes[3].error
    assert re.search(
        r"^train (\d)/\1, 0 s left, student/loss ", benchmark.log_of(plan[0].job).read_text(), re.MULTILINE
    )
    assert {path.name for path in (out / "records").iterdir()} == set(names[:3])
    assert [item.done for item in planned(chosen, tiny, out)] == [True, True, True, False]
    # one of another length, under the same name, is not this suite's
    longer = benchmark.plan(chosen, tiny.source, out, CASES, iterations=6, device="cpu", threads=1)
    assert [item.job.record for item in longer] == [item.job.record for item in plan]
    assert (results(longer), len(results(plan))) == ([], 3)
    # a record is known by what it is of, not by its name
    (out / "records" / names[0]).rename(out / "records" / "renamed")
    again = planned(chosen, tiny, out)
    assert [item.done for item in again] == [True, True, True, False]
    assert Path(again[0].job.record).name == "renamed"
    # other seeds are asked for; what is there of this one still goes into the tables
    assert [item.done for item in planned(chosen, tiny, out, seeds=(1,))] == [False] * 4 + [True] * 3
    (out / "records" / "renamed").rename(out / "records" / names[0])
    # one of an older version of the method is of another method
    facts = read_sealed(out / "records" / names[0] / "record.json")
    old = facts | {"versions": {"engine": 1, "method": METHODS["vnet"].version + 1}}
    write_sealed(out / "records" / names[0] / "record.json", old)
    assert [item.done for item in planned(chosen, tiny, out)] == [False, True, True, False]
    assert len(results(planned(chosen, tiny, out))) == 2
    write_sealed(out / "records" / names[0] / "record.json", facts)
    # opened once each, by evaluate
    openings = [len((out / f"data_{n}" / "openings.jsonl").read_text().splitlines()) for n in (2, 3)]
    assert openings == [1, 2]

    paths = write_tables(chosen, results(planned(chosen, tiny, out)), out / "tables")
    assert [path.name for path in paths] == ["table.md", "table.csv", "table.tex", "table.html", "comparison.md"]
    with (out / "tables" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["Masks"], row["Unlabelled"], row["seeds"]) for row in rows] == [
        ("2", "0", "1"),
        ("3", "0", "1"),
        ("3", "3", "1"),
    ]
    text = (out / "tables" / "comparison.md").read_text()
    assert "with 3 masks, the 3 unlabelled scans" in text


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_sweep_that_is_stopped_leaves_no_training_behind(number: signal.Signals, tiny: Tiny, tmp_path: Path) -> None:
    """The signal reaches the sweep alone, not its trainings, as `kill` sends it."""
    suite(tmp_path, {"method": "vnet", "masks": [2, 3], "settings": SMALL})
    run = tmp_path / "out" / "runs" / "vnet_width-2_2_0"
    command = [
        sys.executable, "-m", "sscl.cli", "benchmark", tmp_path / "suite.yaml", tiny.source, "-o", tmp_path / "out",
        "--pool", "1:6", "--test", "7:8", "--iterations", "100000", "--device", "cpu",
    ]  # fmt: skip
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_until(lambda: (run / METRICS).is_file())  # its first step begins
    assert not is_free(run)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert f"stopped by {number.name}; the runs that had begun have saved. The same command goes on" in said
        assert "exit code" not in said
        assert is_free(run)
    wait_until(lambda: is_free(run))
    assert not (tmp_path / "out" / "runs" / "vnet_width-2_3_0").exists()


def is_free(run: Path) -> bool:
    try:
        with only_writer(run):
            return True
    except UserError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def test_a_sweep_without_test_cases_is_refused_before_anything_is_written(tiny: Tiny, tmp_path: Path) -> None:
    chosen = suite(tmp_path, {"method": "vnet", "masks": 2})
    with pytest.raises(UserError, match=r"no case is held out to be scored. Say which: --test 61:80"):
        benchmark.plan(chosen, tiny.source, tmp_path / "out", Cases())
    assert not (tmp_path / "out").exists()


def test_cases_of_a_pool() -> None:
    held_out = {"development": "51:60", "test": "61:80"}
    cases = Cases("1:50", **held_out)
    assert cases.options(8) == {"labelled": "1:8", "unlabelled": "9:50", **held_out}
    assert cases.options("all") == cases.options(50) == {"labelled": "1:50", "unlabelled": 0, **held_out}
    assert Cases().options(8) == {"labelled": 8, "development": None, "test": None}
    assert Cases().options("all") == {"labelled": None, "development": None, "test": None}
    with pytest.raises(UserError, match="Ask for fewer"):
        cases.options(51)
    with pytest.raises(UserError, match="expected A:B"):
        Cases("50").options(8)


@pytest.mark.parametrize("name", SUITES)
def test_suites_can_be_run_and_have_every_row_of_the_paper(name: str) -> None:
    assert set(SUITES) == set(TITLES)
    chosen, keys = SUITES[name], set()
    for row in chosen.rows:
        cls = method_class(row.method)
        cls.Config.read(row.settings, name)
        masks = row.stands_for or row.masks
        defaults = cls.Config().model_dump()
        settings = frozenset(item for item in row.settings.items() if defaults[item[0]] != item[1])
        assert (row.method, masks, settings) not in keys, "twice"
        keys.add((row.method, masks, settings))
    if name != "fig6":
        missing = {(row.method, row.masks, departing(row.settings)) for row in published(name)} - keys
        assert missing == set()


def test_the_suites_in_files_can_be_read() -> None:
    files = sorted((RECORDS.parents[2] / "benchmarks").glob("*.yaml"))
    assert [len(find_suite(str(path)).rows) for path in files] == [10, 20, 5]


def test_a_suite_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'table1'"):
        find_suite("tabel1")
    with pytest.raises(UserError, match="does not exist"):
        find_suite(str(tmp_path / "mine.yaml"))
    (tmp_path / "mine.yaml").write_text("rows: 3")
    with pytest.raises(UserError, match="a list of rows"):
        find_suite(str(tmp_path / "mine.yaml"))
    (tmp_path / "mine.yaml").write_text("title: mine\nrows: [")
    with pytest.raises(UserError, match=r"not plain YAML .*line 2"):
        find_suite(str(tmp_path / "mine.yaml"))
    sound = {"method": "vnet", "masks": 8}
    for row, words in (
        ({"methd": "vnet", "masks": 8}, "'methd' is unknown. Did you mean 'method'"),
        ({"method": "vnte", "masks": 8}, "method 'vnte' is unknown. Did you mean 'vnet'"),
        ({"masks": 8}, "'method' is missing. Needed: method, masks"),
        ({"method": "vnet", "masks": "many"}, "masks = 'many': expected a whole number or 'all'"),
        ({"method": "vnet", "masks": [8, 0]}, "masks = 0: expected more than 0 or 'all'"),
        ({**sound, "settings": 3}, "settings = 3: expected names with values."),
    ):
        with pytest.raises(UserError, match=f"suite.yaml, row 2: .*{re.escape(words)}"):
            suite(tmp_path, sound, row)


def test_the_estimate_counts_the_network_s_operations() -> None:
    images = torch.zeros(1, 1, 32, 32, 16)
    with FlopCounterMode(display=False) as counter:
        VNet(1, 2, 16)(images).sum().backward()
    assert counter.get_total_flops() / images.numel() == pytest.approx(benchmark.FLOP_PER_VOXEL, rel=0.01)
    hours = benchmark.gpu_hours("vnet", 3600, (100, 100, 100))
    assert hours == pytest.approx(4e6 * benchmark.FLOP_PER_VOXEL / benchmark.FLOP_PER_SECOND)


def test_hours_without_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["benchmark", "table4"]) == 0
    out = capsys.readouterr().out
    assert "an estimate, not run" in out
    assert len(out.splitlines()) == 1 + 2 * len(SUITES["table4"].rows)
    assert "paper: Dice 0.831\nsscl train DATASET -o RUN --method vnet --seed 0\n" in out
    assert "paper: Dice –\nsscl train DATASET -o RUN --method sscl --seed 0 --set unlabelled=false\n" in out
    assert cli.main(["benchmark", "table4", "--preset", "la-quick"]) == 0
    assert capsys.readouterr().out != out
    assert cli.main(["benchmark", "table4", "--preset", "la-quik"]) == 2
    assert "Did you mean 'la-quick'" in capsys.readouterr().err
    assert cli.main(["benchmark", "table4", "somewhere"]) == 2
    assert "needs -o OUT" in capsys.readouterr().err


# ---------------------------------------------------------------- statistics


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_wilcoxon_by_counting_signs() -> None:
    ours = {case: 0.5 + k / 100 for k, case in enumerate("abcde", start=1)}
    assert wilcoxon(ours, dict.fromkeys("abcde", 0.5)) == pytest.approx(2 / 2**5)  # all five of 32 patterns of signs
    assert wilcoxon(ours, ours) == 1
    with pytest.raises(UserError, match="different cases"):
        wilcoxon(ours, {"a": 1.0})


# ---------------------------------------------------------------- comparison, on the records of docs/results


def records(tmp_path: Path, *names: str) -> list[Path]:
    for name in names:
        copied_record(RECORDS / name, tmp_path / name)
    return [tmp_path / name for name in names]


def change(folder: Path, config: dict[str, Any] | None = None, **values: Any) -> None:
    """Other values in a record's recipe."""
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["config"] |= config or {}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | values))


def test_the_committed_records_are_of_the_present_methods() -> None:
    kept = read_records(RECORDS)
    assert len(kept) > 30
    assert [result.name for result in kept if result.identity != identity(result.recipe)] == []
    assert len({result.identity for result in kept}) == len(kept)


def test_only_the_same_network_on_the_same_masks_tells_what_unlabelled_scans_gave(tmp_path: Path) -> None:
    paths = records(tmp_path, "vnet_8_0", "vnet_50_0", "mean_teacher_8_0", "sscl_8_0", "dtc_8_0")
    groups = grouped([read_records(tmp_path)[k] for k in range(5)])
    assert {(gain.ours.method, gain.baseline.method, gain.baseline.masks) for gain in gains(groups)} == {
        ("mean_teacher", "vnet", 8)
    }
    found = compare(paths)
    assert len(found.answers) == 3
    assert found.answers[0].startswith("mean_teacher: with 8 masks, the 42 unlabelled scans")
    (sscl,) = (line for line in found.answers if line.startswith("sscl"))
    assert (
        "sscl train DATASET -o RUN --method sscl --iterations 600 --set unlabelled=false, with the same seeds" in sscl
    )
    means = {(group.method, group.masks): group.mean for group in groups}
    assert f"together: {means['sscl', 8] - means['vnet', 8]:+.3f} [" in sscl
    assert any(line.startswith("dtc") and "cannot be told" in line for line in found.answers)
    assert found.curve == [["masks", "8", "50"], ["vnet", found.curve[1][1], found.curve[1][2]]]


def test_a_gain_is_the_mean_of_differences_and_seeds_go_together(tmp_path: Path) -> None:
    paths = records(tmp_path, "vnet_8_0", "vnet_8_1", "mean_teacher_8_0", "mean_teacher_8_1")
    dice = {}
    for path in paths:
        with (path / "scores.csv").open() as file:
            dice[path.name] = fmean(float(row["dice"]) for row in csv.DictReader(file))
    (gain,) = gains(grouped(read_records(tmp_path)))
    expected = (dice["mean_teacher_8_0"] + dice["mean_teacher_8_1"] - dice["vnet_8_0"] - dice["vnet_8_1"]) / 2
    assert gain.interval.mean == pytest.approx(expected)
    assert gain.interval.num_seeds == 2


def test_what_the_network_gave_is_told_apart_from_what_unlabelled_scans_gave(tmp_path: Path) -> None:
    names = ("sscl_8_0", "sscl_unlabelled-false_8_0", "vnet_8_0")
    whole, alone, plain = (
        fmean(group.mean for group in grouped([read_result(path)])) for path in records(tmp_path, *names)
    )
    found = compare([tmp_path])
    head, *rows = ([row[0], *row[6:8]] for row in found.table)
    assert head == ["method", "unlabelled scans gave", "network gave"]
    given = {name: (unlabelled.split()[0], network.split()[0]) for name, unlabelled, network in rows}
    assert given == {
        "sscl": (f"{whole - alone:+.3f}", "-"),
        "sscl unlabelled=false": ("-", f"{alone - plain:+.3f}"),
        "vnet": ("-", "-"),
    }
    assert "with 8 masks, and nothing else, its network and schedule changed Dice" in found.answers[1]


def test_a_run_on_the_masks_alone_is_never_the_plain_one(tmp_path: Path) -> None:
    """Though there are three of them."""
    alone = [f"sscl_unlabelled-false_8_{seed}" for seed in range(3)]
    records(tmp_path, "sscl_8_0", *alone)
    assert {group.label for group in grouped(read_records(tmp_path))} == {"sscl", "sscl unlabelled=false"}


def test_the_command_for_a_missing_run_has_the_settings_that_make_its_network(tmp_path: Path) -> None:
    records(tmp_path, "sscl_8_0", "sscl_8_1", "sscl_spectral-false_8_0")
    (answer,) = (line for line in compare([tmp_path]).answers if line.startswith("sscl spectral=false"))
    assert "--method sscl --iterations 600 --set unlabelled=false --set spectral=false, with the same seeds" in answer


def test_what_only_unlabelled_scans_need_makes_no_other_network(tmp_path: Path) -> None:
    records(tmp_path, "sscl_alpha-0.99_ema_warmup-true_8_0", "sscl_recon_skips-false_8_0", "sscl_unlabelled-false_8_0")
    (gain,) = gains(grouped(read_records(tmp_path)))
    assert gain.ours.config["alpha"] == 0.99


def test_settings_tell_groups_apart(tmp_path: Path) -> None:
    (path, _) = records(tmp_path, "sscl_8_0", "vnet_8_0")
    shutil.copytree(path, tmp_path / "other")
    change(tmp_path / "other", config={"lam": 2.0})
    labels = {group.label for group in grouped(read_records(tmp_path))}
    assert labels == {"sscl", "sscl lam=2.0", "vnet"}
    # the settings of most runs are the plain ones, whatever the defaults are
    for seed in (1, 2):
        shutil.copytree(tmp_path / "other", tmp_path / f"other_{seed}")
        change(tmp_path / f"other_{seed}", seed=seed)
    assert {group.label for group in grouped(read_records(tmp_path))} == {"sscl", "sscl lam=0.5", "vnet"}
    change(path, iterations=50)
    labels = {group.label for group in grouped(read_records(tmp_path))}
    assert labels == {"sscl lam=0.5, 50 iterations", "sscl, 600 iterations", "vnet, 600 iterations"}


def test_only_seeds_that_both_sides_have_are_compared(tmp_path: Path) -> None:
    ours, *baselines = records(tmp_path, "mean_teacher_8_1", "vnet_8_0", "vnet_8_1", "vnet_8_2")
    found, alone = compare([ours, *baselines]), compare([ours, baselines[1]])
    assert found.table[1][6:] == alone.table[1][6:]
    assert "1 seed that both have of 1 and 3;" in found.answers[0]
    assert "1 seed;" in alone.answers[0]


@pytest.mark.parametrize(
    "changed",
    [
        {"data_digest": "0" * 64},
        {"iterations": 700},
        {"config": {"width": 16}},
        {"config": {"dropout": 0.5}},
        {"config": {"optimiser": {"learning_rate": 0.1}}},
    ],
)
def test_a_run_on_other_data_or_of_another_network_is_no_baseline(tmp_path: Path, changed: dict[str, Any]) -> None:
    ours, vnet = records(tmp_path, "mean_teacher_8_0", "vnet_8_0")
    assert len(gains(grouped(read_records(tmp_path)))) == 1
    change(vnet, **changed)
    assert gains(grouped(read_records(tmp_path))) == []
    (answer,) = compare([ours, vnet]).answers
    settings = " --set dropout=0.0," if "dropout" in changed.get("config", {}) else ""
    assert f"sscl train DATASET -o RUN --method vnet --iterations 600{settings}" in answer


def test_two_runs_that_could_be_the_baseline_are_named(tmp_path: Path) -> None:
    _, vnet = records(tmp_path, "mean_teacher_8_0", "vnet_8_0")
    shutil.copytree(vnet, tmp_path / "other")
    change(tmp_path / "other", config={"supervised_weight": 0.25})
    found = compare([tmp_path])
    assert [row[6:] for row in found.table[1:]] == [["-", "-", "-"]] * 3  # nor is one V-Net the other's baseline
    assert "several runs are its network on the masks alone (vnet" in found.answers[0]


def test_what_else_differs_from_the_baseline_is_said(tmp_path: Path) -> None:
    assert LABELLED_DIFFERS.keys() < {name for name, entry in METHODS.items() if entry.baseline == "vnet"}
    records(tmp_path, "bcp_8_0", "mean_teacher_8_0", "vnet_8_0")
    for answer in compare([tmp_path]).answers:
        assert ("pasted into each other" in answer) == answer.startswith("bcp")


def test_a_damaged_record_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, broken, unscored = records(tmp_path, "vnet_8_0", "vnet_8_1", "vnet_8_2")
    (broken / "record.json").write_text("{")
    (unscored / "scores.csv").unlink()
    assert [result.name for result in read_records(tmp_path)] == ["vnet_8_0"]
    assert len(compare([tmp_path]).table) == 2
    assert f"{broken} is left out: " in caplog.text
    assert f"{unscored} is left out: {unscored} has no scores." in caplog.text


def test_figure_6_is_drawn_from_records(tmp_path: Path) -> None:
    (path,) = records(tmp_path / "kept", "sscl_8_0")
    done = []
    for row in SUITES["fig6"].rows[:2]:
        kept = tmp_path / "kept" / row.slug
        shutil.copytree(path, kept)
        change(kept, config=row.settings)
        done.append((row, read_result(kept)))
    with (path / "scores.csv").open() as file:
        dice = fmean(float(line["dice"]) for line in csv.DictReader(file))
    points = threshold_points(SUITES["fig6"], done)
    assert {reading: [(t, scores["dice"]) for t, scores in line] for reading, line in points.items()} == {
        "foreground": [(0.5, pytest.approx(dice)), (0.7, pytest.approx(dice))],
        "confident": [(0.5, pytest.approx(dice))],
    }
    assert (tmp_path / "fig6.svg") in write_tables(SUITES["fig6"], done, tmp_path)


def test_comparisons_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a run"):
        compare([tmp_path])
    one, two = records(tmp_path, "vnet_8_0", "vnet_8_1")
    lines = (two / "scores.csv").read_text().splitlines()
    (two / "scores.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(UserError, match="scored on different cases"):
        compare([one, two])
    shutil.rmtree(two)
    shutil.copytree(one, two)
    with pytest.raises(UserError, match="a second run of seed 0"):
        compare([one, two])
