"""Configuration that cannot lie: frozen, strict, every unknown key refused with its nearest neighbour."""

from collections.abc import Mapping
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from sscl.core.errors import UserError, unknown


class Config(BaseModel):
    """Base of every configuration. Tuples, not lists; numbers are not strings; no field is accepted unread."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def read(cls, values: Mapping[str, Any], where: str) -> Self:
        """Build from plain values (JSON, YAML, `--set`); `where` names them in errors.

        Raises:
            UserError: an unknown key (names the nearest known one) or a value of the wrong type or range.
        """
        for key in values:
            if key not in cls.model_fields:
                raise unknown(f"{where}: setting", key, cls.model_fields)
        try:
            return cls.model_validate(_tuples(dict(values)))
        except ValidationError as error:
            first = error.errors()[0]
            path = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{where}: {path} = {first['input']!r}: {first['msg']}.") from None

    def override(self, values: Mapping[str, Any], where: str) -> Self:
        """A copy with some fields replaced, checked like `read`."""
        return type(self).read({**self.model_dump(), **values}, where)


def parse_settings(pairs: tuple[str, ...]) -> dict[str, Any]:
    """`("lam=1.0", "stride=16,16,4")` to `{"lam": 1.0, "stride": (16, 16, 4)}`, values read as YAML.

    Raises:
        UserError: a pair without '='.
    """
    settings = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise UserError(f"--set {pair}: expected name=value, for instance --set lam=1.0.")
        value = yaml.safe_load(text)
        if isinstance(value, str) and "," in value:
            value = yaml.safe_load(f"[{value}]")
        settings[key.strip()] = _tuples(value)
    return settings


def _tuples(value: Any) -> Any:
    """Lists, as JSON and YAML give them, to tuples, deeply."""
    if isinstance(value, list | tuple):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value
