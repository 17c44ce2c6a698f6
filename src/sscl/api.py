"""The Python front door: `from sscl.api import check, prepare, train, predict, evaluate, export, report, ...`."""

from sscl.stages.check import check
from sscl.stages.evaluate import evaluate
from sscl.stages.figures import figures
from sscl.stages.model import export
from sscl.stages.predict import predict
from sscl.stages.prepare import prepare
from sscl.stages.report import report
from sscl.stages.train import train
from sscl.studies.compare import compare

__all__ = ["check", "compare", "evaluate", "export", "figures", "predict", "prepare", "report", "train"]
