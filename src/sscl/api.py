"""The Python front door: `from sscl.api import prepare, train, predict, evaluate, export, report`."""

from sscl.stages.evaluate import evaluate
from sscl.stages.model import export
from sscl.stages.predict import predict
from sscl.stages.prepare import prepare
from sscl.stages.report import report
from sscl.stages.train import train

__all__ = ["evaluate", "export", "predict", "prepare", "report", "train"]
