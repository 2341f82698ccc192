"""Broken in what is learned, from a completion or a history, and in what is kept of it."""

import numpy as np
from broken import Broken

from sagellm_lifetime import PredictionRequest


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


CATCHES = {
    Unseeded: ["check_seeded", "check_fit_is_deterministic", "check_fit_takes_every_form"],
    SharedTables: ["check_clone"],
    ForgetsOnLoad: ["check_clone", "check_save_and_load", "check_learning_after_load"],
    AbortsAreLengths: ["check_only_aborts_do_not_shorten", "check_aborts_do_not_shorten"],
    CapsAreHalfLengths: ["check_caps_do_not_shorten"],
    DiesOfOddCompletions: ["check_odd_completions_are_lessons", "check_fit_needs_only_lengths"],
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
