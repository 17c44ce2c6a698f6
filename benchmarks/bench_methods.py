"""Time of a training step of every method relative to `vnet`'s: the column `cost` of `sscl methods`.

python benchmarks/bench_methods.py [METHOD ...]     (made scans, one thread; about 10 minutes on a CPU)

Settings and crops of the preset `la-quick`. Steps of the method and of `vnet` in turns; the ratio of the medians,
phases weighted by their share.
"""

import sys
import time
from statistics import median

import torch

from sscl.core.batch import Batch
from sscl.data.patches import MAKERS, Loaded
from sscl.data.presets import PRESETS
from sscl.engine.train import Span, Trainer
from sscl.methods import METHODS, method_class
from sscl.stages.recipe import preset_settings

PRESET, STEPS = "la-quick", 5


def main(*names: str) -> None:
    torch.set_num_threads(1)
    for name in names or METHODS:
        print(f"{name:14}{relative_cost(name):6.2f}", flush=True)


def relative_cost(name: str) -> float:
    method, baseline = trainer(name), trainer("vnet")
    cost = 0.0
    for span in method.spans:
        method.method.begin(span.phase.name)
        pairs = [(seconds(method, span), seconds(baseline, baseline.spans[0])) for _ in range(STEPS + 1)]
        ours, theirs = (median(column) for column in zip(*pairs[1:], strict=True))  # the first one allocates
        cost += ours / theirs * span.phase.share
    return cost


def trainer(name: str) -> Trainer:
    cls = method_class(name)
    torch.manual_seed(0)
    config = cls.Config.read(preset_settings(name, PRESET), name)
    return Trainer(cls(config, 1, 2), PRESETS[PRESET].iterations, 0, torch.device("cpu"))


def seconds(trainer: Trainer, span: Span) -> float:
    trainer.iteration = (span.start + span.stop) // 2  # ramps are up, and weigh what they weigh in the middle
    size = PRESETS[PRESET].plan["patch"]
    labelled, unlabelled = (torch.randn(n, 1, *size) for n in span.phase.batch)
    label = torch.zeros(len(labelled), *size, dtype=torch.long)
    label[:, 16:32, 16:32, 8:24] = 1
    targets = {target: MAKERS[target](label, 2) for target in trainer.method.targets}
    loaded = Loaded(Batch(labelled, label, unlabelled, targets), ("made",))
    began = time.perf_counter()
    trainer.step(span, loaded)
    return time.perf_counter() - began


main(*sys.argv[1:])
