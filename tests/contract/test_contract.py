"""Every method in the table keeps the promises of the design. What is particular to one stands in its own test."""

import math
from functools import cache, partial
from typing import Any, get_args

import checks
import pytest
from checks import Cls, Observed, configured
from notes import notes

from sscl.core.method import Method
from sscl.methods import METHODS, method_class

# Fields of every method: another value that three steps show, and settings under which it acts.
VALUES: dict[str, Any] = {"optimiser.schedule.every": 1}
UNDER: dict[str, dict[str, Any]] = {
    "optimiser.schedule.every": {"optimiser.schedule.kind": "step"},
    "optimiser.beta2": {"optimiser.kind": "adam"},
}

DEFAULT = [pytest.param(name, {}, id=name) for name in METHODS]
ALL = [*DEFAULT] + [
    pytest.param(name, settings, id=f"{name}-{'-'.join(settings)}")
    for name in METHODS
    for settings in notes(name).variants
]


@pytest.mark.parametrize(("name", "settings"), ALL)
def test_every_term_is_alive_and_nothing_else_gets_gradient(name: str, settings: dict[str, Any]) -> None:
    cls = method_class(name)
    checks.check_links(cls, configured(cls, **settings), notes(name).through)


@pytest.mark.parametrize(("name", "settings"), ALL)
def test_labels_meet_labelled_images_only(name: str, settings: dict[str, Any]) -> None:
    cls = method_class(name)
    checks.check_halves(cls, configured(cls, **settings), notes(name).mixed)


@pytest.mark.parametrize(("name", "settings"), DEFAULT)
def test_labels_of_unlabelled_cases_are_not_reachable(name: str, settings: dict[str, Any]) -> None:
    cls = method_class(name)
    checks.check_no_leak(cls, configured(cls, **{**notes(name).short, **settings}))


@pytest.mark.parametrize(("name", "settings"), ALL)
def test_teachers_move_only_by_their_rule(name: str, settings: dict[str, Any]) -> None:
    cls = method_class(name)
    checks.check_teachers(cls, configured(cls, **{**notes(name).short, **settings}), notes(name).averages)


@pytest.mark.parametrize(("name", "settings"), [*ALL, pytest.param("sscl", {"teacher_eval": True}, id="sscl-eval")])
def test_teachers_teach_in_the_mode_that_is_declared(name: str, settings: dict[str, Any]) -> None:
    cls = method_class(name)
    checks.check_teaching(cls, configured(cls, **{**notes(name).short, **settings}), notes(name).averages)


@pytest.mark.parametrize(("name", "settings"), DEFAULT)
def test_predict_is_a_distribution(name: str, settings: dict[str, Any]) -> None:
    cls = method_class(name)
    checks.check_predict(cls, configured(cls, **settings))


@pytest.mark.parametrize(("name", "settings"), DEFAULT)
def test_tested_names_what_predict_uses(name: str, settings: dict[str, Any]) -> None:
    cls = method_class(name)
    checks.check_tested(cls, configured(cls, **settings))


@pytest.mark.parametrize(("name", "settings"), DEFAULT)
def test_stop_and_resume_equals_straight_through(name: str, settings: dict[str, Any]) -> None:
    cls = method_class(name)
    checks.check_resume(cls, configured(cls, **{**notes(name).short, **settings}))


@cache
def _reference(cls: Cls, config: Any) -> list[Observed]:
    return list(checks.observed(cls, config))


@pytest.mark.parametrize("name", METHODS)
def test_no_setting_is_ignored(name: str) -> None:
    cls = method_class(name)
    short = configured(cls, **notes(name).short)
    for path in filter(partial(_is_the_method_s, name), checks.leaves(short)):
        base = checks.with_settings(short, {**UNDER, **notes(name).under}.get(path, {}))
        checks.check_field(cls, base, path, _other_value(name, base, path), lambda config: _reference(cls, config))


def _is_the_method_s(name: str, path: str) -> bool:
    """What the engine makes of an optimiser is the same for all methods that leave it to the engine: one shows it."""
    left_to_the_engine = path.startswith("optimiser.") and method_class(name).optimisers is Method.optimisers
    return not left_to_the_engine or name == "vnet" or path == "optimiser.learning_rate"


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_settings_said_to_be_without_effect_are_without(name: str) -> None:
    """With what a setting needs turned off, its other value changes nothing that a run leaves behind."""
    cls = method_class(name)
    short = configured(cls, **notes(name).short)
    needs = {
        (path, other): wanted
        for path in checks.leaves(short)
        for other, wanted in cls.Config.acts_with.get(path.split(".")[0], {}).items()
    }
    needs.pop(("teacher_buffers", "teacher_eval"), None)  # copied into the teacher's state, where nothing reads them
    for (path, other), wanted in sorted(needs.items()):
        base = checks.with_settings(short, {other: _off(short, other, wanted)})
        value = _other_value(name, base, path)
        with pytest.raises(AssertionError, match="changes nothing"):
            checks.check_field(cls, base, path, value, lambda config: _reference(cls, config))


def _off(config: Any, other: str, wanted: Any) -> Any:
    """A value of a setting other than those that are wanted of it."""
    value, kind = getattr(config, other), type(config).model_fields[other].annotation
    if wanted is True:
        return type(value)(0)
    choices = (True, False) if kind is bool else get_args(kind)
    return next(c for c in choices if c not in (wanted if isinstance(wanted, tuple) else (wanted,)))


@pytest.mark.parametrize("name", METHODS)
def test_the_literature_schedule_is_another_training(name: str) -> None:
    """Its settings exist, act together, and every phase runs its steps with them."""
    cls = method_class(name)
    short = configured(cls, **notes(name).short)
    config = checks.with_settings(short, cls.literature.settings)
    config.refuse_ignored(cls.literature.settings, name)
    trainer = checks.trainer_of(cls, config, len(cls.phases(config)))
    for log in checks.advance(trainer, trainer.iterations):
        assert all(math.isfinite(value) for key, value in log.items() if "/" in key)
    assert cls.literature.iterations >= len(cls.phases(config))


def _other_value(name: str, base: Any, path: str) -> Any:
    values = {**VALUES, **notes(name).values}
    return values[path] if path in values else checks.another(base, path)


@pytest.mark.parametrize("name", METHODS)
def test_the_notes_name_no_field_that_is_gone(name: str) -> None:
    known = set(checks.leaves(configured(method_class(name))))
    assert VALUES.keys() | UNDER.keys() | notes(name).values.keys() | notes(name).under.keys() <= known
