"""Broken in what may be asked."""

from broken import Broken

from sagellm_lifetime import RequestError


class TakesEveryLength(Broken):
    def predict(self, request):
        if isinstance(request.current_length, float):
            request.current_length = int(request.current_length)
        return super().predict(request)


class DropsOddTokens(Broken):
    def predict(self, request):
        if 0 < len(request.token_ids) < request.current_length:
            raise ValueError("where are the tokens?")
        return super().predict(request)


class NanIsPoison(Broken):
    def predict(self, request):
        said = request.prompt_features or {}
        self._noise = getattr(self, "_noise", 0.0) + 0.0 * (said.get("eos_logprob") or 0.0)
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
        if "unknown_key" in (request.prompt_features or {}):
            request.max_length = 5
        return super().predict(request)


class DropsBeforeItReads(Broken):
    def _observe(self, request):
        self._tracker.take(request.sequence_id)
        return super()._observe(request)


class EndsBeforeItChecks(Broken):
    def update(self, sequence_id, actual_length, actual_time, *, finish_reason="stop"):
        try:
            super().update(sequence_id, actual_length, actual_time, finish_reason=finish_reason)
        except RequestError:
            self.discard(sequence_id)
            raise


class PredictsHalfABatch(Broken):
    def predict_batch(self, requests):
        return [self.predict(request) for request in requests]


CATCHES = {
    TakesEveryLength: ["check_impossible_requests_are_refused"],
    DropsOddTokens: ["check_empty_and_partial_tokens"],
    NanIsPoison: ["check_nonsense_does_no_harm"],
    StringIdsAreInts: ["check_every_kind_of_id_and_number"],
    NoneIsZero: ["check_missing_differs_from_zero"],
    UnknownKeysMatter: ["check_unknown_features_are_ignored"],
    DropsBeforeItReads: ["check_refused_request_changes_nothing"],
    EndsBeforeItChecks: ["check_refused_request_changes_nothing"],
    PredictsHalfABatch: ["check_refused_batch_changes_nothing"],
}
