"""Broken in what one prediction says, or in what asking leaves behind."""

import numpy as np
from broken import Broken, BrokenModel

from sagellm_lifetime.core.protocol import PredictionResult


class LearnsInPredict(Broken):
    def predict(self, request):
        self._timing.learn(0, None, 10, 1.0)
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


class HoldsTheList(BrokenModel):
    """Learns how many tokens the list has when the sequence completes."""

    def observe(self, request):
        self._held = request.request.token_ids
        return super().observe(request)

    def learn(self, feedback):
        super().learn(feedback._replace(length=feedback.length + len(self._held)))


class WritesIntoFeatures(Broken):
    def predict(self, request):
        if request.prompt_features is not None:
            request.prompt_features["seen"] = True
        return super().predict(request)


class SharesRandomness(Broken):
    def predict(self, request):
        self._calls = getattr(self, "_calls", 0) + 1
        if self._calls > 12:
            request.max_length = 7
        return super().predict(request)


class WithoutDistribution(Broken):
    def predict(self, request):
        result = super().predict(request)
        return PredictionResult(
            result.estimated_remaining_tokens, result.confidence, result.estimated_time
        )


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
    NeverAModel: ["check_useful_before_training", "check_fit_learns"],
    FixedSecondsPerToken: ["check_time_is_estimate_times_seconds_per_token"],
    HoldsTheList: ["check_no_hold_of_arguments"],
    WritesIntoFeatures: ["check_arguments_are_untouched"],
    SharesRandomness: ["check_asking_again_gives_the_same", "check_other_sequences_do_not_matter"],
    WithoutDistribution: ["check_answers_keep_the_contract"],
    GivesUp: ["check_older_sequences_live_on", "check_answers_keep_the_contract"],
    ForgetsAge: ["check_answers_keep_the_contract"],
}
