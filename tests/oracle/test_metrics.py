"""The metrics against other libraries' numbers and hand values, and what an empty mask scores."""

import csv
import io
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from sscl.core.errors import UserError
from sscl.metrics import surface, table
from sscl.metrics.overlap import dice, jaccard, require_masks, volume_ml

DISTANCES = ("hd95_medpy_voxel", "asd_medpy_voxel", "hd95_standard_mm", "assd_standard_mm")

# From runs of MedPy 0.5.2 (dc, jc, hd95, asd prediction to reference, assd; with voxelspacing) and of Metrics Reloaded
# cb38dfc (hd95), numpy 2.4.6, scipy 1.17.1:
# dice, jaccard, medpy hd95, medpy asd, Metrics Reloaded hd95, medpy assd, voxels of the prediction and the reference
ORACLE = {
    "M01": (1, 1, 0, 0, 0, 0, 1000, 1000),
    "M02": (0, 0, 3, 3, 3, 3, 1, 1),
    "M03": (0.8, 0.666666667, 2, 0.68852459, 2, 0.68852459, 1000, 1000),
    "M04": (0.8, 0.666666667, 6, 1.696721311, 6, 1.696721311, 1000, 1000),
    "M05": (0.8, 0.666666667, 2, 0.713114754, 2, 0.713114754, 1000, 1000),
    "M06": (0.99950025, 0.999000999, 0, 0.056672419, 0, 0.028365213, 1001, 1000),
    "M07": (0.052580331, 0.027, 10.488088482, 7, 10.488088482, 8.386311431, 216, 8000),
    "M08": (0.052580331, 0.027, 10.488088482, 8.483506698, 10.488088482, 8.386311431, 8000, 216),
    "M09": (0.996015936, 0.992063492, 0, 0.459861077, 0, 0.232862258, 8064, 8000),
    "M10": (0.738978307, 0.586015538, 2.236067977, 1.911001302, 2.236067977, 1.880996178, 7208, 4224),
    "M11": (0.653061224, 0.484848485, 1.414213562, 0, 1.414213562, 0.314705692, 4224, 2048),
    "M12": (0.888888889, 0.8, 2, 0.461783439, 2, 0.546546547, 3200, 4000),
    "M13": (0.956521739, 0.916666667, 1, 0.14619883, 1, 0.172804533, 1584, 1728),
    "M14": (0.8, 0.666666667, 2, 0.3, 2, 0.3, 100, 100),
    "M14b": (0.8, 0.666666667, 2, 1, 2, 1, 100, 100),
    "M15": (0.731748727, 0.576974565, 5, 2.954000988, 5, 2.954000988, 4712, 4712),
    "M16": (0.666666667, 0.5, 1, 0, 1, 0.333333333, 144, 288),
    "M17": (0.702471773, 0.541392286, 3.441980091, 0.989713103, 3.741657387, 1.037123273, 6554, 6554),
    "M18": (0.702471773, 0.541392286, 4.643869798, 1.161687973, 4.980963762, 1.132419875, 6554, 6554),
    "M19": (0.188405797, 0.104, 2.828427125, 0.5, 2.828427125, 1.493037945, 13, 125),
    "M23": (0.986679822, 0.973709834, 0, 1.542095476, 22.045407685, 0.797161654, 8216, 8000),
}
SPACINGS = {
    **{"M04": (3, 1, 1), "M05": (1, 1, 3), "M14": (5, 1, 1), "M14b": (1, 1)},
    **{"M15": (5, 0.7, 0.7), "M18": (2.5, 0.8, 0.8)},
}


def _box(shape, *bounds):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(low, high) for low, high in bounds)] = True
    return mask


def _cube(size, low, high):
    return _box((size,) * 3, *[(low, high)] * 3)


def _radius(shape, centre, spacing=(1, 1, 1)):
    axes = np.meshgrid(*[(np.arange(n) - c) * s for n, c, s in zip(shape, centre, spacing, strict=True)], indexing="ij")
    return np.sqrt(sum(axis**2 for axis in axes))


def _blobs():
    random = np.random.RandomState(0)
    f, h = (ndimage.gaussian_filter(random.randn(32, 32, 32), 3) for _ in range(2))
    mixed = f + 0.6 * h
    return mixed > np.quantile(mixed, 0.8), f > np.quantile(f, 0.8)


def _ct(slice_number):
    return _radius((16, 48, 48), (slice_number, 23.5, 23.5), (5, 0.7, 0.7)) <= 14


def _masks(name):
    """Prediction and reference of one numerical case."""
    cube = _cube(40, 10, 20)
    ball = _radius((32,) * 3, (15.5,) * 3)
    cross = sum(np.abs(axis - 4) for axis in np.indices((9, 9, 9))) <= 2
    cross &= sum(axis != 4 for axis in np.indices((9, 9, 9))) <= 1
    shifted = (_box((40,) * 3, (12, 22), (10, 20), (10, 20)), cube)
    square = (_box((24, 24), (6, 16), (6, 16)), _box((24, 24), (8, 18), (6, 16)))
    pairs = {
        "M01": (cube, cube),
        "M02": (_cube(40, 10, 11), _box((40,) * 3, (13, 14), (10, 11), (10, 11))),
        **dict.fromkeys(("M03", "M04", "M05"), shifted),
        "M06": (cube | _cube(40, 35, 36), cube),
        "M07": (_cube(40, 17, 23), _cube(40, 10, 30)),
        "M08": (_cube(40, 10, 30), _cube(40, 17, 23)),
        "M09": (_cube(40, 5, 25) | _cube(40, 33, 37), _cube(40, 5, 25)),
        "M10": (ball <= 12, ball <= 10),
        "M11": (ball <= 10, (ball > 8) & (ball <= 10)),
        "M12": (_box((20,) * 3, (0, 8), (0, 20), (0, 20)), _box((20,) * 3, (0, 10), (0, 20), (0, 20))),
        "M13": (_box((12,) * 3, (0, 11), (0, 12), (0, 12)), _cube(12, 0, 12)),
        "M14": (square[0][None], square[1][None]),
        "M14b": square,
        "M15": (_ct(8), _ct(7)),
        "M16": (_box((12, 20, 20), (5, 6), (4, 16), (4, 16)), _box((12, 20, 20), (5, 7), (4, 16), (4, 16))),
        **dict.fromkeys(("M17", "M18"), _blobs() if name in ("M17", "M18") else None),
        "M19": (cross, _cube(9, 2, 7)),
        "M23": (_cube(40, 2, 22) | _cube(40, 32, 38), _cube(40, 2, 22)),
    }
    return pairs[name]


def _readings(prediction, reference, spacing):
    distances = surface.border_distances(prediction, reference, spacing)
    return tuple(
        read(distances) for read in (surface.hd95_pooled, surface.asd_directed, surface.hd95_max, surface.assd)
    )


@pytest.mark.parametrize("name", ORACLE)
def test_other_libraries_numbers(name):
    prediction, reference = _masks(name)
    *expected, voxels_p, voxels_r = ORACLE[name]
    assert (prediction.sum(), reference.sum()) == (voxels_p, voxels_r), "the masks are those of the oracle"
    spacing = SPACINGS.get(name, (1, 1, 1))
    ours = (dice(prediction, reference), jaccard(prediction, reference), *_readings(prediction, reference, spacing))
    assert ours == pytest.approx(expected, abs=1e-6)


def test_the_table_uses_voxels_for_medpy_and_mm_for_standard():
    prediction, reference = _masks("M04")
    (score,) = table.score_case("a", prediction.astype(np.uint8), reference.astype(np.uint8), (3, 1, 1), {1: "cube"})
    assert [score.values[name] for name in DISTANCES] == pytest.approx(
        [ORACLE["M03"][2], ORACLE["M03"][3], ORACLE["M04"][4], ORACLE["M04"][5]], abs=1e-6
    )
    # reversed spacing would be 2.0 mm
    assert score.values["hd95_standard_mm"] == pytest.approx(6)
    assert score.volume_reference_ml == pytest.approx(1000 * 3 / 1000)


def test_nsd_by_hand():
    """Two voxels 2 mm apart: within 2 mm, not within 1.9; a third, 6 mm away, is one of three."""
    row = np.zeros((9, 1, 1), bool)
    prediction, reference = row.copy(), row.copy()
    prediction[1] = reference[2] = True
    distances = surface.border_distances(prediction, reference, (2, 1, 1))
    assert surface.nsd(distances, 2) == 1
    assert surface.nsd(distances, 1.9) == 0
    prediction[5] = True
    assert surface.nsd(surface.border_distances(prediction, reference, (2, 1, 1)), 2) == pytest.approx(2 / 3)


def test_nsd_is_not_lost_to_rounding():
    """3 voxels of 0.1 mm are 0.30000000000000004 mm, and within 0.3 mm."""
    prediction, reference = _box((9, 2, 2), (1, 2), (0, 1), (0, 1)), _box((9, 2, 2), (4, 5), (0, 1), (0, 1))
    assert surface.nsd(surface.border_distances(prediction, reference, (0.1, 1, 1)), 0.3) == 1


def test_volume_by_hand():
    assert volume_ml(_cube(20, 0, 10), (1, 2, 0.5)) == 1.0


def test_a_single_slice_is_measured_in_its_plane():
    prediction, reference = _masks("M14")
    (score,) = table.score_case("a", prediction.astype(int), reference.astype(int), (5, 1, 1), {1: "square"})
    assert score.values["asd_medpy_voxel"] == pytest.approx(ORACLE["M14b"][3])
    assert score.values["assd_standard_mm"] == pytest.approx(ORACLE["M14b"][5])


def test_masks_are_not_broadcast_nor_merged():
    mask = np.ones((20, 20, 20), bool)
    with pytest.raises(UserError, match="shape"):
        dice(mask, mask[:1])
    with pytest.raises(UserError, match="shape"):
        surface.border_distances(mask, mask[:, :, :1], (1, 1, 1))
    with pytest.raises(UserError, match="boolean"):
        require_masks(mask.astype(np.uint8) * 2, mask)
    with pytest.raises(UserError, match=r"case 'a'.*\(20, 20, 20\).*\(1, 20, 20\)"):
        table.score_case("a", mask.astype(int), mask[:1].astype(int), (1, 1, 1), {1: "x"})


WORST = {"dice": 0.0, "jaccard": 0.0, **dict.fromkeys(DISTANCES, math.inf), "nsd_2mm": 0.0}


@pytest.mark.parametrize(
    ("prediction", "reference", "status", "values"),
    [
        (0, 1, "failed", WORST),
        (1, 0, "failed", WORST),
        (0, 0, "not_applicable", dict.fromkeys(WORST)),
        (None, 1, "missing", WORST),
        (None, 0, "missing", WORST),
        (1, 1, "ok", {"dice": 1, "jaccard": 1, **dict.fromkeys(DISTANCES, 0), "nsd_2mm": 1}),
    ],
)
def test_the_matrix_of_empty_masks(prediction, reference, status, values):
    cube = _cube(20, 5, 10).astype(np.uint8)
    answer = None if prediction is None else cube * prediction
    (score,) = table.score_case("a", answer, cube * reference, (1, 1, 1), {1: "organ"})
    assert score.status == status
    assert dict(score.values) == values


def test_a_prediction_without_any_class_is_right_about_none():
    """Both masks of class 2 are empty: right where class 1 was found, or is absent too."""
    organ, empty = _cube(20, 5, 10).astype(int), np.zeros((20,) * 3, int)
    statuses = {}
    for name, pair in {"silent": (empty, organ), "found": (organ, organ), "absent": (empty, empty)}.items():
        scores = table.score_case("a", *pair, (1, 1, 1), {1: "organ", 2: "tumour"})
        statuses[name] = [score.status for score in scores]
    assert statuses["silent"] == ["failed", "failed"]
    assert statuses["found"] == ["ok", "not_applicable"]
    assert statuses["absent"] == ["not_applicable", "not_applicable"]
    # what is ignored is not found
    ignored = np.where(organ, 7, 0)
    ignored[15, 15, 15] = 1
    (score,) = table.score_case("a", organ, ignored, (1, 1, 1), {1: "organ"}, ignore_label=7)
    assert score.status == "failed"


def test_distances_of_empty_masks():
    cube, empty = _cube(20, 5, 10), np.zeros((20,) * 3, bool)
    assert surface.border_distances(empty, empty, (1, 1, 1)) is None
    assert dice(empty, empty) is None
    assert jaccard(empty, empty) is None
    for pair in ((cube, empty), (empty, cube)):
        assert _readings(*pair, (1, 1, 1)) == (math.inf,) * 4
        assert surface.nsd(surface.border_distances(*pair, (1, 1, 1)), 100) == 0


def test_ignored_voxels_count_in_neither_mask():
    reference = _cube(20, 5, 10).astype(np.uint8)
    prediction = reference.copy()
    prediction[12:] = 1
    reference[12:] = 7
    (score,) = table.score_case("a", prediction, reference, (1, 1, 1), {1: "organ"}, ignore_label=7)
    assert score.values["dice"] == 1
    assert score.volume_prediction_ml == score.volume_reference_ml == 0.125


def _score(values, status, shape=(10, 10, 10), volume=1.0):
    return table.Score("a", "organ", status, values, volume, volume, shape, (1.0, 1.0, 1.0))


def test_summary_by_hand():
    """Distances 2, 4 and one failure; volume 10 x 10 x 10 mm, diagonal 17.32; one case not applicable."""
    good = {**WORST, "dice": 0.9, "hd95_standard_mm": 2.0}
    fair = {**WORST, "dice": 0.6, "hd95_standard_mm": 4.0}
    scores = [
        *(_score(good, "ok"), _score(fair, "ok"), _score(WORST, "missing")),
        _score(dict.fromkeys(WORST), "not_applicable"),
    ]
    lines = {line.measure: line for line in table.summarise(scores)}
    overlap, distance = lines["dice"], lines["hd95_standard_mm"]
    assert (overlap.n, overlap.failed, overlap.missing, overlap.not_applicable) == (3, 1, 1, 1)
    assert overlap.mean == overlap.mean_failed_as_diagonal == pytest.approx(0.5)
    assert overlap.std == pytest.approx(math.sqrt((0.4**2 + 0.1**2 + 0.5**2) / 2))
    assert (distance.mean, distance.std, distance.median) == (math.inf, math.inf, 4)
    assert distance.mean_failed_as_diagonal == pytest.approx((2 + 4 + math.sqrt(300)) / 3)


def test_the_summary_of_nothing_applicable_is_empty_cells():
    lines = table.summarise([_score(dict.fromkeys(WORST), "not_applicable")])
    assert {(line.n, line.mean, line.median, line.mean_failed_as_diagonal) for line in lines} == {(0, None, None, None)}


def _csv_rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_cells():
    row, nothing = _csv_rows(
        table.scores_csv([_score(WORST, "failed"), _score(dict.fromkeys(WORST), "not_applicable")])
    )
    assert row["hd95_standard_mm"] == "inf"
    assert row["dice"] == "0.0"
    assert {nothing[name] for name in WORST} == {""}
    assert (row["shape_voxel"], row["spacing_mm"]) == ("10x10x10", "1x1x1")
    assert list(row) == [
        *("case", "class", "status", "dice", "jaccard", *DISTANCES, "nsd_2mm"),
        *("volume_prediction_ml", "volume_reference_ml", "shape_voxel", "spacing_mm"),
    ]


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", " =1+1", "\t=1+1"])
def test_a_case_is_no_formula(name):
    """A spreadsheet runs a cell that begins with = + - @."""
    (row,) = _csv_rows(table.scores_csv([replace(_score(WORST, "failed"), case=name, label=name)]))
    assert row["case"] == row["class"] == f"'{name}"


def test_numbers_survive_the_csv_exactly():
    values = {**WORST, "dice": 0.1 + 0.2}
    (row,) = _csv_rows(table.scores_csv([_score(values, "ok")]))
    assert float(row["dice"]) == 0.1 + 0.2


def test_the_definitions_name_convention_unit_and_spacing():
    score = replace(_score(WORST, "failed"), spacing_mm=(1.25, 1.25, 3.0))
    text = table.definitions([score], 1.5)
    for part in ("medpy", "unit voxel", "standard", "unit mm", "1.25x1.25x3 mm", "within 1.5 mm"):
        assert part in text


def test_the_printed_summary():
    head, first, *_ = table.summary_table(table.summarise([_score({**WORST, "dice": 0.25}, "ok")]))
    assert head[:4] == ["class", "measure", "n", "mean"]
    assert first == ["organ", "dice", "1", "0.2500", "-", "0.2500", "0.2500", "0", "0", "0"]
