"""Configuration that cannot lie: frozen, strict, every unknown key refused with its nearest neighbour."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from sscl.core.errors import UserError, unknown
from sscl.core.files import PlainLoader


class Config(BaseModel):
    """Base of every configuration. Tuples, not lists; numbers are not strings; no field is accepted unread."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def read(cls, values: Mapping[str, Any], where: str) -> Self:
        """Build from plain values (JSON, YAML, `--set`); `where` names them in errors.

        Raises:
            UserError: an unknown key (names the nearest known one) or a value of the wrong type or range.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"{where}: expected settings by name, found {values!r:.60}.")
        _refuse_unknown(cls, values, where)
        whole = _tuples(_completed(cls, values))
        try:
            return cls.model_validate(whole)
        except ValidationError as error:
            raise UserError(f"{where}: {_complaint(cls, whole, error.errors())}") from None

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
        except (yaml.YAMLError, ValueError, RecursionError):
            raise UserError(
                f"--set {pair}: the value cannot be read. Write a number, a word, true or false, or 16,16,16."
            ) from None
        settings[key.strip()] = _tuples(value)
    return settings


class _Loader(PlainLoader):
    """Plain values, with YAML 1.2's floats: to YAML 1.1, 1e-3 is text, because it has no point."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _refuse_unknown(cls: type[Config], values: Mapping[Any, Any], where: str) -> None:
    """Raises UserError for a key, at any depth, that its configuration does not have."""
    for key, value in values.items():
        if key not in cls.model_fields:
            raise unknown(f"{where}: setting", str(key), cls.model_fields)
        if (inner := _group(cls.model_fields[key])) and isinstance(value, Mapping):
            _refuse_unknown(inner, value, f"{where}: {key}")


def _group(field: FieldInfo) -> type[Config] | None:
    """The configuration that a field holds: `Schedule`, or `Schedule | None`; None for plain values."""
    kinds = (field.annotation, *get_args(field.annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Config)), None)


_EXPECTED = {
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "string_type": "a word",
    "tuple_type": "values with commas between them",
    "dict_type": "names with values",
    "literal_error": "{expected}",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "less_than": "less than {lt:g}",
    "less_than_equal": "{le:g} or less",
    "too_short": "at least {min_length} values",
    "too_long": "at most {max_length} values",
    "missing": "one value more",
    "value_error": "{error}",  # our own validators say what they expected
}
"""What should have been there, by the kind of pydantic's error."""


def _complaint(cls: type[Config], values: Any, errors: Sequence[ErrorDetails]) -> str:
    """The first of the errors in `values`, in the words of our other messages."""
    owner, path = _place(cls, errors[0]["loc"])
    field = owner.model_fields[path[-1]]
    if errors[0]["type"] == "missing" and errors[0]["loc"] == path:
        needed = ", ".join(name for name, field in owner.model_fields.items() if field.is_required())
        return f"'{'.'.join(path)}' is missing. Needed: {needed}."
    for name in path:
        values = values[name]
    text = f"{'.'.join(path)} = {values!r}: expected"
    if group := _group(field):
        return f"{text} its settings one by one: {', '.join(group.model_fields)}."
    # a union has an error for each of its kinds
    wanted = dict.fromkeys(_expected(error) for error in errors if _place(cls, error["loc"])[1] == path)
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    hint = "" if default in (None, "", (), {}) else f"; the default is {_as_typed(default)}"
    return f"{text} {' or '.join(wanted)}{hint}."


def _place(cls: type[Config], loc: tuple[int | str, ...]) -> tuple[type[Config], tuple[str, ...]]:
    """The field that an error is about: the configuration that has it, and the names that lead to it. What follows in
    `loc` is a position in a tuple or a kind of a union.
    """
    owner, path = cls, list[str]()
    group: type[Config] | None = cls
    for name in map(str, loc):
        if group is None or name not in group.model_fields:
            break
        path.append(name)
        owner, group = group, _group(group.model_fields[name])
    return owner, tuple(path)


def _expected(error: ErrorDetails) -> str:
    words = _EXPECTED.get(error["type"])
    return words.format(**error.get("ctx", {})) if words else error["msg"].removeprefix("Input should be ")


def _as_typed(value: Any) -> str:
    """As behind `--set name=`."""
    if isinstance(value, tuple):
        return ",".join(map(_as_typed, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


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
