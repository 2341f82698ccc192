"""Each check can fail: predictors broken on purpose, and the checks that must notice."""

import sys
from time import sleep

import numpy as np
import pytest

from sagellm_lifetime import (
    LengthDistribution,
    PredictionRequest,
    SurvivalLifetimePredictor,
    create_predictor,
)
from sagellm_lifetime.core.protocol import PredictionResult
from sagellm_lifetime.evaluation.conformance import CHECKS, check_predictor
from sagellm_lifetime.predictors import registry

BY_NAME = {check.__name__: check for check in CHECKS}


class Broken(SurvivalLifetimePredictor):
    """Sound until a subclass breaks one thing."""

    name = "Broken"

    def __init_subclass__(cls) -> None:
        cls.name = cls.__name__


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    """Checkpoints load by name, so the broken ones need one."""
    here = sys.modules[__name__]
    monkeypatch.setitem(sys.modules, "sagellm_lifetime.predictors.broken", here)
    for name, value in vars(here).items():
        if isinstance(value, type) and issubclass(value, Broken):
            monkeypatch.setitem(registry._WHERE, name, f"broken:{name}")


class LearnsInPredict(Broken):
    def predict(self, request):
        self._timing.update(None, 10, 1.0)
        return super().predict(request)


class Overshoots(Broken):
    def predict(self, request):
        result = super().predict(request)
        result.estimated_remaining_tokens += 1
        return result


class NumpyAnswers(Broken):
    def predict(self, request):
        result = super().predict(request)
        result.estimated_remaining_tokens = np.int64(result.estimated_remaining_tokens)
        return result


class CertainFromTheStart(Broken):
    def predict(self, request):
        result = super().predict(request)
        result.confidence = 0.9
        return result


class NeverAModel(Broken):
    def predict(self, request):
        result = super().predict(request)
        result.source = "prior"
        return result


class FixedSecondsPerToken(Broken):
    def predict(self, request):
        result = super().predict(request)
        result.estimated_time = result.estimated_remaining_tokens * 0.02
        return result


class TakesEveryLength(Broken):
    def predict(self, request):
        if isinstance(request.current_length, float):
            request.current_length = int(request.current_length)
        return super().predict(request)


class HoldsTheList(Broken):
    """Learns how many tokens the list has when the sequence completes."""

    def _read(self, request):
        self._held = request.token_ids
        return super()._read(request)

    def _learn(self, completion):
        completion.length += len(self._held)
        super()._learn(completion)


class WritesIntoFeatures(Broken):
    def predict(self, request):
        if request.prompt_features is not None:
            request.prompt_features["seen"] = True
        return super().predict(request)


class BatchBackwards(Broken):
    def predict_batch(self, requests):
        return super().predict_batch(requests)[::-1]


class BatchAtAgeZero(Broken):
    def predict_batch(self, requests):
        return super().predict_batch(
            [PredictionRequest(r.sequence_id, [], 0, r.max_length) for r in requests]
        )


class ArrayWithoutCap(Broken):
    def quantiles(self, sequence_ids, ages, levels):
        self._tracker.caps[:] = 2**60
        return super().quantiles(sequence_ids, ages, levels)


class Unseeded(Broken):
    def _learn(self, completion):
        completion.length += int(np.random.default_rng().integers(3))
        super()._learn(completion)


class SharedTables(Broken):
    def clone(self):
        twin = super().clone()
        twin._tables = self._tables
        return twin


class ForgetsOnLoad(Broken):
    def _restore(self, state):
        pass


class AbortsAreLengths(Broken):
    def update(self, sequence_id, actual_length, actual_time, *, finish_reason="stop"):
        finish_reason = "stop" if finish_reason in ("abort", "error") else finish_reason
        super().update(sequence_id, actual_length, actual_time, finish_reason=finish_reason)


class CapsAreHalfLengths(Broken):
    def update(self, sequence_id, actual_length, actual_time, *, finish_reason="stop"):
        if finish_reason == "length":
            actual_length, finish_reason = actual_length // 2, "stop"
        super().update(sequence_id, actual_length, actual_time, finish_reason=finish_reason)


class DropsOddTokens(Broken):
    def predict(self, request):
        if 0 < len(request.token_ids) < request.current_length:
            raise ValueError("where are the tokens?")
        return super().predict(request)


class NanIsPoison(Broken):
    def _read(self, request):
        said = request.prompt_features or {}
        self._noise = getattr(self, "_noise", 0.0) + 0.0 * (said.get("eos_logprob") or 0.0)
        return super()._read(request)

    def predict(self, request):
        result = super().predict(request)
        result.confidence += self._noise
        return result


class StringIdsAreInts(Broken):
    def predict(self, request):
        name = request.sequence_id
        if isinstance(name, str) and name.isdigit():
            request.sequence_id = int(name)
        return super().predict(request)


class NoneIsZero(Broken):
    def predict(self, request):
        said = request.prompt_features
        if said and "prompt_length" in said and said["prompt_length"] is None:
            request.max_length = 5
        return super().predict(request)


class UnknownKeysMatter(Broken):
    def predict(self, request):
        if "nobody_knows" in (request.prompt_features or {}):
            request.max_length = 5
        return super().predict(request)


class SharesRandomness(Broken):
    def predict(self, request):
        self._calls = getattr(self, "_calls", 0) + 1
        if self._calls > 12:
            request.max_length = 7
        return super().predict(request)


class OneBatchOneRow(Broken):
    """Rows of a batch beyond the tracker's capacity are those of other sequences."""

    def predict_batch(self, requests):
        if len(requests) > self._tracker.capacity:
            return [super().predict_batch(requests)[0]] * len(requests)
        return super().predict_batch(requests)


class EmptyBatchFails(Broken):
    def predict_batch(self, requests):
        return super().predict_batch(requests) or [None]


class ForgetsTwins(Broken):
    def predict_batch(self, requests):
        unique = {r.sequence_id: r for r in requests}
        answers = dict(zip(unique, super().predict_batch(list(unique.values())), strict=True))
        return [answers[r.sequence_id] for r in requests]


class BatchesTeachNothing(Broken):
    def predict_batch(self, requests):
        twin = self.clone()
        return twin.predict_batch(requests)


class StaleCap(Broken):
    def quantiles(self, sequence_ids, ages, levels):
        self._tracker.caps[:] = 512
        return super().quantiles(sequence_ids, ages, levels)


class TripsOverUnanswered(Broken):
    def update(self, sequence_id, actual_length, actual_time, *, finish_reason="stop"):
        item = self._tracker._items.get(sequence_id)
        if item is not None and not item.answers:
            self.discard(sequence_id)
            raise ValueError("zip() argument 2 is longer than argument 1")
        super().update(sequence_id, actual_length, actual_time, finish_reason=finish_reason)


class DiesOfOddCompletions(Broken):
    def _learn(self, completion):
        1 / completion.length
        super()._learn(completion)

    def _fit(self, older, newest, progress):
        1 / older["actual_length"].max()
        super()._fit(older, newest, progress)


class HalfAFit(Broken):
    def _fit(self, older, newest, progress):
        self._tables.learn_many([], [], np.array([], dtype=int), np.array([], dtype=bool))
        self._tables.count += 7
        progress("one", 0.0)
        progress("two", 0.5)
        super()._fit(older, newest, progress)


class LearnsNothing(Broken):
    def _learn(self, completion):
        pass


class DeafToLessons(Broken):
    """Not even the calibration learns, which alone would find a constant length."""

    def update(self, sequence_id, actual_length, actual_time, *, finish_reason="stop"):
        self.discard(sequence_id)


class OneKind(Broken):
    def _read(self, request):
        return super()._read(PredictionRequest(0, [], 0, None))


class TakesEveryCompletion(Broken):
    def update(self, sequence_id, actual_length, actual_time, *, finish_reason="stop"):
        if finish_reason == "finished":
            finish_reason = "stop"
        super().update(sequence_id, actual_length, actual_time, finish_reason=finish_reason)


class LosesRefused(Broken):
    def update(self, sequence_id, actual_length, actual_time, *, finish_reason="stop"):
        try:
            super().update(sequence_id, actual_length, actual_time, finish_reason=finish_reason)
        except ValueError:
            self.discard(sequence_id)
            raise


class CountsTwice(Broken):
    def discard(self, sequence_id):
        super().discard(sequence_id)
        self._tracker.discarded += 1


class Unbounded(Broken):
    def predict(self, request):
        self._tracker.capacity = 10**9
        return super().predict(request)


class ScoresTheLastPrediction(Broken):
    def predict(self, request):
        item = self._tracker.get(request.sequence_id, request.current_length)
        if item is not None:
            item.estimate = -1
        return super().predict(request)


class CountsWithoutLock(Broken):
    def discard(self, sequence_id):
        before = self._tracker.discarded
        super().discard(sequence_id)
        if self._tracker.discarded > before:
            sleep(1e-3)
            self._tracker.discarded = before + 1


class TellsSecrets(Broken):
    def _learn(self, completion):
        self._options["seed"] = repr(completion.evidence.features) + str(self._last)
        super()._learn(completion)

    def predict(self, request):
        self._last = request.prompt_features
        return super().predict(request)


class KeepsTokens(Broken):
    def _read(self, request):
        self._kept = np.array(request.token_ids or [0])
        return super()._read(request)

    def _state(self):
        return {**super()._state(), "kept": getattr(self, "_kept", np.zeros(1))}


class KeepsOldLessons(Broken):
    def _fit(self, older, newest, progress):
        tables = self._tables
        super()._fit(older, newest, progress)
        if tables.count:
            self._tables = tables


class ClearsBeforeReading(Broken):
    def fit(self, history, *, progress=None):
        self._tables = type(self._tables)()
        return super().fit(history, progress=progress)


class WithoutDistribution(Broken):
    def predict(self, request):
        result = super().predict(request)
        return PredictionResult(
            result.estimated_remaining_tokens, result.confidence, result.estimated_time
        )


class Lawless(Broken):
    """Answers with a distribution that breaks a law."""

    law = LengthDistribution

    def predict(self, request):
        result = super().predict(request)
        d = result.distribution
        result.distribution = self.law(d.row, d.age, d.shift, d.max_length, d.curve)
        return result


class SurvivalRises(Lawless):
    class law(LengthDistribution):  # noqa: N801
        def survival(self, n):
            return super().survival(n if n != 30 else 20)


class AliveAtTheCap(Lawless):
    class law(LengthDistribution):  # noqa: N801
        def survival(self, n):
            return max(super().survival(n), 1e-5)


class QuantileOneTooMany(Lawless):
    class law(LengthDistribution):  # noqa: N801
        def quantile(self, q):
            return super().quantile(q) + 1


class IgnoresGiven(Lawless):
    class law(LengthDistribution):  # noqa: N801
        def given(self, age):
            return super().given(min(age, 500))


class LopsidedInterval(Lawless):
    class law(LengthDistribution):  # noqa: N801
        def interval(self, level):
            return self.quantile(level), self.quantile(1.0 - level / 2)


class MeanOfTotal(Lawless):
    class law(LengthDistribution):  # noqa: N801
        def mean(self):
            return self.age + super().mean()


class MeanIsMedian(Lawless):
    class law(LengthDistribution):  # noqa: N801
        def mean(self):
            return float(self.median())


class TailUnderflows(Lawless):
    """Divides survivals, which far out are 0 / 0."""

    class law(LengthDistribution):  # noqa: N801
        def survival(self, n):
            total = LengthDistribution(self.row)
            here = total.survival(self.age)
            return total.survival(self.age + n) / here if here > 1e-12 else 0.0


class GivesUp(Broken):
    """One more token, whatever was said before."""

    def predict(self, request):
        result = super().predict(request)
        if request.current_length:
            result.estimated_remaining_tokens = 1
        return result


class ForgetsAge(Broken):
    """The distribution of the total length in place of the remaining one."""

    def _answer(self, item, age, cap):
        return super()._answer(item, 0, cap)


CATCHES = {
    LearnsInPredict: ["check_predict_learns_nothing"],
    Overshoots: ["check_answers_keep_the_contract"],
    NumpyAnswers: ["check_answers_keep_the_contract"],
    CertainFromTheStart: ["check_useful_before_training"],
    NeverAModel: ["check_useful_before_training", "check_fit_teaches"],
    FixedSecondsPerToken: ["check_time_is_estimate_times_seconds_per_token"],
    TakesEveryLength: ["check_impossible_requests_are_refused"],
    HoldsTheList: ["check_no_hold_of_arguments"],
    WritesIntoFeatures: ["check_arguments_are_untouched"],
    BatchBackwards: ["check_batch_equals_single"],
    BatchAtAgeZero: ["check_batch_equals_single"],
    ArrayWithoutCap: ["check_array_form_equals_predict"],
    Unseeded: ["check_seeded", "check_fit_is_deterministic", "check_fit_takes_every_form"],
    SharedTables: ["check_clone"],
    ForgetsOnLoad: ["check_clone", "check_save_and_load", "check_learning_after_load"],
    AbortsAreLengths: ["check_only_aborts_do_not_shorten", "check_aborts_do_not_shorten"],
    CapsAreHalfLengths: ["check_caps_do_not_shorten"],
    DropsOddTokens: ["check_empty_and_partial_tokens"],
    NanIsPoison: ["check_nonsense_does_no_harm"],
    StringIdsAreInts: ["check_every_kind_of_id_and_number"],
    NoneIsZero: ["check_missing_differs_from_zero"],
    UnknownKeysMatter: ["check_unknown_features_are_ignored"],
    SharesRandomness: ["check_asking_again_gives_the_same", "check_other_sequences_do_not_matter"],
    OneBatchOneRow: ["check_batch_larger_than_capacity"],
    EmptyBatchFails: ["check_empty_batch"],
    ForgetsTwins: ["check_same_sequence_twice_in_a_batch"],
    BatchesTeachNothing: ["check_learning_after_batches"],
    StaleCap: ["check_array_form_knows_the_newest_cap"],
    TripsOverUnanswered: ["check_half_refused_batch_loses_nothing"],
    DiesOfOddCompletions: ["check_odd_completions_are_lessons", "check_fit_needs_only_lengths"],
    HalfAFit: ["check_interrupted_fit_changes_nothing"],
    LearnsNothing: ["check_separates_kinds"],
    DeafToLessons: ["check_learns_a_constant_length", "check_learning_reaches_running_sequences"],
    OneKind: ["check_separates_kinds"],
    TakesEveryCompletion: ["check_bad_completions_are_refused"],
    LosesRefused: ["check_bad_completions_are_refused"],
    CountsTwice: ["check_counts_add_up", "check_life_of_a_sequence", "check_threads"],
    Unbounded: ["check_capacity_and_expiry", "check_counts_add_up"],
    ScoresTheLastPrediction: ["check_metrics_by_hand"],
    CountsWithoutLock: ["check_threads"],
    TellsSecrets: ["check_checkpoints_are_private"],
    KeepsTokens: ["check_checkpoints_are_private"],
    KeepsOldLessons: ["check_fit_starts_from_scratch"],
    ClearsBeforeReading: ["check_bad_histories_are_refused"],
    WithoutDistribution: ["check_answers_keep_the_contract"],
    SurvivalRises: ["check_survival_falls_from_one_to_zero"],
    AliveAtTheCap: ["check_survival_falls_from_one_to_zero"],
    QuantileOneTooMany: ["check_quantile_is_inverse_of_survival"],
    IgnoresGiven: ["check_conditioning"],
    LopsidedInterval: ["check_intervals_are_nested"],
    MeanOfTotal: ["check_mean_is_sum_of_survival"],
    MeanIsMedian: ["check_mean_is_sum_of_survival"],
    TailUnderflows: ["check_far_tails_are_sound"],
    GivesUp: ["check_older_sequences_live_on", "check_answers_keep_the_contract"],
    ForgetsAge: ["check_answers_keep_the_contract"],
}


@pytest.mark.parametrize(
    ("broken", "check"),
    [(broken, check) for broken, checks in CATCHES.items() for check in checks],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_check_notices(broken, check):
    # A broken predictor may also trip over itself before the check can say what is wrong.
    with pytest.raises((AssertionError, RuntimeError, LookupError, ValueError, ArithmeticError)):
        BY_NAME[check](lambda: broken(seed=1))


def test_a_sound_subclass_passes_everything():
    check_predictor(lambda: Broken(seed=1))


def test_check_predictor_stops_at_the_first_failure():
    with pytest.raises(AssertionError, match="the source is 'prior'"):
        check_predictor(lambda: NeverAModel(seed=1))


def test_other_options_are_kept_where_a_check_changes_some():
    BY_NAME["check_capacity_and_expiry"](lambda: create_predictor("baseline", window_size=7))


def test_every_check_has_been_seen_to_fail():
    seen = {check for checks in CATCHES.values() for check in checks}
    assert set(BY_NAME) - seen <= {"check_protocol"}
