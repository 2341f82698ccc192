"""Broken where many are asked at once."""

from broken import Broken

from sagellm_lifetime import PredictionRequest


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


CATCHES = {
    BatchBackwards: ["check_batch_equals_single"],
    BatchAtAgeZero: ["check_batch_equals_single"],
    ArrayWithoutCap: ["check_array_form_equals_predict"],
    OneBatchOneRow: ["check_batch_larger_than_capacity"],
    EmptyBatchFails: ["check_empty_batch"],
    ForgetsTwins: ["check_same_sequence_twice_in_a_batch"],
    BatchesTeachNothing: ["check_learning_after_batches"],
    StaleCap: ["check_array_form_knows_the_newest_cap"],
}
