"""`sscl train --method NAME --explain`: a method's equations, knobs and defaults, as its file has them."""

import inspect
from collections.abc import Iterator

from sscl.core.config import Config
from sscl.methods import METHODS, method_class


def explain(name: str) -> tuple[str, list[list[str]]]:
    """The method in words, and the table of its settings, the head first: name, default, the paper's, meaning.

    Raises:
        UserError: unknown method.
    """
    cls = method_class(name)
    module = inspect.getdoc(inspect.getmodule(cls)) or ""
    step, test = (inspect.cleandoc(f.__doc__ or "") for f in (cls.step, cls.predict))
    literature = {path: str(value) for path, value in cls.literature.settings.items()}
    text = (
        f"{name} ({METHODS[name].paper})\n\n{module}\n\nA step: {step}\nTest: {test}\n\n"
        f"--schedule literature: {cls.literature.iterations} iterations, and the settings in that column. "
        f"More: docs/methods/{name}.md"
    )
    rows = [[path, default, literature.pop(path, ""), meaning] for path, default, meaning in _fields(cls.Config())]
    assert not literature, f"{name} has no settings {sorted(literature)}"
    return text, [["setting", "default", "literature", "meaning"], *rows]


def _fields(config: Config, path: str = "") -> Iterator[tuple[str, str, str]]:
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Config):
            yield from _fields(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", str(value), " ".join((field.description or "").split())
