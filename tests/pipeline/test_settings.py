"""`--set name=value`: what is read, and what is refused and how."""

from typing import Any

import pytest

from sscl.core.config import parse_settings
from sscl.core.errors import UserError
from sscl.core.method import Phase
from sscl.data.planning import read_settings
from sscl.data.presets import PRESETS
from sscl.methods import METHODS, method_class
from sscl.methods.sscl import SSCLConfig
from sscl.stages.recipe import _nested


def test_values_are_read_as_yaml() -> None:
    pairs = ("a=1e-3", "b=-2E+4,.5e1", "c=16, 16,4", "d=true", "e=word", "f=[1, [2]]", "g=3")
    assert parse_settings(pairs) == {
        "a": 0.001, "b": (-20000.0, 5.0), "c": (16, 16, 4), "d": True, "e": "word", "f": (1, (2,)), "g": 3
    }  # fmt: skip
    assert SSCLConfig.read(parse_settings(("lam=1e-3",)), "test").lam == 0.001


@pytest.mark.parametrize(
    "pair", ["patch=[16", "patch=16,[", "patch={", "patch='16", "patch=&a [*a]", "patch=" + "[" * 5000]
)
def test_what_is_no_yaml_is_refused(pair: str) -> None:
    with pytest.raises(UserError, match=r"--set patch=.*cannot be read"):
        parse_settings((pair,))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"optimizer": {}}, "setting 'optimizer' is unknown. Did you mean 'optimiser'"),
        ({"optimiser": {"learning_rat": 1.0}}, "test: optimiser: setting 'learning_rat'.*Did you mean 'learning_rate'"),
        ({"optimiser": {"schedule": {"pover": 1.0}}}, "test: optimiser: schedule: setting 'pover'.*mean 'power'"),
        ({"optimiser": {1: 2}}, "test: optimiser: setting '1' is unknown"),
        ({"optimiser": 1}, "test: optimiser = 1: "),
    ],
)
def test_unknown_settings_name_their_neighbour(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        SSCLConfig.read(values, "test")


def test_unknown_settings_are_found_where_there_may_be_none() -> None:
    with pytest.raises(UserError, match=r"schedule: setting 'knd' is unknown\. Did you mean 'kind'"):
        Phase.read({"name": "a", "share": 1.0, "batch": (2, 2), "schedule": {"knd": "poly"}}, "test")


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("sscl", {"lam": "abc"}, "lam = 'abc': expected a number; the default is 0.5."),
        ("sscl", {"lam": -1}, "lam = -1: expected 0 or more; the default is 0.5."),
        ("sscl", {"lam": float("inf")}, "lam = inf: expected a finite number; the default is 0.5."),
        ("sscl", {"dropout": 1.5}, "dropout = 1.5: expected less than 1; the default is 0.5."),
        ("sscl", {"width": 1.5}, "width = 1.5: expected a whole number; the default is 16."),
        ("sscl", {"spectral": "maybe"}, "spectral = 'maybe': expected true or false; the default is true."),
        ("sscl", {"head_dropout": "x"}, "head_dropout = 'x': expected a number."),
        (
            "sscl",
            {"optimiser": {"kind": "sdg"}},
            "optimiser.kind = 'sdg': expected 'sgd', 'adam' or 'adamw'; the default is sgd.",
        ),
        (
            "sscl",
            {"optimiser": {"schedule": "poly"}},
            "optimiser.schedule = 'poly': expected its settings one by one: kind, power, every.",
        ),
        ("bcp", {"batch": 4}, "batch = 4: expected values with commas between them; the default is 2,2."),
        ("bcp", {"batch": (4,)}, "batch = (4,): expected one value more; the default is 2,2."),
        ("bcp", {"batch": [4, 4, 4]}, "batch = (4, 4, 4): expected at most 2 values; the default is 2,2."),
        (
            "bcp",
            {"batch": (3, 4)},
            "batch = (3, 4): expected an even number of labelled crops, and as many unlabelled ones; "
            "the default is 2,2.",
        ),
        ("bcp", {"batch": (4, "a")}, "batch = (4, 'a'): expected a whole number; the default is 2,2."),
    ],
)
def test_a_wrong_value_is_said_in_our_words(method: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        method_class(method).Config.read(values, "test")
    assert str(error.value) == f"test: {message}"


def test_what_is_missing_is_named_with_all_that_is_needed() -> None:
    with pytest.raises(UserError, match=r"^test: 'batch' is missing\. Needed: name, share, batch\.$"):
        Phase.read({"name": "a", "share": 1.0}, "test")


@pytest.mark.parametrize(
    "settings",
    [
        {"spacing_mm": "abc"},
        {"spacing_mm": (1, 1)},
        {"spacing_if_missing_mm": "abc"},
        {"memory_gb": "lots"},
        {"memory_gb": True},
        {"memory_gb": 0},
        {"intensity": "foo"},
        {"intensity": "foo", "window": (1, 2)},
        {"window": (1, 2), "intensity": "foo"},
        {"window": "abc"},
        {"labels": 3},
        {"channels": 3},
        {"ignore_label": "abc"},
        {"stride": 16},
        {"foreground_share": 2.0},
    ],
)
def test_values_that_no_plan_can_have(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="plan: "):
        read_settings(settings)


def test_window_and_intensity_add_up() -> None:
    for settings in (
        {"window": (1, 2), "intensity": {"scaling": "unit"}},
        {"intensity": {"scaling": "unit"}, "window": (1, 2)},
    ):
        assert read_settings(settings) == {"intensity": {"window": (1, 2), "scaling": "unit"}}


def test_dotted_names() -> None:
    assert _nested({"a.b.c": 1, "a.d": 2, "e": 3}) == {"a": {"b": {"c": 1}, "d": 2}, "e": 3}
    given = {"a": {"b": 1}}
    assert _nested({**given, "a.c": 2}) == {"a": {"b": 1, "c": 2}}
    assert given == {"a": {"b": 1}}
    for contradiction in ({"a": 1, "a.b": 2}, {"a.b": 2, "a": 1}, {"a": {"b": 1}, "a.b": 2}):
        with pytest.raises(UserError, match="contradict"):
            _nested(contradiction)


@pytest.mark.parametrize(
    ("values", "explicit", "words"),
    [
        ({"unlabelled": False}, "threshold", "test: threshold has no effect with unlabelled=false"),
        ({"teacher": False}, "ema_warmup", "ema_warmup has no effect with teacher=false"),
        ({}, "teacher_buffers", "teacher_buffers has no effect with teacher_eval=false"),
        ({"pretrain_share": 0.0}, "pretrain_copy_paste", "no effect with pretrain_share=0"),
        ({"spectral": False}, "spectral_stages", "no effect with spectral=false"),
        ({}, "optimiser.schedule.every", "no effect with optimiser.schedule.kind=poly.*needs .*kind=step"),
        ({"optimiser": {"schedule": {"kind": "step"}}}, "optimiser.schedule.power", "no effect with .*kind=step"),
    ],
)
def test_a_setting_without_effect_is_refused(values: dict[str, Any], explicit: str, words: str) -> None:
    config = SSCLConfig.read(values, "test")
    config.refuse_ignored(values, "test")  # the switch itself is meant
    with pytest.raises(UserError, match=words):
        config.refuse_ignored({**values, explicit: 1}, "test")
    nested: dict[str, Any] = {explicit.split(".")[-1]: 1}
    for group in reversed(explicit.split(".")[:-1]):
        nested = {group: nested}
    with pytest.raises(UserError, match=words):
        config.refuse_ignored(nested, "test")


def test_settings_with_effect_are_not_refused() -> None:
    values = {"teacher_eval": True, "teacher_buffers": "copy", "pretrain_share": 0.2, "pretrain_copy_paste": True}
    SSCLConfig.read(values, "test").refuse_ignored({**values, "alpha": 0.9, "optimiser.momentum": 0.8}, "test")


def test_the_table_of_ignored_settings_names_fields() -> None:
    for name in METHODS:
        config = method_class(name).Config
        named = {field for setting, needs in config.acts_with.items() for field in (setting, *needs)}
        assert named <= config.model_fields.keys()


@pytest.mark.parametrize("preset", ["la-quick", "demo"])
def test_short_presets_keep_the_ratio_of_other_weights_to_supervision(preset: str) -> None:
    """A preset that doubles one weight alone would weaken what a method does with unlabelled scans."""
    settings = PRESETS[preset]
    assert settings.methods.keys() <= METHODS.keys()
    for name in METHODS:
        config = method_class(name).Config
        mine = settings.methods.get(name, {})
        config.read(mine, name)
        if "supervised_weight" in config.model_fields:
            weights = {key: value for key, value in mine.items() if key != "dropout"}
            assert {value / getattr(config(), key) for key, value in weights.items()} == {2.0}
            assert mine["supervised_weight"] == 1.0
        assert not {"consistency", "supervised_weight"} & settings.method.keys()
