"""The report: facts small enough to count by hand, and a page that does nothing on its own."""

import base64
import hashlib
import io
import json
import logging
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread

from sscl.core.errors import UserError
from sscl.core.plan import Plan
from sscl.engine.run import Recipe, write_recipe
from sscl.metrics.border import wrong_voxels
from sscl.report import figures, statistics, tables
from sscl.stages.evaluate import evaluate
from sscl.stages.report import report
from sscl.studies.compare import compare
from sscl.volumes.files import write_label
from sscl.volumes.nifti import write_nifti
from sscl.volumes.volume import Volume

EVIL = "<img src=x onerror=alert(1)>"
SHAPE = (12, 10, 8)


@pytest.fixture
def dataset(tmp_path):
    """Two scans, one with a name that is markup; the organ is a cube of 4 voxels a side."""
    source, folder = tmp_path / "source", tmp_path / "dataset"
    for new in (source / "images", source / "test_masks", folder):
        new.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for case in ("plain", EVIL):
        like = Volume(np.zeros((1, *SHAPE), np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
        write_nifti(source / f"images/{case}.nii.gz", rng.normal(100, 10, SHAPE).astype(np.float32), like)
        write_label(source / f"test_masks/{case}.nii.gz", cube(), like)
    facts = {
        **{"name": "d", "source": str(source), "layout": "folders", "channels": ["MR"], "ignore_label": None},
        "labels": ["background", "organ"],
        "cases": {case: {"image": [f"images/{case}.nii.gz"], "label": None} for case in ("plain", EVIL)},
    }
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


def cube(shift=0):
    mask = np.zeros(SHAPE, np.uint8)
    mask[4 + shift : 8 + shift, 3:7, 2:6] = 1
    return mask


def make_run(folder, dataset, method="sscl", seed=0, shifts=None):
    """A run folder; shifts: case to how far its predicted cube lies off (None: an empty prediction)."""
    folder.mkdir()
    plan = Plan(
        channels=("MR",), labels=("background", "organ"), spacing_mm=(2, 2, 2), patch=(16, 16, 16), stride=(8, 8, 8)
    )
    recipe = Recipe(
        **{"method": method, "config": {"lam": EVIL}, "dataset": str(dataset), "data_digest": "", "plan": plan},
        **{"labelled": ("a",), "unlabelled": (), "iterations": 4, "seed": seed, "precision": "float32"},
        **{"device": "cpu", "threads": 1, "versions": {}},
    )
    write_recipe(folder, recipe)
    lines = [
        {
            "iteration": i,
            "phase": "p" if i < 2 else "q",
            "student/loss": 1 / (1 + i),
            f"{EVIL}$/loss": 0.5,
            "student/lr": 0.01,
        }
        for i in range(4)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if shifts:
        (folder / "predictions").mkdir()
        like = Volume(np.zeros((1, *SHAPE)), np.diag([2.0, 2.0, 2.0, 1.0]))
        for case, shift in shifts.items():
            predicted = cube() * 0 if shift is None else cube(shift)
            write_label(folder / f"predictions/{case}.nii.gz", predicted, like)
        evaluate(folder / "predictions", dataset.parent / "source/test_masks")
    return folder


class Elements(HTMLParser):
    """All start tags with their attributes, and the text outside <style>."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.style = [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.text += " " if tag in ("td", "th") else ""

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "style" and not self.style:
            self.style = data
        else:
            self.text += data


def page_of(runs, tmp_path):
    return report(runs, tmp_path / "report.html").read_text()


# what is drawn


def test_wrong_voxels_of_a_shifted_cube():
    assert wrong_voxels(cube(1), cube()).sum() == 2 * 4 * 4
    ignored = cube()
    ignored[8] = 2  # the slab that the shifted cube wrongly fills is not scored
    assert wrong_voxels(cube(1), ignored, ignore_label=2).sum() == 4 * 4


def test_red_pixels_are_the_wrong_voxels_and_right_is_left():
    shape = (22, 22, 22)  # 220 pixels: 10 x 10 pixels a voxel
    wrong = np.zeros(shape, bool)
    wrong[20:, 5, 7] = True  # far right of the patient: 2 voxels
    wrong[20, 5, 9] = True
    everything = (slice(None),) * 3
    image = np.random.default_rng(0).random(shape)
    axial, coronal, sagittal = figures.three_planes(image, np.zeros(shape), wrong, (20, 5, 7), everything, (1, 1, 1))
    assert [picture.wrong for picture in (axial, coronal, sagittal)] == [2, 3, 2]
    for picture in (axial, coronal, sagittal):
        pixels = imread(io.BytesIO(picture.png))
        red = pixels[..., 0] > pixels[..., 1] + 0.3
        assert red.sum() == 100 * picture.wrong
        if picture is axial:
            rows, columns = np.nonzero(red)
            assert columns.min() == 0
            assert columns.max() == 19
            assert rows.min() == 10 * (22 - 1 - 5)  # y = 5, front on top


def test_pixels_have_the_shape_of_the_voxels():
    shape = (20, 20, 10)
    axial, coronal, _ = figures.three_planes(
        *(np.random.default_rng(0).random(shape), np.zeros(shape), np.zeros(shape, bool)),
        *((5, 5, 5), (slice(None),) * 3, (1.0, 1.0, 4.0)),
    )
    assert (axial.width, axial.height) == (110, 110)
    assert (coronal.width, coronal.height) == (110, 220)


def test_view_goes_through_the_organ_where_errors_are():
    far, near = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    far[0] = True
    near[7, 3, 5] = True
    assert figures.view_point([far, near], cube() > 0)[0] == 7
    assert figures.view_point([near], cube() > 0) == (7, 3, 5)
    assert figures.view_point([], cube() > 0) == (6, 5, 4)
    assert figures.view_point([far], cube() > 1)[0] == 0


def test_view_box_is_12_mm_around():
    assert figures.view_box(cube() > 0, (4.0, 6.0, 12.0)) == (slice(1, 11), slice(1, 9), slice(1, 7))
    assert np.zeros(SHAPE)[figures.view_box(cube() > 1, (1, 1, 1))].shape == SHAPE


def test_twenty_cases_of_two_runs_stay_under_5_megabytes():
    shape = (190, 142, 88)
    noise = np.random.default_rng(0).normal(size=shape)
    organ = np.zeros(shape, bool)
    organ[50:140, 40:100, 20:70] = True
    pictures = figures.three_planes(noise, organ, noise > 3, (90, 70, 40), (slice(None),) * 3, (0.6, 0.6, 0.6))
    assert sum(len(picture.png) for picture in pictures) * 4 / 3 * 40 < 5e6


def test_curves_show_every_series_but_the_rate():
    records = [
        {"iteration": i, "phase": "p", "a/loss": float(i), "a/sup": None, "a/lr": 1.0, "lr": 1.0} for i in range(9)
    ]
    svg = figures.curves(records)
    assert "a/loss" in svg
    assert "a/lr" not in svg
    assert "a/sup" not in svg
    assert figures.curves([]).startswith("<svg")


# what is written


def test_names_are_text_and_nothing_is_requested(dataset, tmp_path):
    run = make_run(tmp_path / f"run {EVIL}", dataset, shifts={"plain": 1, EVIL: None})
    page = page_of([run], tmp_path)
    found = Elements(page)
    assert {tag for tag, _ in found.tags}.isdisjoint(
        {"script", "link", "iframe", "object", "base", "form", "a", "image"}
    )
    assert not [name for _, attrs in found.tags for name in attrs if name.startswith("on") or name == "style"]
    sources = [attrs["src"] for tag, attrs in found.tags if tag == "img"]
    assert len(sources) == 2 * 3
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert set(re.findall(r"https?://[^\"'\s<]*", page)) == {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert set(re.findall(r"(?:href|url)\W+(.)", page)) <= {"#", "m", "p"}  # inside the page only
    for part in ("Cases", "Recipe"):
        assert EVIL in found.text.split(part, 1)[1]


def test_the_page_is_whole_without_scripts_and_network(dataset, tmp_path):
    """Each attribute that a browser may fetch holds its data or points into the page; nothing waits to be shown."""
    page = page_of([make_run(tmp_path / "run", dataset, shifts={"plain": 1, EVIL: None})], tmp_path)
    found = Elements(page)
    fetched = {"src", "href", "xlink:href", "srcset", "data", "poster", "background", "action", "formaction", "ping"}
    values = [value for _, attrs in found.tags for name, value in attrs.items() if name in fetched]
    assert values
    assert [value for value in values if not value.startswith(("data:image/png;base64,", "#"))] == []
    assert [attrs["http-equiv"] for _, attrs in found.tags if "http-equiv" in attrs] == ["Content-Security-Policy"]
    assert [tag for tag, _ in found.tags][:4] == ["html", "head", "meta", "meta"], (
        "the policy comes before what it rules"
    )
    assert not re.search(r"@import|url\(|display:\s*none|visibility:\s*hidden", found.style)
    assert "hidden" not in {name for _, attrs in found.tags for name in attrs}
    for part in ("Scores", "0.375 ± 0.530", "Cases", "Dice of every case and run", "Training", "Recipe"):
        assert part in found.text


def test_policy_allows_this_style_alone(dataset, tmp_path):
    found = Elements(page_of([make_run(tmp_path / "run", dataset)], tmp_path))
    policy = next(attrs["content"] for tag, attrs in found.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(found.style.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert f"style-src 'sha256-{digest}';" in policy
    assert "unsafe" not in policy


def test_numbers_in_the_page(dataset, tmp_path):
    run = make_run(tmp_path / "run", dataset, shifts={"plain": 1, EVIL: None})
    text = " ".join(Elements(page_of([run], tmp_path)).text.split())
    assert "32 wrong voxels in the volume · Dice 0.750" in text  # 48 of 64 + 64 common: 2 * 48 / 128
    assert "64 wrong voxels in the volume · Dice 0.000" in text
    assert "0.375 ± 0.530" in text  # mean and sample standard deviation of 0.75 and 0
    assert "∞" in text
    assert (run / "predictions/scores/definitions.txt").read_text().split("\n")[0] in text


def test_two_methods_are_compared(dataset, tmp_path):
    ours = make_run(tmp_path / "ours", dataset, shifts={"plain": 0, EVIL: 0})
    baseline = make_run(tmp_path / "baseline", dataset, method="vnet", shifts={"plain": 1, EVIL: 1})
    text = " ".join(Elements(page_of([ours, baseline], tmp_path)).text.split())
    assert "sscl \N{MINUS SIGN} vnet +25.0 +25.0 to +25.0 2 1" in text
    assert text.index("baseline: 32 wrong voxels") > text.index("ours: 0 wrong voxels")


def test_run_without_predictions_has_a_report(dataset, tmp_path):
    text = Elements(page_of([make_run(tmp_path / "run", dataset)], tmp_path)).text
    assert "run: no predictions yet" in text
    assert "not evaluated" in text
    assert "Convention medpy" in text
    assert "student/loss" in text


def test_moved_data_set_leaves_the_table(dataset, tmp_path):
    run = make_run(tmp_path / "run", dataset, shifts={"plain": 1, EVIL: 0})
    dataset.rename(tmp_path / "elsewhere")
    found = Elements(page_of([run], tmp_path))
    assert "2 of 2 cases have no picture" in found.text
    assert "0.875" in found.text
    assert "img" not in {tag for tag, _ in found.tags}


def test_reference_is_read_by_the_label_map_as_evaluate_does(dataset, tmp_path):
    """The left-atrium challenge stores 255 for class 1: taken as it is, every voxel of the organ would be wrong."""
    run = make_run(tmp_path / "run", dataset)
    like = Volume(np.zeros((1, *SHAPE)), np.diag([2.0, 2.0, 2.0, 1.0]))
    write_label(dataset.parent / "source/test_masks/plain.nii.gz", cube() * 255, like)
    facts = json.loads((dataset / "dataset.json").read_text()) | {"label_map": {"255": 1}}
    facts["cases"]["plain"]["label"] = "test_masks/plain.nii.gz"
    (dataset / "dataset.json").write_text(json.dumps(facts))
    plan = Plan(
        channels=("MR",), labels=("background", "organ"), spacing_mm=(2, 2, 2), patch=(16, 16, 16), stride=(8, 8, 8)
    )
    (dataset / "plan.json").write_text(plan.model_dump_json())
    lists = {"labelled": [], "unlabelled": [], "development": [], "test": ["plain"]}
    (dataset / "split.json").write_text(json.dumps(lists))
    (dataset / "stage.json").write_text('{"config": {}, "inputs": {}}')
    (run / "predictions").mkdir()
    write_label(run / "predictions/plain.nii.gz", cube(1), like)
    evaluate(run / "predictions", dataset)
    assert "32 wrong voxels in the volume · Dice 0.750" in " ".join(Elements(page_of([run], tmp_path)).text.split())


def test_same_recipe_and_seed_count_once(dataset, tmp_path):
    first = make_run(tmp_path / "first", dataset, shifts={"plain": 1, EVIL: 0})
    again = make_run(tmp_path / "again", dataset, shifts={"plain": 1, EVIL: 0})
    text = Elements(page_of([first, again], tmp_path)).text
    assert "again: same recipe and seed as another run" in text
    assert "Comparison" not in text


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_damaged_json_is_named(content, dataset, tmp_path):
    run = make_run(tmp_path / "run", dataset, shifts={"plain": 1, EVIL: 0})
    (run / "predictions/scores/stage.json").write_text(content)
    with pytest.raises(UserError, match=r"stage\.json: is not"):
        report([run], tmp_path / "report.html")


def test_demo_counts_an_organ_that_is_rightly_absent_as_found(tmp_path, monkeypatch):
    """As the report does: Dice is not applicable where both masks are empty."""
    from sscl.studies import demo as study

    like, empty = Volume(np.zeros((1, *SHAPE), np.float32), np.eye(4)), np.zeros(SHAPE, np.uint8)
    truths = {"absent": empty, "there": cube()}
    (tmp_path / "scans/test_masks").mkdir(parents=True)
    for case, truth in truths.items():
        write_label(tmp_path / f"scans/test_masks/{case}.nii.gz", truth, like)

    def predict(run, inputs, out):
        out.mkdir(parents=True)
        for case, answer in {"absent": empty, "there": cube(1)}.items():
            write_label(out / f"{case}.nii.gz", answer, like)
        (out / "stage.json").write_text('{"stage": "predict", "labels": ["background", "organ"]}')

    for name in ("write_phantom", "prepare", "train", "report"):
        monkeypatch.setattr(study, name, lambda *arguments, **options: None)
    monkeypatch.setattr(study, "_iterations", lambda *arguments: 2)
    monkeypatch.setattr(study, "predict", predict)
    table = study.demo(tmp_path, minutes=1, seed=0).table
    assert table[1:] == [
        ["absent", "1.000", "1.000"],
        ["there", "0.750", "0.750"],
        ["mean Dice", "0.875", "0.875"],
    ]


def test_a_begun_demo_says_that_it_is_not_timed_again(dataset, tmp_path, monkeypatch, caplog):
    from sscl.studies import demo as study

    make_run(tmp_path / "vnet", dataset, method="vnet")
    monkeypatch.setattr(study, "dry_run", lambda *arguments, **options: pytest.fail("timed again"))
    with caplog.at_level(logging.INFO, "sscl"):
        assert study._iterations(tmp_path, dataset, 9) == 4
    assert caplog.messages == ["the demo was begun with 4 iterations; --minutes is not timed again"]


def test_only_a_report_is_overwritten(dataset, tmp_path):
    run = make_run(tmp_path / "run", dataset)
    assert page_of([run], tmp_path) == page_of([run], tmp_path)
    scan = dataset.parent / "source/images/plain.nii.gz"
    content = scan.read_bytes()
    with pytest.raises(UserError, match=r"plain\.nii\.gz: is not a page of `sscl report`"):
        report([run], scan)
    assert scan.read_bytes() == content


def test_a_part_of_a_run_names_the_run(dataset, tmp_path):
    run = make_run(tmp_path / "run", dataset, shifts={"plain": 1})
    for command in (lambda: page_of([run / "predictions"], tmp_path), lambda: compare([run / "predictions"])):
        with pytest.raises(UserError, match=f"Give the run instead: {run}"):
            command()


@pytest.mark.parametrize("case", ["no run", "twice", "not a run", "out is a folder"])
def test_mistakes_are_named(case, dataset, tmp_path):
    run = make_run(tmp_path / "run", dataset)
    runs = {"no run": [], "twice": [run, tmp_path / "x/../run"], "not a run": [dataset]}.get(case, [run])
    out = tmp_path if case == "out is a folder" else tmp_path / "report.html"
    with pytest.raises(UserError):
        report(runs, out)
    assert not (tmp_path / "report.html").exists()


# what is read


def test_torn_last_line_is_left_out_but_no_other():
    assert tables.read_metrics('{"iteration": 0}\n{"iter', "m") == [{"iteration": 0}]
    with pytest.raises(UserError, match="line 1"):
        tables.read_metrics('{"iter\n{"iteration": 1}\n', "m")


def test_dice_is_averaged_over_classes_and_empty_is_right():
    text = "case,class,status,dice\na,1,ok,0.5\na,2,ok,0.7\n'=b,1,not_applicable,\n"
    assert tables.dice_by_case(tables.read_scores(text, "s")) == {"a": pytest.approx(0.6), "=b": 1.0}
    with pytest.raises(UserError, match="no column status"):
        tables.read_scores("case,class,dice\n", "s")


# what is concluded


def test_equal_differences_leave_no_doubt():
    ours = {s: {"a": 0.7, "b": 0.9} for s in (0, 1)}
    baseline = {s: {"a": 0.6, "b": 0.8} for s in (0, 1, 2)}
    found = statistics.paired_difference(ours, baseline)
    assert [found.mean, found.low, found.high] == pytest.approx([0.1, 0.1, 0.1])
    assert (found.num_cases, found.num_seeds) == (2, 2)


@pytest.mark.parametrize(
    ("ours", "baseline"),
    [
        ({0: {"a": 0.0, "b": 1.0}}, {0: {"a": 0.0, "b": 0.0}}),
        ({0: {"a": 0.0}, 1: {"a": 1.0}}, {0: {"a": 0.0}, 1: {"a": 0.0}}),
    ],
)
def test_two_values_by_hand(ours, baseline):
    """Drawn once from 0 and 1: either, with the same chance."""
    found = statistics.paired_difference(ours, baseline)
    assert [found.mean, found.low, found.high] == [0.5, 0, 1]


def test_three_values_by_hand():
    """Drawn twice from 0, 0 and 1: means 0, 0.5, 1 with chances 4/9, 4/9, 1/9."""
    found = statistics.paired_difference({0: {"a": 0, "b": 0, "c": 1}}, {0: dict.fromkeys("abc", 0)}, level=0.7)
    assert [found.mean, found.low, found.high] == pytest.approx([1 / 3, 0, 0.5])


def test_a_missed_case_raises_neither_end_of_the_interval():
    """Nor does it where the missed case was the one that made the interval wide."""
    baseline, ours = {"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.0}, {"a": 0.53, "b": 0.53, "c": 0.53, "d": 1.0}
    before, after = (statistics.paired_difference({0: side}, {0: baseline}) for side in (ours, {**ours, "d": 0.0}))
    assert after.low <= before.low
    assert after.high <= before.high


def test_hard_cases_cancel_because_they_are_paired():
    hard = {"a": 0.2, "b": 0.9, "c": 0.5}
    found = statistics.paired_difference({0: {case: value + 0.1 for case, value in hard.items()}}, {0: hard})
    assert found.high - found.low < 1e-12


def test_interval_holds_the_truth_about_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(statistics, "_RESAMPLES", 200)
    rng = np.random.default_rng(3)

    def side(effect):
        return {s: dict(enumerate(effect + rng.normal(0, 0.03) + rng.normal(0, 0.03, 20))) for s in range(5)}

    hits = 0
    for _ in range(150):
        hard, gain = rng.normal(0.8, 0.1, 20), rng.normal(0.05, 0.03, 20)
        found = statistics.paired_difference(side(hard + gain), side(hard))
        hits += found.low <= 0.05 <= found.high
    assert 0.85 < hits / 150 < 0.99  # 0.94 in a long run; standard deviation of 150 trials: 0.02


@pytest.mark.parametrize(
    ("ours", "message"),
    [({}, "one seed"), ({0: {"a": 0.5, "b": 0.5}}, "b not scored"), ({0: {"a": float("nan")}}, "finite")],
)
def test_scores_that_cannot_be_compared(ours, message):
    with pytest.raises(UserError, match=message):
        statistics.paired_difference(ours, {0: {"a": 0.5}})
