"""The paper's tables: facts typed a second time, what any mean scores must obey, and our numbers beside them."""

import csv
import io
import math
from pathlib import Path

import pytest

from sscl.core.errors import UserError
from sscl.methods import METHODS, method_class
from sscl.report import published
from sscl.report.layout import Table, csv_text, markdown
from sscl.report.paper_tables import Ours, Spread, paper_table
from sscl.report.published import CAVEATS, OF_TABLE, ROWS, TITLES, match

ROOT = Path(__file__).parents[2]
HALF_UNIT = 0.0005
"""The paper rounds Dice and Jaccard to three digits."""


def name_of(row: published.Row) -> str:
    return f"{row.table}-{row.name}-{row.masks}"


def settings(**values: bool | float) -> published.Settings:
    return frozenset(values.items())


SPOT = [
    ("table1", "vnet", 8, {}, (0.786, 0.670, 21.20, 6.07)),
    ("table1", "vnet", 80, {}, (0.914, 0.844, 5.48, 1.51)),
    ("table1", "ua_mt", 8, {}, (0.843, 0.735, 13.83, 3.36)),
    ("table1", "ucmt", 8, {}, (0.881, 0.791, 9.14, 3.06)),
    ("table1", "sscl", 8, {}, (0.893, 0.807, 7.40, 2.03)),
    ("table1", "gbdl", 16, {}, (0.894, 0.822, 4.03, 1.48)),
    ("table1", "ac_mt", 16, {}, (0.903, 0.824, 6.21, 1.76)),
    ("table1", "urpc", 16, {}, (0.887, 0.799, 12.73, 3.66)),
    ("table2", "vnet", 12, {}, (0.706, 0.567, 22.54, 6.29)),
    ("table2", "vnet", 62, {}, (0.818, 0.697, 5.13, 1.34)),
    ("table2", "advent", 12, {}, (0.753, 0.617, 11.72, 3.88)),
    ("table2", "comwin", 12, {}, (0.796, 0.670, 6.95, 1.34)),
    ("table2", "sscl", 12, {}, (0.806, 0.678, 5.83, 1.63)),
    ("table3", "ua_mt", 16, {}, (0.883, 0.802, 9.46, 2.89)),
    ("table3", "coranet", 16, {}, (0.898, 0.820, 7.23, 1.89)),
    ("table3", "sscl", 16, {}, (0.913, 0.843, 5.08, 1.30)),
    ("table4", "vnet", 8, {}, (0.831, 0.717, 21.46, 6.55)),
    ("table4", "vnet", 80, {}, (0.911, 0.836, 10.09, 2.67)),
    ("table4", "sscl", 8, {"spectral": False}, (0.867, 0.768, 14.86, 4.50)),
    ("table4", "sscl", 8, {"reconstructor": False}, (0.878, 0.784, 13.48, 3.62)),
    ("table5", "sscl", 8, {"lam": 2.0}, (0.887, 0.797, 11.82, 3.29)),
    ("table5", "sscl", 8, {"lam": 3.0}, (0.711, 0.560, 26.88, 9.43)),
    ("table6", "sscl", 8, {"alpha": 0.99}, (0.891, 0.805, 7.89, 2.04)),
    ("table6", "sscl", 16, {"alpha": 0.999}, (0.905, 0.828, 6.39, 1.94)),
]


@pytest.mark.parametrize(("table", "method", "masks", "values", "numbers"), SPOT)
def test_values_typed_again(table, method, masks, values, numbers):
    row = match(table, method, masks, settings(**values))
    assert row is not None
    assert (row.dice, row.jaccard, row.hd95, row.asd) == numbers


def test_every_printed_row_is_there_once():
    counts = {table: len(published.published(table)) for table in TITLES}
    assert counts == {"table1": 29, "table2": 11, "table3": 7, "table4": 5, "table5": 6, "table6": 4, "fig6": 0}
    assert len(set(ROWS)) == len(ROWS) == 62


SUMS = {
    "table1": (25.527, 22.946, 270.78, 74.48),
    "table2": (8.476, 7.012, 116.35, 29.34),
    "table3": (6.278, 5.77, 50.66, 14.28),
    "table4": (4.38, 3.912, 67.29, 19.37),
    "table5": (5.138, 4.538, 76.36, 24.3),
    "table6": (3.589, 3.26, 28.67, 8.45),
}
"""Of the numbers in the paper's text, added up by a program that does not know this package."""


def test_columns_add_up():
    """One wrong digit anywhere in a column would show."""
    sums = {
        table: tuple(
            round(sum(getattr(row, column) for row in published.published(table)), 3)
            for column in ("dice", "jaccard", "hd95", "asd")
        )
        for table in TITLES
        if table != "fig6"
    }
    assert sums == SUMS


def test_volumes_are_as_printed():
    """All training scans of a table: 80, 62, 160. V-Net has the labelled ones alone, but for one row of Table 2."""
    of = {"table1": 80, "table2": 62, "table3": 160, "table4": 80, "table5": 80, "table6": 80}
    odd = [row.name for row in ROWS if row.unlabelled and row.masks + row.unlabelled != of[row.table]]
    assert odd == []
    assert [row.name for row in ROWS if (row.method == "vnet") != (row.unlabelled == 0)] == ["VNet [18] (3DV 2016)"]


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_dice_and_jaccard_can_be_means_of_the_same_cases(row):
    """J = D / (2 - D) of each case is convex, so the mean J is at least that of the mean D, and never above it."""
    least = (row.dice - HALF_UNIT) / (2 - row.dice + HALF_UNIT)
    assert least <= row.jaccard + HALF_UNIT
    assert row.jaccard < row.dice


def test_a_high_jaccard_is_named_as_one():
    """Over .85 Dice, a mean Jaccard over .01 above that of equal cases."""
    high = [row for row in ROWS if row.dice > 0.85 and row.jaccard - row.dice / (2 - row.dice) > 0.01]
    assert high == [row for row in ROWS if "wide_cases" in row.caveats]
    assert {(row.table, row.method) for row in high} == {
        ("table1", "coranet"),
        ("table1", "gbdl"),
        *(("table3", method) for method in ("ua_mt", "sassnet", "double_ua", "tripled_ua")),
    }


def test_every_row_has_a_caveat_and_every_caveat_a_row():
    assert [row.name for row in ROWS if not row.caveats] == []
    assert {table for table, keys in OF_TABLE.items() if keys} == set(TITLES)
    used = {key for row in ROWS for key in row.caveats} | {key for keys in OF_TABLE.values() for key in keys}
    assert used == set(CAVEATS)


def test_methods_are_those_of_the_command_line_and_settings_theirs():
    assert {row.method for row in ROWS} == set(METHODS) - {"mean_teacher", "bcp"}
    fields = set(method_class("sscl").Config.model_fields)
    assert {name for row in ROWS for name, _ in row.settings} <= fields
    assert {row.method for row in ROWS if row.settings} == {"sscl"}


def test_defaults_are_those_of_the_method():
    config = method_class("sscl").Config()
    assert {(name, getattr(config, name)) for name in ("lam", "alpha", "threshold")} == published.DEFAULTS


@pytest.mark.parametrize("row", [row for row in ROWS if row.table in ("table1", "table2", "table3")], ids=name_of)
def test_the_page_of_the_method_has_the_same_numbers(row):
    overlaps = f"{row.dice:.3f}"[1:] + " / " + f"{row.jaccard:.3f}"[1:]
    page = (ROOT / "docs" / "methods" / f"{row.method}.md").read_text()
    assert f"| {row.masks} | {overlaps} / {row.hd95:.2f} / {row.asd:.2f} |" in page


def test_naming_a_default_is_the_same_as_leaving_it_out():
    assert (
        match("table5", "sscl", 8) == match("table5", "sscl", 8, settings(lam=0.5)) == published.published("table5")[0]
    )
    assert match("table1", "sscl", 8, settings(alpha=0.999)) == match("table1", "sscl", 8)


def test_no_row_is_matched_by_something_else():
    assert match("table1", "bcp", 8) is None
    assert match("table1", "sscl", 12) is None
    assert match("table1", "sscl", 8, settings(unlabelled=False)) is None
    with pytest.raises(UserError, match="Did you mean 'table1'"):
        published.published("table11")


OURS = Ours(Spread(0.81, 0.081), Spread(0.688, 0.11), Spread(6.5, 2.32), Spread(None, None), 5, 1, 8, 42)
SETTING = "LA at 1.25 mm, 50 scans for training."


def cells(table: Table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_text(table))))


def test_ours_stands_beside_the_printed_number():
    (row,) = (
        row for row in cells(paper_table("table1", {("ucmt", 8, settings()): OURS}, SETTING)) if row["seeds"] == "5"
    )
    assert row["Method"] == "UCMT [23] (IJCAI 2023)"
    assert (row["Labeled"], row["Unlabeled"]) == ("8", "72; ours 42")
    assert (row["Dice paper"], row["Dice ours"]) == ("0.881", "0.810 ± 0.081")
    assert (row["Jaccard paper"], row["Jaccard ours"]) == ("0.791", "0.688 ± 0.110")
    assert (row["95HD paper"], row["95HD ours"]) == ("9.14", "6.50 ± 2.32")
    assert (row["ASD paper"], row["ASD ours"]) == ("3.06", "∞")
    assert row["failed"] == "1"
    assert CAVEATS["own_masks"] in row["notes"]
    assert SETTING in row["notes"]


def test_what_was_not_run_has_no_number():
    rows = cells(paper_table("table3", {}, SETTING))
    assert [row["Dice paper"] for row in rows] == ["0.883", "0.891", "0.895", "0.887", "0.898", "0.911", "0.913"]
    columns = ("Dice ours", "Jaccard ours", "95HD ours", "ASD ours", "seeds", "failed")
    assert {row[column] for row in rows for column in columns} == {"not run"}


def test_rows_that_the_paper_lacks_come_below():
    named = Ours(**(vars(OURS) | {"name": "SSCL network, labelled only", "unlabelled": 0}))
    ours = {
        ("bcp", 8, settings()): OURS,
        ("sscl", 8, settings(unlabelled=False)): named,
        ("sscl", 8, settings(spectral=False, reconstructor=False)): OURS,
    }
    rows = cells(paper_table("table4", ours, SETTING))
    assert [row["Method"] for row in rows] == [
        "Baseline",
        "Upper-bound",
        "Baseline + REC",
        "Baseline + FFC",
        "SSCL",
        "bcp",
        "SSCL network, labelled only",
        "sscl, reconstructor=false, spectral=false",
    ]
    assert {row[f"{metric} paper"] for row in rows[5:] for metric in ("Dice", "Jaccard", "95HD", "ASD")} == {"–"}
    assert {row["Dice ours"] for row in rows[:5]} == {"not run"}
    assert [row["Unlabeled"] for row in rows[5:]] == ["42", "0", "42"]


def test_one_run_of_ours_stands_beside_both_printings_of_it():
    rows = cells(paper_table("table2", {("vnet", 12, settings()): OURS}, SETTING))
    assert [row["Method"] for row in rows if row["seeds"] == "5"] == ["VNet", "VNet [18] (3DV 2016)"]


def test_a_default_that_is_named_is_the_same_run_and_not_two():
    same = {("sscl", 8, settings()): OURS, ("sscl", 8, settings(lam=0.5)): OURS}
    assert [row["seeds"] for row in cells(paper_table("table5", same, SETTING))] == ["5"] + ["not run"] * 5
    other = Ours(**(vars(OURS) | {"seeds": 1}))
    with pytest.raises(AssertionError, match="two results"):
        paper_table("table5", same | {("sscl", 8, settings(lam=0.5)): other}, SETTING)


def test_figure_6_has_numbers_of_ours_only_and_says_so():
    table = paper_table("fig6", {("sscl", 8, settings(threshold=0.7)): OURS}, SETTING)
    assert table.head == ["Method", "Labeled", "Unlabeled", "Dice", "Jaccard", "95HD", "ASD", "seeds", "failed"]
    (row,) = cells(table)
    assert (row["Method"], row["Dice"], row["ASD"]) == ("sscl, threshold=0.7", "0.810 ± 0.081", "∞")
    assert CAVEATS["picture_only"] in markdown(table)


@pytest.mark.parametrize("name", TITLES)
def test_every_table_tells_of_both_settings_and_of_its_own_caveats(name):
    table = paper_table(name, {}, SETTING)
    scans = {"table2": "62", "table3": "160"}.get(name, "80")
    assert any(
        text.startswith("paper: full-size scans") and f" {scans} for training" in text for text in table.footnotes
    )
    assert any(text.startswith("ours: ") and SETTING in text for text in table.footnotes)
    assert [text for text in table.footnotes if text in CAVEATS.values()] == [CAVEATS[key] for key in OF_TABLE[name]]


def test_a_spread_without_one_and_a_score_that_is_no_number():
    alone = Ours(**(vars(OURS) | {"dice": Spread(0.5, None), "hd95": Spread(math.inf, math.inf)}))
    (row,) = cells(paper_table("fig6", {("sscl", 8, settings()): alone}, SETTING))
    assert (row["Dice"], row["95HD"]) == ("0.500", "∞")
    broken = Ours(**(vars(OURS) | {"dice": Spread(math.nan, None)}))
    with pytest.raises(AssertionError, match="never NaN"):
        paper_table("fig6", {("sscl", 8, settings()): broken}, SETTING)
