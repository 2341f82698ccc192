"""Each check can fail: predictors broken on purpose, and the checks that must notice."""

import broken_answers
import broken_batches
import broken_counting
import broken_inputs
import broken_laws
import broken_learning
import broken_merges
import pytest
from broken import Broken, BrokenModel, made

from sagellm_lifetime import create_predictor
from sagellm_lifetime.testing import CHECKS, check_predictor

BY_NAME = {check.__name__: check for check in CHECKS}
CATCHES = {
    **broken_answers.CATCHES,
    **broken_inputs.CATCHES,
    **broken_batches.CATCHES,
    **broken_laws.CATCHES,
    **broken_learning.CATCHES,
    **broken_counting.CATCHES,
    **broken_merges.CATCHES,
}


@pytest.mark.parametrize(
    ("broken", "check"),
    [(broken, check) for broken, checks in CATCHES.items() for check in checks],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_check_notices(broken, check):
    # A broken predictor may also trip over itself before the check can say what is wrong.
    with pytest.raises((AssertionError, RuntimeError, LookupError, ValueError, ArithmeticError)):
        BY_NAME[check](lambda: made(broken))


@pytest.mark.slow
@pytest.mark.parametrize("sound", [Broken, BrokenModel])
def test_what_is_sound_passes_everything_without_being_registered(sound):
    check_predictor(lambda: made(sound))


def test_a_model_class_passes_everything():
    check_predictor(BrokenModel)
    with pytest.raises(AssertionError):
        check_predictor(broken_learning.LearnsNothing)


def test_check_predictor_stops_at_the_first_failure():
    with pytest.raises(AssertionError, match="the source is 'prior'"):
        check_predictor(lambda: broken_answers.NeverAModel(seed=1))


def test_other_options_are_kept_where_a_check_changes_some():
    BY_NAME["check_capacity_and_expiry"](lambda: create_predictor("baseline", window_size=7))


def test_every_check_has_been_seen_to_fail():
    seen = {check for checks in CATCHES.values() for check in checks}
    assert set(BY_NAME) - seen <= {"check_protocol"}
