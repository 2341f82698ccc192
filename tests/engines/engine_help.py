"""A live scheduler without a model: requests go in, made-up tokens come out."""

from itertools import count
from typing import ClassVar

from sagellm_lifetime import create_predictor
from sagellm_lifetime.replay.engine import STOP, EngineSettings, build_scheduler
from sagellm_lifetime.vllm.settings import LiveSettings

MODEL_LENGTH = 512
MODEL = "toy"
"""What the predictors of the tests have learned of, and the engine serves."""
PATIENCE_S = 120.0
"""For a process to start and to learn, on a busy machine."""
SMALL = EngineSettings(blocks=60, max_num_seqs=16, max_num_batched_tokens=256)


class Engine:
    """Steps a scheduler by hand; a request ends after the number of tokens it was given.

    What learns is a process of its own; the tests' ``conftest.py`` ends those in ``learning``.
    """

    learning: ClassVar[list] = []

    @staticmethod
    def import_vllm():
        """Import vLLM as the tests do; ``conftest.py`` puts their fixture here."""

    def __init__(self, settings=SMALL, *, asynchronous=False, scheduler_cls=None):
        self.import_vllm()
        from sagellm_lifetime.vllm.live import LiveAsyncScheduler, LiveScheduler

        chosen = scheduler_cls or (LiveAsyncScheduler if asynchronous else LiveScheduler)
        self.scheduler = build_scheduler(settings, MODEL_LENGTH, chosen)
        self.now = 1000.0
        self.scheduler.clock = lambda: self.now
        self.lengths = {}
        self.schedule = []
        """Per step, what was scheduled: [(id, tokens), …]."""
        self.preempted = []
        self._names = count()
        self._hasher = None
        if settings.prefix_caching:
            from sagellm_lifetime.replay.engine import block_hasher

            self._hasher = block_hasher(settings.block_size)

    @property
    def advisor(self):
        return self.scheduler.advisor

    @property
    def learner(self):
        return self.scheduler._service._learner

    def learned(self):
        """The statistics when all that has ended is learned."""
        assert self.learner._background.drain(PATIENCE_S)
        return self.stats()

    def on(self, **said):
        """Switch prediction on. A step takes no time here, so any cost would be too much."""
        self.scheduler.switch_on(LiveSettings(**{"floor_s": 1.0, "learn_every_s": 3600.0, **said}))
        if self.learner is not None:
            self.learning.append(self.learner)
        return self

    def predict_with(self, predictor, **said):
        """The same, with a predictor of the test's."""
        from sagellm_lifetime.vllm import build

        self.scheduler.vllm_config.model_config.served_model_name = MODEL
        made, build.make_predictor = build.make_predictor, lambda *_: predictor
        try:
            return self.on(**said)
        finally:
            build.make_predictor = made

    def request(self, length, *, prompt=20, name=None, resumable=False, **params):
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        name = name or f"r{next(self._names)}"
        self.lengths[name] = length
        params = {"max_tokens": 400, "stop_token_ids": [STOP], "detokenize": False, **params}
        tokens = prompt if isinstance(prompt, list) else list(range(prompt))
        return Request(
            name,
            tokens,
            SamplingParams(**params),
            None,
            arrival_time=self.now,
            block_hasher=self._hasher,
            resumable=resumable,
        )

    def add(self, length, **options):
        made = self.request(length, **options)
        self.scheduler.add_request(made)
        self.now += 0.001
        return made

    def step(self, per_step=1):
        """One step; running requests get ``per_step`` tokens (speculative decoding: more)."""
        from vllm.v1.outputs import ModelRunnerOutput

        scheduler = self.scheduler
        out = scheduler.schedule()
        self.schedule.append(sorted(out.num_scheduled_tokens.items()))
        self.preempted += sorted(out.preempted_req_ids or ())
        names = list(out.num_scheduled_tokens)
        tokens = []
        for name in names:
            request = scheduler.requests[name]
            if request.num_computed_tokens < request.num_tokens:
                tokens.append([])
                continue
            left = self.lengths[name] - request.num_output_tokens
            some = [7] * min(per_step, left)
            tokens.append([*some[:-1], STOP] if left <= per_step else some)
        self.now += 0.01
        return scheduler.update_from_output(
            out, ModelRunnerOutput(names, {n: i for i, n in enumerate(names)}, tokens)
        )

    def run(self, steps=10_000, **options):
        """Until nothing is left, or so many steps."""
        for _ in range(steps):
            if not self.scheduler.requests:
                return self
            self.step(**options)
        return self

    def abort(self, *names):
        from vllm.v1.request import RequestStatus

        self.scheduler.finish_requests(list(names), RequestStatus.FINISHED_ABORTED)

    def stats(self):
        return self.scheduler._service.stats()


def fitted(seed=0):
    """A predictor that tells long from short by the client."""
    predictor = create_predictor("survival", seed=seed)
    from sagellm_lifetime.core.protocol import PredictionRequest

    for i in range(200):
        long = i % 2
        predictor.predict(
            PredictionRequest(
                i, [], 0, 400, {"model": MODEL, "client_id": "long" if long else "short"}
            )
        )
        predictor.update(i, 200 if long else 10, 1.0)
    predictor.settle()  # the calibration learns in batches, and an engine that starts settles it
    return predictor


def adds_up(stats):
    """The invariant of the counts."""
    return stats["total_predictions"] == (
        stats["completions"] + stats["censored"] + stats["running"]
    )


def mixed_load(engine, n=40, steps=6):
    """Long and short requests that are too many for the memory; some arrive while others run."""
    for i in range(n):
        long = i % 3 == 0
        engine.add(
            120 if long else 8,
            prompt=30,
            extra_args={"client_id": "long" if long else "short"},
        )
        if i % 4 == 3:
            engine.run(steps)
    return engine
