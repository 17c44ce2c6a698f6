"""Where the spread between seeds comes from: initial weights, crops, batch norm's statistics, the last iteration.

python benchmarks/seed_spread.py DATASET OUT.csv [METHOD]     (DATASET: as in docs/results/la_half_development.md;
about 40 minutes for vnet)

A grid of three initialisations by three orders of crops, as `--seed` draws them; each run scored at an iteration
before its end too, and at its end with batch norm's statistics taken anew over 50 batches. Mean Dice of the development
cases. A stopped grid goes on.
"""

import csv
import sys
from copy import deepcopy
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import nn

from sscl.core.method import Method
from sscl.data.patches import PatchLoader
from sscl.data.preprocess import preprocess, restore
from sscl.data.store import CaseStore
from sscl.engine.train import Trainer
from sscl.engine.window import sliding_window
from sscl.metrics.overlap import dice
from sscl.stages.dataset import STORE, Dataset, open_dataset
from sscl.stages.recipe import build_method, resolve
from sscl.volumes.files import read_image, read_label
from sscl.volumes.geometry import to_ras

SEEDS, EARLIER, CPU = range(3), (540,), torch.device("cpu")


def main(dataset: Path, out: Path, method: str = "vnet") -> None:
    torch.set_num_threads(1)
    data = open_dataset(dataset)
    done = set()
    if out.exists():
        done = {(int(row["init"]), int(row["crops"])) for row in csv.DictReader(out.open())}
    else:
        out.write_text("init,crops,at,dice\n")
    for init in SEEDS:
        for crops in SEEDS:
            if (init, crops) not in done:
                rows = [f"{init},{crops},{at},{mean:.4f}\n" for at, mean in run(data, method, init, crops).items()]
                with out.open("a") as file:
                    file.writelines(rows)
    report(out)


def run(data: Dataset, name: str, init: int, crops: int) -> dict[str, float]:
    recipe = resolve(data, name, {}, None, init, CPU, "float32", 1)
    trainer = Trainer(build_method(recipe), recipe.iterations, crops, CPU)
    patches = PatchLoader(CaseStore(data.folder / STORE), recipe.labelled, recipe.unlabelled, recipe.plan, crops)
    scores = {}
    for stop in (*EARLIER, recipe.iterations):
        trainer.run(lambda span, k: patches.load(span.draw(k)), lambda log: True, stop_at=stop)
        scores[str(stop)] = score(data, trainer.method)
    fresh = deepcopy(trainer.method)
    renew_statistics(fresh, [patches.load(trainer.spans[-1].draw(k)).batch.images for k in range(50)])
    return scores | {"new statistics": score(data, fresh)}


@torch.no_grad()
def renew_statistics(method: Method, batches: list[torch.Tensor]) -> None:
    """Batch norm's mean and variance as plain averages over these batches."""
    for module in method.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.reset_running_stats()
            module.momentum = None
    method.train()
    for images in batches:
        method.predict(images)


def score(data: Dataset, method: Method) -> float:
    method.eval()
    plan, values = data.plan, []
    for case in data.split.development:
        ras = to_ras(read_image(data.image_paths(case), 1, plan.spacing_if_missing_mm))
        p = sliding_window(method.predict, torch.from_numpy(preprocess(ras, plan)), plan.patch, plan.stride)
        path = Path(data.facts["source"]) / data.facts["cases"][case]["label"]
        truth = to_ras(read_label(path, plan.spacing_if_missing_mm)).array[0]
        values.append(dice(restore(p.numpy(), ras, plan) > 0, truth > 0))
    return fmean(values)


def report(path: Path) -> None:
    rows = list(csv.DictReader(path.open()))
    last = max((row["at"] for row in rows if row["at"].isdigit()), key=int)
    for at in dict.fromkeys(row["at"] for row in rows):
        table = np.array([float(row["dice"]) for row in rows if row["at"] == at]).reshape(len(SEEDS), len(SEEDS))
        change = table - np.array([float(r["dice"]) for r in rows if r["at"] == last]).reshape(table.shape)
        inits, crops, rest = components(table)
        print(f"{at}: mean {table.mean():.3f}, sd {table.std(ddof=1):.3f}", end="; ")
        print(f"sd from initial weights {inits:.3f}, crops {crops:.3f}, both together {rest:.3f}", end="; ")
        print(f"against {last}: {change.mean():+.3f} +- {change.std(ddof=1):.3f}")


def components(table: np.ndarray) -> tuple[float, float, float]:
    """Standard deviations of rows, columns and the rest of a two-way layout without repeats (method of moments)."""
    n, m = table.shape
    rest = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    ms_rest = float((rest**2).sum() / ((n - 1) * (m - 1)))
    rows, columns = (
        max(0.0, float(table.mean(axis).var(ddof=1)) - ms_rest / table.shape[axis]) ** 0.5 for axis in (1, 0)
    )
    return rows, columns, ms_rest**0.5


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
