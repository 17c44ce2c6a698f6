"""Do SSCL's common features carry information about the scan, and does the reconstructor need them?

python benchmarks/common_features.py RUN ...     (finished runs of sscl with the reconstructor; a minute each on a CPU)

On the development cases of the run's data set. Dice with F_c of the scan itself; of the next development case, laid on
it with the centres together; with each channel's mean over the window; without F_c. And the mean squared error of the
reconstruction, where predicting 0 has the mean square of the scans, as a share of that: with F_c; with F_c set to 0.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch
from constants import in_the_middle
from numpy.typing import NDArray
from torch import Tensor

from sscl.core.plan import Plan
from sscl.data.preprocess import preprocess, restore
from sscl.engine.checkpoint import newest
from sscl.engine.run import read_recipe
from sscl.engine.window import sliding_window
from sscl.methods.sscl import SSCL
from sscl.metrics.overlap import dice
from sscl.ops.losses import mse
from sscl.stages.dataset import Dataset, open_dataset
from sscl.stages.recipe import build_method
from sscl.stages.train import CHECKPOINTS
from sscl.volumes.files import read_image, read_label
from sscl.volumes.geometry import to_ras
from sscl.volumes.volume import Volume

CPU = torch.device("cpu")


def main(runs: list[Path]) -> None:
    torch.set_num_threads(1)
    print("| run | Dice, own F_c | another scan's | channel means | none | error of x^, own F_c | F_c = 0 |")
    print("|---|---|---|---|---|---|---|")
    for run in runs:
        recipe = read_recipe(run)
        state = newest(run / CHECKPOINTS, CPU)
        method = build_method(recipe)
        assert isinstance(method, SSCL)
        assert state is not None
        method.load_state_dict(state["method"])
        print(f"| {run.name} | " + " | ".join(measure(method.eval(), open_dataset(Path(recipe.dataset)))) + " |")


@torch.no_grad()
def measure(method: SSCL, data: Dataset) -> list[str]:
    plan, cases = data.plan, data.split.development
    scans = {case: to_ras(read_image(data.image_paths(case), 1, plan.spacing_if_missing_mm)) for case in cases}
    images = {case: torch.from_numpy(preprocess(scan, plan)) for case, scan in scans.items()}
    scores: dict[str, list[float]] = {name: [] for name in FEATURES}
    errors: dict[str, list[float]] = {name: [] for name in ("with", "without")}
    for case, donor in zip(cases, (*cases[1:], cases[0]), strict=True):
        other = in_the_middle(images[donor][0].numpy(), images[case].shape[1:])
        both = torch.cat([images[case], torch.from_numpy(other)[None]])
        path = Path(data.facts["source"]) / data.facts["cases"][case]["label"]
        truth = to_ras(read_label(path, plan.spacing_if_missing_mm)).array[0] > 0
        for name, features in FEATURES.items():
            scores[name].append(dice(mask(method, both, features, plan, scans[case]), truth) or 0.0)
        for name, share in reconstruction_errors(method, images[case], plan).items():
            errors[name].append(share)
    return [
        *(f"{fmean(values):.3f} +- {stdev(values):.3f}" for values in scores.values()),
        *(f"{fmean(values):.3f}" for values in errors.values()),
    ]


FEATURES: dict[str, Callable[[SSCL, Tensor], Tensor | None]] = {
    "own": lambda method, windows: common(method, windows[:, :1]),
    "other": lambda method, windows: common(method, windows[:, 1:]),
    "means": lambda method, windows: (f := common(method, windows[:, :1])).mean((2, 3, 4), keepdim=True).expand_as(f),
    "none": lambda method, windows: None,
}


def common(method: SSCL, x: Tensor) -> Tensor:
    assert method.reconstructor is not None
    return method.reconstructor.encoder(x)[-1]


def mask(
    method: SSCL, both: Tensor, features: Callable[[SSCL, Tensor], Tensor | None], plan: Plan, scan: Volume
) -> NDArray[np.bool_]:
    def predict(windows: Tensor) -> Tensor:
        return method.student(windows[:, :1], features(method, windows)).softmax(1)

    p = sliding_window(predict, both, plan.patch, plan.stride, plan.weighting)
    return restore(p.numpy(), scan, plan) > 0


def reconstruction_errors(method: SSCL, image: Tensor, plan: Plan) -> dict[str, float]:
    """Mean squared error over the scan's mean square, with F_c and with F_c = 0."""
    reconstructor = method.reconstructor
    assert reconstructor is not None

    def rebuilt(windows: Tensor, scale: float) -> Tensor:
        features = reconstructor.encoder(windows)
        return reconstructor.decoder([*features[:-1], scale * features[-1]])

    return {
        name: float(mse(sliding_window(lambda w: rebuilt(w, scale), image, plan.patch, plan.stride), image))  # noqa: B023
        / float(image.square().mean())
        for name, scale in (("with", 1.0), ("without", 0.0))
    }


if __name__ == "__main__":
    main([Path(run) for run in sys.argv[1:]])
