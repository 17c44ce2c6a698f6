"""The paper's figures: voxels counted by hand at a border, solids whose light is known, and files that agree."""

import csv
import io
import itertools
import shutil
from dataclasses import replace

import numpy as np
import pytest
from markdown_it import MarkdownIt
from matplotlib.image import imread
from tiny_set import TEST

from sscl.core.errors import UserError
from sscl.core.files import read_sealed, sha256, write_sealed
from sscl.metrics.border import BorderCounts, border_counts, near_border
from sscl.report import paper_figures, statistics
from sscl.report.border import CaseRow, Rate, RateRow, border_csv, border_table, rate_rows
from sscl.report.layout import markdown
from sscl.report.surface_view import surface_view
from sscl.stages.evaluate import evaluate
from sscl.stages.figures import figures
from sscl.volumes.files import read_label, write_label


def cube():
    """6 voxels a side in the middle of 12."""
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[3:9, 3:9, 3:9] = 1
    return labels


# voxels at the border


def test_a_flat_border_is_two_layers_on_either_side():
    labels = np.zeros((9, 4, 4), np.uint8)
    labels[5:] = 1
    assert near_border(labels).any(axis=(1, 2)).tolist() == [False] * 3 + [True] * 4 + [False] * 2
    assert near_border(labels).sum() == 4 * 4 * 4
    assert (near_border(1 - labels) == near_border(labels)).all()


def test_a_cube_by_hand():
    """Inside: all but the inner 2 voxels a side. Outside: two layers on each of 6 faces of 36, a row of 6 along each of
    12 edges (its diagonal is 1.41; the next ones are 2.24 away), and one at each of 8 corners (1.73)."""
    near = near_border(cube())
    assert near[cube() == 1].sum() == 6**3 - 2**3
    assert near[cube() == 0].sum() == 6 * 36 * 2 + 12 * 6 + 8


def test_wrong_voxels_of_a_cube_by_hand():
    prediction = cube()
    prediction[5, 5, 5] = 0  # the core
    prediction[3, 3, 3] = 0  # a corner
    prediction[1, 5, 5] = 1  # the second layer outside
    prediction[0, 5, 5] = 1  # the third
    near = near_border(cube())
    found = border_counts(prediction, cube(), near)
    assert found == BorderCounts(2, near.sum(), 2, 12**3 - near.sum())
    assert found.rate_near == 2 / near.sum()
    assert found.rate_elsewhere == 2 / (12**3 - near.sum())


def test_without_a_border_all_is_elsewhere():
    found = border_counts(cube(), np.zeros((12, 12, 12)), near_border(np.zeros((12, 12, 12))))
    assert found == BorderCounts(0, 0, 6**3, 12**3)
    assert found.rate_near is None


def test_what_is_ignored_is_in_no_count_and_makes_no_border():
    labels = np.zeros((9, 1, 1), np.uint8)
    labels[4:] = 2
    assert not near_border(labels, ignore_label=2).any()
    assert border_counts(1 - labels, labels, near_border(labels, 2), 2) == BorderCounts(0, 0, 4, 4)


@pytest.mark.parametrize("seed", range(4))
def test_near_is_what_a_search_of_all_pairs_finds(seed):
    rng = np.random.default_rng(seed)
    labels = (rng.random((5, 6, 4)) < 0.08).astype(int) + 2 * (rng.random((5, 6, 4)) < 0.04)  # 0, 1, 2, and 3: ignored
    prediction = rng.integers(0, 3, labels.shape)
    places = list(np.ndindex(labels.shape))
    expected = dict.fromkeys(("wrong_near", "voxels_near", "wrong_elsewhere", "voxels_elsewhere"), 0)
    for a in places:
        if labels[a] == 3:
            continue
        close = any(labels[b] not in (labels[a], 3) and np.subtract(a, b) @ np.subtract(a, b) <= 4 for b in places)
        region = "near" if close else "elsewhere"
        expected[f"voxels_{region}"] += 1
        expected[f"wrong_{region}"] += int(prediction[a] != labels[a])
    assert vars(border_counts(prediction, labels, near_border(labels, 3), 3)) == expected
    assert expected["voxels_near"] * expected["voxels_elsewhere"] > 0


# rates


def case_rows(**wrong_near):
    """Of each experiment the wrong voxels near the border, of 100, by seed and case; 5 of 1000 elsewhere."""
    return [
        CaseRow(f"{name}-{seed}", name, seed, case, BorderCounts(wrong, 100, 5, 1000))
        for name, seeds in wrong_near.items()
        for seed, cases in enumerate(seeds)
        for case, wrong in zip("ab", cases, strict=True)
    ]


def test_rates_and_differences_by_hand():
    base, ours = rate_rows(case_rows(vnet=[[30, 10], [32, 12]], sscl=[[20, 0]]))
    assert (base.near.mean, base.near.difference, base.num_seeds) == (pytest.approx(0.21), None, 2)
    assert (ours.near.mean, ours.baseline, ours.num_cases) == (pytest.approx(0.10), "vnet", 2)
    assert ours.near.difference.mean == pytest.approx(-0.10)  # of the seed that both have
    assert ours.elsewhere.mean == pytest.approx(0.005)
    assert [ours.elsewhere.difference.low, ours.elsewhere.difference.high] == pytest.approx([0, 0])
    assert ours.share_near == pytest.approx(20 / 30)
    scores = {0: {"a": 0.2, "b": 0.0}}, {0: {"a": 0.3, "b": 0.1}, 1: {"a": 0.32, "b": 0.12}}
    assert ours.near.difference == statistics.paired_difference(*scores)


def test_a_case_without_a_border_is_left_out_of_that_rate_only():
    rows = case_rows(vnet=[[30, 0]], sscl=[[20, 0]])
    rows = [
        CaseRow(r.run, r.experiment, r.seed, r.case, BorderCounts(0, 0, 50, 1100) if r.case == "b" else r.counts)
        for r in rows
    ]
    _, ours = rate_rows(rows)
    assert ours.near.mean == pytest.approx(0.20)
    assert ours.near.difference.num_cases == 1
    assert ours.elsewhere.mean == pytest.approx((5 / 1000 + 50 / 1100) / 2)
    assert "near the border are of 1 of 2 cases" in markdown(border_table(rate_rows(rows)))


def test_a_missed_case_improves_no_rate():
    """An empty mask has 2 wrong voxels elsewhere where the poor one had 5."""
    poor = case_rows(vnet=[[30, 10]], sscl=[[90, 10]])
    missed = [replace(r, counts=BorderCounts(50, 100, 2, 1000), failed=True) if r == poor[2] else r for r in poor]
    for region in ("near", "elsewhere"):
        before, after = (getattr(rate_rows(rows)[1], region) for rows in (poor, missed))
        assert before.mean < after.mean == pytest.approx((1 + {"near": 0.10, "elsewhere": 0.005}[region]) / 2)
        assert before.difference.mean < after.difference.mean
    table = border_table(rate_rows(missed))
    assert table.rows[1][3] == "1"
    assert "100 %" in " ".join(table.footnotes)
    assert border_csv(missed).splitlines()[3].endswith(",50,100,2,1000,1")


def test_table_in_percent_and_names_as_text():
    rows = case_rows(**{"vnet": [[30, 10]], "<b>|x": [[20, 0]]})
    table = border_table(rate_rows(rows), ["a note"])
    assert table.rows[0] == ["vnet", "1", "2", "0", "20.00", "baseline", "0.5000", "baseline", "80.0"]
    assert table.rows[1][:7] == ["<b>|x", "1", "2", "0", "10.00", "-10.00 (-10.00 to -10.00)", "0.5000"]
    page = MarkdownIt("commonmark").enable("table").render(markdown(table))
    assert "<td>&lt;b&gt;|x</td>" in page
    assert "With one seed" in page
    assert "<p>a note</p>" in page
    assert "With one seed" not in markdown(border_table(rate_rows(case_rows(vnet=[[30, 10]] * 2))))
    assert border_csv(rows).splitlines()[1] == "vnet-0,vnet,0,a,30,100,5,1000,0"


def test_dots_and_intervals_stand_where_the_numbers_are():
    def row(name, mean):
        interval = None if mean is None else statistics.Interval(mean, mean - 0.01, mean + 0.02, 2, 1)
        return RateRow(name, "vnet", 1, 2, 0, Rate(0.2, interval), Rate(0.001, interval), 0.5)

    svg = paper_figures.border_rates([row("vnet", None), row("<dtc>", -0.05), row("sscl", -0.1)]).decode()
    for text in ("&lt;dtc&gt;", "sscl", "near the border (vnet: 20 %)", "elsewhere (vnet: 0.1 %)"):
        assert f">{text}</text>" in svg
    assert "$" not in svg
    assert svg == paper_figures.border_rates([row("vnet", None), row("<dtc>", -0.05), row("sscl", -0.1)]).decode()


# light


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 1.0, 1.5)])
def test_a_sphere_is_round_brightest_in_the_middle_and_symmetric(spacing):
    shape = [round(45 / step) for step in spacing]
    places = [step * (np.arange(n) - (n - 1) / 2) for n, step in zip(shape, spacing, strict=True)]
    x, y, z = np.meshgrid(*places, indexing="ij")
    view = surface_view(x**2 + y**2 + z**2 < 20**2, spacing, 160)
    rows, columns = np.nonzero(~np.isnan(view))
    assert np.ptp(rows) == pytest.approx(np.ptp(columns), abs=3)
    for turned in (view[::-1], view[:, ::-1]):
        assert np.nanmedian(np.abs(view - turned)) < 0.02
        assert (np.isnan(view) != np.isnan(turned)).sum() < 0.02 * len(rows)
    middle = np.array(view.shape) / 2 - 0.5
    radius = np.hypot(rows - middle[0], columns - middle[1])
    rings = [
        view[rows, columns][(radius >= inner) & (radius < inner + 10)].mean()
        for inner in range(0, int(radius.max()), 10)
    ]
    assert (np.diff(rings) < 0).all()
    assert rings[0] > 2 * rings[-1]


def test_right_is_left_head_is_up_and_near_hides_far():
    def light(*box):
        mask = np.zeros((30, 30, 30), bool)
        mask[box] = True
        return surface_view(mask, (1, 1, 1), 120)

    full, high, low = slice(5, 25), slice(22, 28), slice(2, 8)
    rows, columns = (np.nonzero(~np.isnan(light(high, full, full)))[axis].mean() for axis in (0, 1))
    assert columns < 60
    assert np.nonzero(~np.isnan(light(full, full, high)))[0].mean() < rows
    front, back = light(full, high, full), light(full, low, full)
    assert np.nanmean(front) > np.nanmean(back)  # +y is the patient's front: nearer to the eye, hence brighter
    both = np.zeros((30, 30, 30), bool)
    both[full, low, full] = both[full, high, full] = True
    seen = surface_view(both, (1, 1, 1), 120)
    covered = ~np.isnan(front)
    inner = covered & ~np.isnan(np.roll(front, 4, 0)) & ~np.isnan(np.roll(front, -4, 0))
    np.testing.assert_allclose(seen[inner], front[inner], atol=1e-3)


def test_an_empty_mask_is_dark():
    assert np.isnan(surface_view(np.zeros((4, 5, 6), bool), (1, 1, 1), 20)).all()


# pictures


def scene():
    """Noise, a cube, and two methods: one leaves out the cube's half, one is right."""
    image = np.random.default_rng(0).normal(size=(12, 12, 12))
    half = cube()
    half[:6] = 0
    return image, cube(), {"half <b>": half, "right": cube()}, (4.0, 4.0, 4.0)


def is_red(pixels):
    return (pixels[..., 0] > 0.5) & (pixels[..., 1] < 0.3)


def test_error_maps_are_red_where_voxels_are_wrong():
    page = imread(io.BytesIO(paper_figures.error_maps(*scene())))
    assert page.shape[1] == 2 * (240 + 12) + 12
    red = is_red(page)
    drawn = 18 * 20**2  # of 12 x 12 voxels in 240 pixels, 3 x 6 are wrong
    assert 0.8 * drawn < red.sum() <= drawn  # the outline is drawn over them
    assert not red[:, 264:].any()
    _, columns = np.nonzero(red)
    assert (columns.min(), columns.max()) == (12 + 60 + 60, 12 + 60 + 119)  # the patient's left half, on the right


def test_error_maps_say_method_slice_and_counts():
    svg = paper_figures.error_maps(*scene(), form="svg").decode()
    assert ">half &lt;b&gt;</text>" in svg
    # of x = 3 to 5, y = 3 to 8 the 2 voxels at x = 5, y = 5 and 6 lie deeper; so they do in z = 5 and 6 alone
    for text in (
        "18 wrong voxels",
        "(16 near the border)",
        "in the scan 108 (104)",
        "0 wrong voxels",
    ):
        assert f">{text}</" in svg
    assert "Axial slice 6," in svg  # 3 to 8 cross the cube, with 18 each: the middle one


def test_side_by_side_shows_a_slice_and_a_surface_of_each_and_of_the_truth():
    arguments = scene()
    data = paper_figures.side_by_side(*arguments)
    assert data == paper_figures.side_by_side(*arguments)
    page = imread(io.BytesIO(data))[..., :3]
    assert page.shape[1] == 3 * (240 + 12) + 12
    surfaces = page[-240:]
    panels = [surfaces[:, 12 + 252 * n : 252 * (n + 1)] for n in range(3)]
    covered = [(panel < 0.95).any(axis=2).sum() for panel in panels]
    assert 0.3 < covered[0] / covered[1] < 0.85
    assert (panels[1] == panels[2]).all()
    assert not is_red(page).any()
    svg = paper_figures.side_by_side(*arguments, form="svg").decode()
    assert ">ground truth</text>" in svg


def test_more_methods_than_fit_go_to_a_new_line():
    image, reference, _, spacing = scene()
    sizes = [
        imread(
            io.BytesIO(paper_figures.error_maps(image, reference, {f"m{i}": cube() for i in range(n)}, spacing))
        ).shape
        for n in (7, 8)
    ]
    assert sizes[0][1] == sizes[1][1]
    assert sizes[1][0] > sizes[0][0] + 240


def test_a_scan_without_an_organ_has_pictures():
    image, _, _, spacing = scene()
    empty = np.zeros((12, 12, 12), np.uint8)
    for draw in (paper_figures.error_maps, paper_figures.side_by_side):
        assert imread(io.BytesIO(draw(image, empty, {"none": empty}, spacing))).size


def test_threshold_curves_have_four_panels_and_mark_what_failed():
    def scores(value):
        return {"dice": value, "jaccard": value, "hd95_medpy_voxel": value, "asd_medpy_voxel": value}

    points = {"foreground": [(0.9, scores(3.0)), (0.5, scores(1.0))], "confident": [(0.5, scores(2.0))]}
    svg = paper_figures.threshold_curves(points).decode()
    for text in ("Dice ↑", "Jaccard ↑", "95HD medpy, voxel ↓", "ASD medpy, voxel ↓", "foreground", "confident"):
        assert svg.count(f">{text}</text>") == 1
    assert "∞" not in svg
    points["confident"].append((0.9, scores(1.0) | {"hd95_medpy_voxel": float("inf")}))
    assert paper_figures.threshold_curves(points).decode().count("∞") == 1


# the stage


@pytest.fixture(scope="module")
def runs(tiny, trained, train_tiny, tmp_path_factory):
    """Two methods, one of them with two seeds, whose predictions are references with known mistakes."""
    folder = tmp_path_factory.mktemp("figure_runs")
    paths = {
        "sscl_0": shutil.copytree(trained, folder / "sscl_0"),
        "sscl_1": train_tiny(folder / "sscl_1", seed=1),
        "vnet_0": train_tiny(folder / "vnet_0", method="vnet"),
    }
    for number, path in enumerate(paths.values()):
        (path / "predictions").mkdir()
        for case in TEST:
            reference = read_label(tiny.source / f"labelsTr/{case}.nii.gz")
            labels = np.roll(reference.array[0], number, axis=0)
            labels[0, 0, : number + (case == "t1")] = 1
            write_label(path / f"predictions/{case}.nii.gz", labels, reference)
        evaluate(path / "predictions", tiny.dataset)
    return list(paths.values())


def test_stage_writes_pictures_and_counts(tiny, runs, tmp_path):
    written = figures(runs, tmp_path / "out")
    names = {path.name for path in written}
    assert names == {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"border.csv", "border.md", "border.svg", "fig1_t1.png", "fig5_t1.png"}  # t1 has the lower Dice
    for picture in ("fig1_t1.png", "fig5_t1.png"):
        assert imread(tmp_path / "out" / picture).shape[2] == 4
    assert is_red(imread(tmp_path / "out/fig1_t1.png")).any()
    rows = list(csv.DictReader((tmp_path / "out/border.csv").read_text().splitlines()))
    assert [(row["method"], row["seed"], row["case"]) for row in rows] == [
        (method, seed, case)
        for (method, seed), case in itertools.product([("sscl", "0"), ("sscl", "1"), ("vnet", "0")], TEST)
    ]
    for row, (run, case) in zip(rows, itertools.product(runs, TEST), strict=True):
        truth = read_label(tiny.source / f"labelsTr/{case}.nii.gz").array[0]
        wrong = read_label(run / f"predictions/{case}.nii.gz").array[0] != truth
        assert int(row["wrong_near"]) + int(row["wrong_elsewhere"]) == wrong.sum()
        assert int(row["wrong_elsewhere"]) >= runs.index(run) + (case == "t1")
        assert int(row["voxels_near"]) == near_by_shifts(truth).sum()
        assert int(row["wrong_near"]) == (wrong & near_by_shifts(truth)).sum()
    table = (tmp_path / "out/border.md").read_text()
    assert "| vnet | 1 | 2 |" in table
    assert "Differences to sscl" in table


def near_by_shifts(labels):
    """Another way to the same: compare with every neighbour at most 2 away."""
    near = np.zeros(labels.shape, bool)
    padded = np.pad(labels, 2, mode="edge")  # the edge's copy is of the voxel's own class or of one that is nearer
    for step in itertools.product(range(-2, 3), repeat=3):
        if sum(s * s for s in step) <= 4:
            window = tuple(slice(2 + s, 2 + s + n) for s, n in zip(step, labels.shape, strict=True))
            near |= padded[window] != labels
    return near


def test_named_cases_are_drawn(runs, tmp_path):
    names = {path.name for path in figures(runs[:1], tmp_path, ["t2"])}
    assert {"fig1_t2.png", "fig5_t2.png"} < names
    with pytest.raises(UserError, match="case 't3' is unknown"):
        figures(runs[:1], tmp_path, ["t3"])


@pytest.mark.parametrize("place", ["source", "source/labelsTr", "dataset"])
def test_nothing_is_written_among_scans_and_masks(place, tiny, runs, tmp_path):
    out = shutil.copytree(tiny.dataset.parent / place, tmp_path / "out")
    before = sorted(out.iterdir())
    with pytest.raises(UserError, match=r"scans or masks lie in this folder|another stage"):
        figures(runs, out)
    assert sorted(out.iterdir()) == before


def test_equal_runs_write_equal_bytes(runs, tmp_path):
    one, two = (sorted(figures(runs[:2], tmp_path / name)) for name in ("one", "two"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


@pytest.mark.parametrize(
    ("mistake", "message"),
    [("not evaluated", "not evaluated"), ("other cases", "t2: not scored"), ("lost mask", "no prediction of t2")],
)
def test_mistakes_are_named_before_anything_is_written(mistake, message, runs, tmp_path):
    run = tmp_path / "copy"
    shutil.copytree(runs[2], run)
    if mistake == "not evaluated":
        shutil.rmtree(run / "predictions/scores")
    elif mistake == "other cases":
        scores = run / "predictions/scores/scores.csv"
        scores.write_text("\n".join(line for line in scores.read_text().splitlines() if not line.startswith("t2")))
        stage = read_sealed(scores.with_name("stage.json"))
        stage["files"]["scores.csv"] = sha256(scores)
        write_sealed(scores.with_name("stage.json"), stage)
    else:
        (run / "predictions/t2.nii.gz").unlink()
    with pytest.raises(UserError, match=message):
        figures([runs[0], run], tmp_path / "out")
    assert not (tmp_path / "out").exists()
