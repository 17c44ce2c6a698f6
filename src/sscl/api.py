"""The Python front door: `from sscl import prepare, train, predict, evaluate, report, export`.

Each is the function of the same name in `sscl.stages`, imported (and torch with it) when it is first called.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import sscl.report  # noqa: F401 - see below

__all__ = ["evaluate", "export", "predict", "prepare", "report", "train"]

if TYPE_CHECKING:
    from sscl.stages.evaluate import evaluate
    from sscl.stages.model import export
    from sscl.stages.predict import predict
    from sscl.stages.prepare import prepare
    from sscl.stages.report import report
    from sscl.stages.train import train
else:

    def _at_first_call(module: str, name: str) -> Callable[..., Any]:
        def function(*args: Any, **options: Any) -> Any:
            return getattr(import_module(module), name)(*args, **options)

        function.__name__ = function.__qualname__ = name
        function.__doc__ = f"`{module}.{name}`: its arguments, result and errors are explained there."
        return function

    evaluate = _at_first_call("sscl.stages.evaluate", "evaluate")
    export = _at_first_call("sscl.stages.model", "export")
    predict = _at_first_call("sscl.stages.predict", "predict")
    prepare = _at_first_call("sscl.stages.prepare", "prepare")
    report = _at_first_call("sscl.stages.report", "report")
    train = _at_first_call("sscl.stages.train", "train")


class _Report(ModuleType):
    """`sscl.report` is a package too, and whoever imports one of its modules puts it in the function's place. So the
    package can be called.
    """

    __call__ = staticmethod(report)


sys.modules["sscl.report"].__class__ = _Report
