"""Broken in what is learned, from a completion or a history, and in what is kept of it."""

from contextlib import suppress

import numpy as np
from broken import Broken, BrokenModel

from sagellm_lifetime import PredictionRequest
from sagellm_lifetime.models.context import Context


class Unseeded(BrokenModel):
    def learn(self, feedback):
        noise = int(np.random.default_rng().integers(3))
        super().learn(feedback._replace(length=feedback.length + noise))


class SharedTables(Broken):
    def clone(self):
        twin = super().clone()
        twin.model = self.model
        return twin


class ForgetsOnLoad(BrokenModel):
    def restore(self, state):
        pass


class TrustsArrays(BrokenModel):
    def restore(self, state):
        with suppress(ValueError):
            super().restore(state)


class AbortsAreLengths(Broken):
    def update(self, sequence_id, actual_length, actual_time, *, finish_reason="stop"):
        finish_reason = "stop" if finish_reason in ("abort", "error") else finish_reason
        super().update(sequence_id, actual_length, actual_time, finish_reason=finish_reason)


class CapsAreHalfLengths(Broken):
    def update(self, sequence_id, actual_length, actual_time, *, finish_reason="stop"):
        if finish_reason == "length":
            actual_length, finish_reason = actual_length // 2, "stop"
        super().update(sequence_id, actual_length, actual_time, finish_reason=finish_reason)


class DiesOfOddCompletions(BrokenModel):
    def learn(self, feedback):
        1 / feedback.length
        super().learn(feedback)

    def fit(self, older, newest, context, progress):
        1 / older["actual_length"].max()
        super().fit(older, newest, context, progress)


class HalfAFit(BrokenModel):
    """Fits the model in use, not one that is to take its place."""

    def successor(self):
        return self

    def fit(self, older, newest, context, progress):
        self.tables.count += 7
        progress("one", 0.0)
        progress("two", 0.5)
        super().fit(older, newest, context, progress)


class LearnsNothing(BrokenModel):
    def learn(self, feedback):
        pass


class DeafToLessons(Broken):
    """Not even the calibration learns, which alone would find a constant length."""

    def update(self, sequence_id, actual_length, actual_time, *, finish_reason="stop"):
        self.discard(sequence_id)


class OneKind(BrokenModel):
    def observe(self, request):
        return super().observe(Context().observe(PredictionRequest(0, [], 0, None)))


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


class TellsSecrets(BrokenModel):
    def learn(self, feedback):
        self.options["seed"] = repr(feedback.evidence.features) + str(self._last)
        super().learn(feedback)

    def observe(self, request):
        self._last = request.request.prompt_features
        return super().observe(request)


class KeepsTokens(BrokenModel):
    def observe(self, request):
        self._kept = np.array(request.request.token_ids or [0])
        return super().observe(request)

    def state(self):
        return {**super().state(), "kept": getattr(self, "_kept", np.zeros(1))}


class KeepsOldLessons(BrokenModel):
    def successor(self):
        model = super().successor()
        if self.tables.count:
            model.tables = self.tables
        return model


class ClearsBeforeReading(Broken):
    def fit(self, history, *, progress=None):
        self.model = self.model.new()
        return super().fit(history, progress=progress)


CATCHES = {
    Unseeded: ["check_seeded", "check_fit_is_deterministic", "check_fit_takes_every_form"],
    SharedTables: ["check_clone"],
    ForgetsOnLoad: ["check_clone", "check_save_and_load", "check_learning_after_load"],
    TrustsArrays: ["check_arrays_that_do_not_fit_are_refused"],
    AbortsAreLengths: ["check_only_aborts_do_not_shorten", "check_aborts_do_not_shorten"],
    CapsAreHalfLengths: ["check_caps_do_not_shorten"],
    DiesOfOddCompletions: ["check_odd_completions_are_learned", "check_fit_needs_only_lengths"],
    HalfAFit: ["check_interrupted_fit_changes_nothing"],
    LearnsNothing: ["check_separates_kinds"],
    DeafToLessons: ["check_learns_a_constant_length", "check_learning_reaches_running_sequences"],
    OneKind: ["check_separates_kinds"],
    TakesEveryCompletion: ["check_bad_completions_are_refused"],
    LosesRefused: ["check_bad_completions_are_refused"],
    TellsSecrets: ["check_checkpoints_are_private"],
    KeepsTokens: ["check_checkpoints_are_private"],
    KeepsOldLessons: ["check_fit_starts_from_scratch"],
    ClearsBeforeReading: ["check_bad_histories_are_refused"],
}
