"""What each part of SSCL gives: paired differences of Dice between records; also without the three hardest test cases.

python benchmarks/module_gains.py RECORDS     (docs/results/runs; seconds)
"""

import sys
from pathlib import Path

from sscl.report.statistics import Scores, paired_difference
from sscl.stages.record import read_records
from sscl.studies.compare import Group, grouped

MODULES = {"REC": (False, True), "FFC": (True, False), "both": (True, True)}
"""spectral, reconstructor."""


NEITHER = {"spectral": False, "reconstructor": False}
PAIRS = {
    "unlabelled scans, SSCL": ({}, {"unlabelled": False}),
    "unlabelled scans, REC alone": ({"spectral": False}, {"spectral": False, "unlabelled": False}),
    "unlabelled scans, FFC alone": ({"reconstructor": False}, {"reconstructor": False, "unlabelled": False}),
    "unlabelled scans, neither module": (NEITHER, NEITHER | {"unlabelled": False}),
    "own pseudo-labels, no teacher, SSCL": ({"teacher": False}, {"unlabelled": False}),
    "own pseudo-labels, no teacher, neither": (NEITHER | {"teacher": False}, NEITHER | {"unlabelled": False}),
    "teacher instead of own pseudo-labels, SSCL": ({}, {"teacher": False}),
    "teacher instead of own pseudo-labels, neither": (NEITHER, NEITHER | {"teacher": False}),
}
HARD = ("SN4LF8", "OIRDLE", "UZUZZT")
"""Test cases on which `vnet` fails, by the beginnings of their names."""


def main(records: Path) -> None:
    found = [result for result in read_records(records) if result.recipe.method == "sscl"]
    groups = [group for group in grouped(found) if group.masks == 8]
    print("| module | beside the mean teacher | masks alone |\n|---|---|---|")
    for name, (spectral, reconstructor) in MODULES.items():
        cells = []
        for unlabelled in (True, False):
            with_it, without = (
                group_with(groups, spectral=s, reconstructor=r, unlabelled=unlabelled)
                for s, r in ((spectral, reconstructor), (False, False))
            )
            cells.append(gain(with_it.dice, without.dice))
        print(f"| {name} | {' | '.join(cells)} |")
    print("\n| what | all cases | without the three |\n|---|---|---|")
    for name, sides in PAIRS.items():
        ours, baseline = (group_with(groups, **switches).dice for switches in sides)
        print(f"| {name} | {gain(ours, baseline)} | {gain(easy(ours), easy(baseline))} |")


def gain(ours: Scores, baseline: Scores) -> str:
    found = paired_difference(ours, baseline)
    seeds = f"{found.num_seeds} seed{'s' if found.num_seeds > 1 else ''}"
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}], {seeds}"


def easy(dice: Scores) -> Scores:
    return {seed: {c: value for c, value in cases.items() if not c.startswith(HARD)} for seed, cases in dice.items()}


def group_with(groups: list[Group], **switches: bool) -> Group:
    """The one with these switches, all else as in the preset."""
    (plain,) = (group for group in groups if group.label == "sscl")
    (found,) = (group for group in groups if dict(group.config) == {**plain.config, **switches})
    return found


main(Path(sys.argv[1]))
