"""Time of `sscl check` on 1,000 scans with masks, as large as the hippocampus set's, and again with nothing changed.

python benchmarks/bench_check.py     (made scans, one process; under 2 minutes on a CPU)
"""

import json
import logging
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np

from sscl.stages.check import check

NUMBER, SHAPE = 1000, (35, 50, 36)


def main() -> None:
    logging.getLogger("sscl").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        source, out = make(Path(folder) / "set"), Path(folder) / "check.json"
        first, again = seconds(source, out), seconds(source, out)
    print(f"{NUMBER} scans: {first:.1f} s; again, unchanged: {again:.1f} s, {again / first:.2f} of that")


def seconds(source: Path, out: Path) -> float:
    began = time.perf_counter()
    assert check(source, out).errors == 0
    return time.perf_counter() - began


def make(source: Path) -> Path:
    """An egg in noise in each scan, of slightly other shape, place and size."""
    for name in ("imagesTr", "labelsTr"):
        (source / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(NUMBER):
        shape = tuple(length + int(more) for length, more in zip(SHAPE, rng.integers(-4, 5, 3), strict=True))
        grid, radii = np.indices(shape), rng.uniform(6, 10, 3)
        place = np.array(shape) / 2 + rng.uniform(-2, 2, 3)
        label = sum(((grid[k] - place[k]) / radii[k]) ** 2 for k in range(3)) < 1
        image = (100 * label + rng.normal(300, 60, shape)).clip(0, 1000)
        for folder, array in (("imagesTr", image.astype(np.int16)), ("labelsTr", label.astype(np.uint8))):
            suffix = "_0000" if folder == "imagesTr" else ""
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), source / folder / f"case{number:04d}{suffix}.nii.gz")
    facts = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "egg": 1}}
    (source / "dataset.json").write_text(json.dumps(facts))
    return source


main()
