"""One full-resolution volume through `predict` with the paper's windows (112x112x80, strides 18x18x4), untrained model.

python benchmarks/full_resolution.py OUT     (needs SSCL_DATA)
"""

import json
import os
import sys
from pathlib import Path

import torch

from sscl.engine import checkpoint
from sscl.engine.run import write_recipe
from sscl.engine.train import Trainer
from sscl.stages.dataset import open_dataset
from sscl.stages.predict import predict
from sscl.stages.prepare import prepare
from sscl.stages.recipe import build_method, resolve
from sscl.stages.train import CHECKPOINTS


def main(out: Path) -> None:
    source, cpu = Path(os.environ["SSCL_DATA"]) / "la", torch.device("cpu")
    prepare(source, out / "data", preset="la", labelled=4, test="last:4")
    recipe = resolve(open_dataset(out / "data"), "sscl", {}, None, 0, cpu, "float32", 2)
    run = out / "untrained"
    run.mkdir(exist_ok=True)
    write_recipe(run, recipe)
    untrained = Trainer(build_method(recipe), recipe.iterations, recipe.seed, cpu)
    checkpoint.save(run / CHECKPOINTS, untrained.state())
    scan = sorted((source / "2018LA_Seg_Training Set").glob("*/mri_norm2.h5"))[0]
    predict(run, [scan], out / "masks", batch=1, threads=2)
    stage = json.loads((out / "masks" / "stage.json").read_text())
    print(f"{stage['seconds'] / 60:.1f} minutes, {stage['peak_memory_bytes'] / 2**30:.1f} GiB")


main(Path(sys.argv[1]))
