"""Configuration that cannot lie: frozen, strict, every unknown key refused with its nearest neighbour."""

import re
from collections.abc import Mapping
from typing import Any, Self, get_args

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
        _refuse_unknown(cls, values, where)
        try:
            return cls.model_validate(_tuples(_completed(cls, values)))
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
        UserError: a pair without '=', or a value that is no YAML.
    """
    settings = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise UserError(f"--set {pair}: expected name=value, for instance --set lam=1.0.")
        try:
            value = _Loader(text).get_single_data()
            if isinstance(value, str) and "," in value:
                value = _Loader(f"[{value}]").get_single_data()
        except yaml.YAMLError:
            raise UserError(
                f"--set {pair}: the value cannot be read. Write a number, a word, true or false, or 16,16,16."
            ) from None
        settings[key.strip()] = _tuples(value)
    return settings


class _Loader(yaml.SafeLoader):
    """Plain values, with YAML 1.2's floats: to YAML 1.1, 1e-3 is text, because it has no point."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _refuse_unknown(cls: type[Config], values: Mapping[Any, Any], where: str) -> None:
    """Raises UserError for a key, at any depth, that its configuration does not have."""
    for key, value in values.items():
        if key not in cls.model_fields:
            raise unknown(f"{where}: setting", str(key), cls.model_fields)
        kind = cls.model_fields[key].annotation
        for inner in (kind, *get_args(kind)):  # `Schedule`, or `Schedule | None`
            if isinstance(inner, type) and issubclass(inner, Config) and isinstance(value, Mapping):
                _refuse_unknown(inner, value, f"{where}: {key}")


def _completed(cls: type[Config], values: Mapping[str, Any]) -> dict[str, Any]:
    """Groups given in part with the rest of the field's own default: a critic's optimiser is none of the usual ones."""
    return {key: _filled(cls.model_fields[key].default, value) for key, value in values.items()}


def _filled(default: Any, value: Any) -> Any:
    if not (isinstance(default, Config) and isinstance(value, Mapping)):
        return value
    return default.model_dump() | {key: _filled(getattr(default, key), part) for key, part in value.items()}


def _tuples(value: Any) -> Any:
    """Lists, as JSON and YAML give them, to tuples, deeply."""
    if isinstance(value, list | tuple):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value
