"""The tables of docs/results/la_half.md and methods.md, from the records that `every_method.yaml` leaves.

python benchmarks/la_half_tables.py docs/results/runs
"""

import json
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import yaml

from sscl.report.statistics import paired_difference
from sscl.report.tables import dice_by_case, read_scores

Run = dict[str, Any]


def main(records: Path) -> None:
    runs: dict[tuple[str, int], dict[int, Run]] = defaultdict(dict)
    for folder in sorted(path for path in records.iterdir() if path.is_dir()):
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
        if folder.name != f"{recipe['method']}_{len(recipe['labelled'])}_{recipe['seed']}":
            continue  # of a suite, with settings of its own
        if recipe["dataset"].startswith("data_") and recipe["plan"]["labels"] == ["background", "left_atrium"]:
            rows = read_scores((folder / "scores.csv").read_text(), str(folder))
            facts = json.loads((folder / "record.json").read_text())
            runs[recipe["method"], len(recipe["labelled"])][recipe["seed"]] = facts | {"rows": rows}
    print(
        "| method | masks | seeds | Dice | each seed | - `vnet`, same seeds | 95HD, mm | volume | it/s | MiB |\n"
        "|---|---|---|---|---|---|---|---|---|---|"
    )
    for (method, masks), seeds in sorted(runs.items(), key=lambda item: -mean_of(item[1])):
        difference, vnet = "", runs.get(("vnet", masks), {})
        if method != "vnet":
            same = {seed: dice(vnet[seed]) for seed in seeds if seed in vnet}
            gap = paired_difference({seed: dice(seeds[seed]) for seed in same}, same)
            difference = f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
        each = ", ".join(f"{fmean(dice(seeds[seed]).values()):.3f}" for seed in sorted(seeds))
        cases = [fmean(column) for column in zip(*(dice(run).values() for run in seeds.values()), strict=True)]
        rows = [row for run in seeds.values() for row in run["rows"]]
        hd = median(float(row["hd95_standard_mm"]) for row in rows)
        volume = median(float(row["volume_prediction_ml"]) / float(row["volume_reference_ml"]) for row in rows)
        speed, memory = (median(run[key] for run in seeds.values()) for key in FACTS)
        print(f"| `{method}` | {masks} | {len(seeds)} | {mean_of(seeds):.3f} +- {stdev(cases):.3f}", end=" ")
        print(f"| {each} | {difference} | {hd:.1f} | {volume:.2f} | {speed:.2f} | {memory:.0f} |")


FACTS = ("iterations_per_second", "peak_memory_mib")


def dice(run: Run) -> Mapping[str, float]:
    return dice_by_case(run["rows"])


def mean_of(seeds: Mapping[int, Run]) -> float:
    return fmean(fmean(dice(run).values()) for run in seeds.values())


main(Path(sys.argv[1]))
