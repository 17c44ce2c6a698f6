"""What each of SSCL's modules gives beside the plain mean teacher, or on the masks alone: paired differences of Dice.

python benchmarks/module_gains.py RECORDS     (docs/results/runs; seconds)
"""

import sys
from pathlib import Path

from sscl.report.statistics import paired_difference
from sscl.stages.record import read_records
from sscl.studies.compare import Group, grouped

MODULES = {"REC": (False, True), "FFC": (True, False), "both": (True, True)}
"""spectral, reconstructor."""


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
            gain = paired_difference(with_it.dice, without.dice)
            cells.append(f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}], {gain.num_seeds} seeds")
        print(f"| {name} | {' | '.join(cells)} |")


def group_with(groups: list[Group], **switches: bool) -> Group:
    """The one with these switches, all else as in the preset."""
    (plain,) = (group for group in groups if group.label == "sscl")
    (found,) = (group for group in groups if dict(group.config) == {**plain.config, **switches})
    return found


main(Path(sys.argv[1]))
