"""The comparisons in docs/results/la_half.md and methods.md: every command, one thread each. A killed sweep goes on.

python benchmarks/la_half.py OUT [METHOD ...]     (needs SSCL_DATA; about 2 hours on 2 cores, two runs at a time; with
methods, only their runs, one at a time). Tables of OUT/records: la_half_tables.py.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sscl.methods import METHODS
from sscl.stages.record import record

SEEDS = range(5)
HELD_OUT = ("--development", "51:60", "--test", "61:80")
DATA = {"8": ("--labelled", "8", "--unlabelled", "9:50"), "50": ("--labelled", "first:50")}
STUDY = ("vnet", "mean_teacher", "sscl")
RUNS = [(method, "8", seed) for method in STUDY for seed in SEEDS] + [("vnet", "50", 0)]
RUNS += [(method, "8", 0) for method in METHODS if method not in STUDY]


def sscl(*arguments: object) -> None:
    subprocess.run(
        [sys.executable, "-m", "sscl.cli", *map(str, arguments)], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def run(out: Path, method: str, labelled: str, seed: int) -> None:
    data, folder = out / f"data_{labelled}", out / f"{method}_{labelled}_{seed}"
    if (out / "records" / folder.name).exists():
        return
    sscl("train", data, "-o", folder, "--method", method, "--seed", seed, "--threads", 1)
    sscl("predict", folder, data, "--split", "test", "--threads", 1)
    if not (folder / "predictions" / "scores").exists():
        sscl("evaluate", folder / "predictions", data, "--split", "test")
    record(folder, folder / "predictions", out / "records" / folder.name)


def main(out: Path, *only: str) -> None:
    for name, lists in DATA.items():
        sscl(
            "prepare",
            Path(os.environ["SSCL_DATA"]) / "la_half",
            "-o",
            out / f"data_{name}",
            "--preset",
            "la-quick",
            *lists,
            *HELD_OUT,
        )
    with ThreadPoolExecutor(1 if only else 2) as pool:
        list(pool.map(lambda job: run(out, *job), [job for job in RUNS if not only or job[0] in only]))


main(Path(sys.argv[1]), *sys.argv[2:])
