"""What a controller sees of an engine: requests, their queue and a clock."""

from collections import deque
from types import SimpleNamespace


class Queue(deque):
    """vLLM's queue, as far as it is used."""

    def prepend_request(self, request):
        self.appendleft(request)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def request(name, prompt, *, arrival=0.0, priority=0):
    return SimpleNamespace(
        request_id=name,
        num_tokens=prompt,
        num_output_tokens=0,
        num_computed_tokens=0,
        num_preemptions=0,
        arrival_time=arrival,
        priority=priority,
    )
