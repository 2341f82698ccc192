"""Broken in the counts: sequences lost, counted twice, or kept for ever."""

from time import sleep

from broken import Broken


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


CATCHES = {
    CountsTwice: ["check_counts_add_up", "check_life_of_a_sequence", "check_threads"],
    Unbounded: ["check_capacity_and_expiry", "check_counts_add_up"],
    ScoresTheLastPrediction: ["check_metrics_by_hand"],
    CountsWithoutLock: ["check_threads"],
}
