"""Every method in the table keeps the promises of the design. A new method needs no line here, or one in a table."""

from functools import cache
from typing import Any

import checks
import pytest
from checks import Average, Cls, Observed, configured

from sscl.methods import METHODS, method_class

# Configurations whose step takes another way than the default one.
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "sscl": (
        {"detach_common": False, "ema_warmup": True},
        {"teacher": False},
        {"reconstructor": False, "spectral": False},
        {"unlabelled": False},
        {"pretrain_recon_unlabelled": False, "pretrain_copy_paste": True},
        {"pseudo": "confident", "pretrain_share": 0.0},
    ),
}

# Settings with which a run over all phases takes less time.
SHORT: dict[str, dict[str, Any]] = {"sscl": {"pretrain_share": 0.4}, "ua_mt": {"passes": 2}}

# Terms that mix labelled and unlabelled images because the paper does.
MIXED: dict[str, tuple[str, ...]] = {}

# Networks that a loss passes on its way to its player: an adversary's weights.
THROUGH: dict[str, tuple[str, ...]] = {}

# Teachers that are not a `teacher` following a `student`.
AVERAGES: dict[str, tuple[Average, ...]] = {}

# Fields whose other value must be a certain one for a run of three steps to show it.
VALUES: dict[str, Any] = {
    "pretrain_share": 0.6,  # 2 steps of 3 instead of 1
    "spectral_stages": (1, 2, 1, 1, 1),
    "optimiser.schedule.every": 1,
}

# Fields that act only where another one says so.
UNDER: dict[str, dict[str, Any]] = {
    "optimiser.schedule.every": {"optimiser.schedule.kind": "step"},
    "teacher_buffers": {"teacher_eval": True},
    "pseudo_absent": {"threshold": 0.95},  # no pseudo-label holds an organ
}

DEFAULT = [pytest.param(name, {}, id=name) for name in METHODS]
ALL = [*DEFAULT] + [
    pytest.param(name, settings, id=f"{name}-{'-'.join(settings)}")
    for name, variants in VARIANTS.items()
    for settings in variants
]


@pytest.mark.parametrize(("name", "settings"), ALL)
def test_every_term_is_alive_and_nothing_else_gets_gradient(name: str, settings: dict[str, Any]) -> None:
    cls = method_class(name)
    checks.check_links(cls, configured(cls, **settings), THROUGH.get(name, ()))


@pytest.mark.parametrize(("name", "settings"), ALL)
def test_labels_meet_labelled_images_only(name: str, settings: dict[str, Any]) -> None:
    cls = method_class(name)
    checks.check_halves(cls, configured(cls, **settings), MIXED.get(name, ()))


@pytest.mark.parametrize(("name", "settings"), DEFAULT)
def test_labels_of_unlabelled_cases_are_not_reachable(name: str, settings: dict[str, Any]) -> None:
    cls = method_class(name)
    checks.check_no_leak(cls, configured(cls, **{**SHORT.get(name, {}), **settings}))


@pytest.mark.parametrize(("name", "settings"), ALL)
def test_teachers_move_only_by_their_rule(name: str, settings: dict[str, Any]) -> None:
    cls = method_class(name)
    checks.check_teachers(cls, configured(cls, **{**SHORT.get(name, {}), **settings}), AVERAGES.get(name))


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
    checks.check_resume(cls, configured(cls, **{**SHORT.get(name, {}), **settings}))


@cache
def _reference(cls: Cls, config: Any) -> list[Observed]:
    return list(checks.observed(cls, config))


@pytest.mark.parametrize("name", METHODS)
def test_no_setting_is_ignored(name: str) -> None:
    cls = method_class(name)
    short = configured(cls, **SHORT.get(name, {}))
    for path in checks.leaves(short):
        base = checks.with_settings(short, UNDER.get(path, {}))
        value = VALUES[path] if path in VALUES else checks.another(base, path)
        checks.check_field(cls, base, path, value, lambda config: _reference(cls, config))


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_settings_said_to_be_without_effect_are_without(name: str) -> None:
    """With what a setting needs turned off, its other value changes nothing that a run leaves behind."""
    cls = method_class(name)
    short = configured(cls, **SHORT.get(name, {}))
    pairs = {(path, other) for path, needs in cls.Config.acts_with.items() for other in needs}
    pairs.discard(("teacher_buffers", "teacher_eval"))  # copied into the teacher's state, where nothing reads them
    for path, other in sorted(pairs):
        base = checks.with_settings(short, {other: 0.0 if other == "pretrain_share" else False})
        value = VALUES[path] if path in VALUES else checks.another(base, path)
        with pytest.raises(AssertionError, match="changes nothing"):
            checks.check_field(cls, base, path, value, lambda config: _reference(cls, config))


def test_the_tables_of_fields_name_no_field_that_is_gone() -> None:
    known = {path for other in METHODS for path in checks.leaves(configured(method_class(other)))}
    assert VALUES.keys() | UNDER.keys() <= known
