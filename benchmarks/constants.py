"""What predicting the same for every scan scores: everything foreground; the labelled masks' mean shape.

python benchmarks/constants.py DATASET OUT     (a prepared data set with one organ; a minute)

The mean shape: labelled masks laid over each other with their scans' centres together, and cut at the share of them
that gives the labelled masks themselves the best mean Dice; put into the middle of every test scan.
"""

import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sscl.metrics.overlap import dice
from sscl.stages.dataset import Dataset, open_dataset
from sscl.stages.evaluate import evaluate
from sscl.volumes.files import read_image, read_label, write_label

Mask = NDArray[np.bool_]
Kind = TypeVar("Kind", bound=np.generic)


def main(dataset: Path, out: Path) -> None:
    data = open_dataset(dataset)
    shape = mean_shape([labelled(data, case) for case in data.split.labelled])
    constants = {"everything": lambda size: np.ones(size, bool), "mean_shape": lambda size: in_the_middle(shape, size)}
    for name, constant in constants.items():
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        for case in data.split.test:
            scan = read_image(data.image_paths(case), len(data.plan.channels), data.plan.spacing_if_missing_mm)
            write_label(folder / f"{case}.nii.gz", constant(scan.array.shape[1:]).astype(np.uint8), scan)
        scores = [score.values["dice"] or 0.0 for score in evaluate(folder, dataset).scores]
        print(f"{name}: Dice {fmean(scores):.3f} +- {stdev(scores):.3f}, {len(scores)} test cases")


def labelled(data: Dataset, case: str) -> Mask:
    path = Path(data.facts["source"]) / data.facts["cases"][case]["label"]
    return read_label(path, data.plan.spacing_if_missing_mm).array[0] > 0


def mean_shape(masks: list[Mask]) -> Mask:
    size = tuple(max(mask.shape[axis] for mask in masks) for axis in range(3))
    share = np.mean([in_the_middle(mask, size) for mask in masks], axis=0)
    cuts = [share >= (k + 1) / len(masks) for k in range(len(masks))]
    return max(cuts, key=lambda cut: fmean(dice(in_the_middle(cut, m.shape), m) or 0.0 for m in masks))


def in_the_middle(mask: NDArray[Kind], size: tuple[int, ...]) -> NDArray[Kind]:
    """Cut, or padded with zeros, to `size` with the centre kept."""
    result = np.zeros(size, mask.dtype)
    spans = [(max(0, (n - m) // 2), max(0, (m - n) // 2), min(n, m)) for n, m in zip(size, mask.shape, strict=True)]
    target = tuple(slice(t, t + length) for t, _, length in spans)
    source = tuple(slice(s, s + length) for _, s, length in spans)
    result[target] = mask[source]
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
