"""Each planted fault is found by the check that is meant for it, for the reason that is meant."""

from typing import Any

import checks
import mutants
import pytest
from checks import Cls, configured

from sscl.data.patches import PatchLoader
from sscl.methods.mean_teacher import MeanTeacher


@pytest.mark.parametrize(
    ("cls", "check", "settings", "reason"),
    [
        (mutants.TermNotAdded, checks.check_links, {}, "consistency is not in the loss"),
        (mutants.StudentIsTeacher, checks.check_links, {}, "consistency is a constant"),
        (mutants.MaskAlwaysEmpty, checks.check_links, {}, "consistency does not depend on student"),
        (mutants.TargetNotDetached, checks.check_links, {}, "the loss of student reaches other weights"),
        (mutants.CommonNotDetached, checks.check_links, {}, "the loss of student reaches other weights"),
        (mutants.SwappedHalves, checks.check_halves, {}, "uses the label but not the labelled images"),
        (mutants.ImagesSwapped, checks.check_halves, {}, "uses the label but not the labelled images"),
        (mutants.TeacherIsTrained, checks.check_teachers, {}, r"^teacher\."),
        (mutants.TeacherRunsAhead, checks.check_teachers, {}, r"^teacher\."),
        (mutants.TeacherNotStarted, checks.check_teachers, {"pretrain_share": 0.5}, r"^teacher\."),
        (mutants.TeacherRests, checks.check_teaching, {}, "teacher is to be in train mode"),
        (mutants.TeacherDoesNotRest, checks.check_teaching, {"teacher_eval": True}, "teacher is to be in eval mode"),
        (mutants.TeacherWithoutDropout, checks.check_teaching, {"passes": 2}, "leaves out some of .*dropout"),
        (mutants.StateOutsideBuffers, checks.check_resume, {}, "other losses|other weights"),
        (mutants.Logits, checks.check_predict, {}, "a probability is negative"),
        (mutants.PredictsInTrainingMode, checks.check_predict, {}, "Tensor-likes are not close"),
        (mutants.TestsTheTeacher, checks.check_tested, {}, "predict needs what tested.. leaves out"),
        (mutants.NamesTooMuch, checks.check_tested, {}, "does not use reconstructor.decoder"),
    ],
)
def test_a_planted_fault_is_found(cls: Cls, check: Any, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        check(cls, configured(cls, **settings))


@pytest.mark.parametrize("loader", [mutants.AllAreLabelled, mutants.MaskBesideEveryScan])
def test_an_opened_mask_is_found(loader: type[PatchLoader]) -> None:
    with pytest.raises(AssertionError, match=r"the mask of the unlabelled case [uvw] was opened"):
        checks.check_no_leak(MeanTeacher, configured(MeanTeacher), loader)


def test_a_setting_that_nobody_reads_is_found() -> None:
    base = configured(mutants.UnusedField)
    assert "forgotten" in checks.leaves(base)
    with pytest.raises(AssertionError, match=r"forgotten = 0\.25 changes nothing"):
        checks.check_field(mutants.UnusedField, base, "forgotten", checks.another(base, "forgotten"))


def test_the_trained_teacher_differs_from_a_sound_one_in_the_optimiser_alone() -> None:
    checks.check_teachers(mutants.TargetNotDetached, configured(mutants.TargetNotDetached))
