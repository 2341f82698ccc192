"""Steps of beam search are requests to the engine and no sequences to us."""

import asyncio
from types import SimpleNamespace

import pytest
from engine_help import SMALL, Engine, adds_up, fitted, mixed_load

from sagellm_lifetime import create_predictor
from sagellm_lifetime.history import read
from sagellm_lifetime.vllm.beam_search import is_beam_step

WIDTH = 4


def request(name="cmpl-1-a5-beam-0-b7", max_tokens=1, **params):
    found = {"detokenize": False, "logprobs": 8, **params}
    return SimpleNamespace(
        request_id=name, max_tokens=max_tokens, sampling_params=SimpleNamespace(**found)
    )


@pytest.mark.parametrize(
    ("made", "is_one"),
    [
        (request(), True),
        (request("17-b7"), True),  # offline: by what is asked for alone
        (request(logprobs=None), True),  # among allowed tokens, whose log-probabilities are exact
        (request("17-b7", logprobs=None), False),
        (request("cmpl-x-beam-1-b7", max_tokens=100), False),  # a client's own name
        (request("cmpl-x-beam-1-b7", detokenize=True), False),
        (request("cmpl-1-b7", detokenize=True, logprobs=5), False),  # one token for a client
    ],
)
def test_by_what_it_asks_for(made, is_one):
    assert is_beam_step(made) is is_one


class Enough(Exception):  # noqa: N818  # not an error: the first step has been seen
    pass


def test_as_vllms_front_end_makes_them(vllm):
    from vllm.sampling_params import BeamSearchParams

    online = pytest.importorskip("vllm.entrypoints.generate.beam_search.online")
    made = []

    async def generate(prompt, sampling_params, request_id, **_):
        made.append((sampling_params, request_id))
        raise Enough
        yield

    async def search():
        front_end = online.BeamSearchOnlineMixin()
        processor = SimpleNamespace(
            resolve_watermarking=lambda params: None, generation_config_fields={}, vllm_config=None
        )
        front_end.engine_client = SimpleNamespace(generate=generate, input_processor=processor)
        tokenizer = SimpleNamespace(eos_token_id=2)
        front_end.renderer = SimpleNamespace(get_tokenizer=lambda: tokenizer)
        prompt = {"type": "token", "prompt_token_ids": [1, 2, 3]}
        params = BeamSearchParams(beam_width=WIDTH, max_tokens=3)
        async for _ in front_end.beam_search(prompt, "cmpl-7", params):
            pass

    with pytest.raises(Enough):
        asyncio.run(search())
    ((params, served),) = made
    assert "-beam-" in served
    for name in (f"{served}-0123abcd", "17-0123abcd"):  # the engine's suffix; offline
        assert is_beam_step(
            SimpleNamespace(request_id=name, max_tokens=params.max_tokens, sampling_params=params)
        )


def beam_search(engine, steps=5):
    """A request for beam search: one request a beam and step, each of one token."""
    for step in range(steps):
        for i in range(WIDTH if step else 1):
            name = f"cmpl-9-{step}-beam-{i}-b7"
            engine.add(1, name=name, prompt=20 + step, max_tokens=1, logprobs=2 * WIDTH)
        while any("-beam-" in name for name in engine.scheduler.requests):
            engine.step()
    return engine


STEPS = 1 + 4 * WIDTH


def rows(folder):
    return read.read_history(folder).frame["request_id"].to_list()


@pytest.mark.parametrize("policy", ["lifetime", "reserve"])
@pytest.mark.parametrize("mode", ["off", "shadow", "act"])
def test_they_are_counted_apart_and_nothing_else(mode, policy, tmp_path):
    predictor = fitted()
    asked = []
    predict = predictor.predict
    predictor.predict = lambda request: asked.append(request.sequence_id) or predict(request)
    engine = Engine().predict_with(
        predictor, mode=mode, policy=policy, learn=True, record=str(tmp_path)
    )
    mixed_load(engine, n=12)
    beam_search(engine).run()
    stats = engine.learned()
    assert adds_up(stats)
    assert stats["beam_steps"] == STEPS
    assert stats["total_predictions"] + stats["unpredicted"] == 12
    assert stats["completions"] == stats["lessons_taken"] == (0 if mode == "off" else 12)
    assert not any("-beam-" in name for name in asked)
    assert engine.advisor.breaker.state == "closed"
    assert stats["breaker"]["faults"] == dict.fromkeys(stats["breaker"]["faults"], 0)
    engine.scheduler.shutdown()
    assert sorted(rows(tmp_path)) == sorted(name for name in engine.lengths if "-beam-" not in name)


def test_a_planner_that_comes_later_knows_them():
    engine = Engine().predict_with(create_predictor("lstm", hidden_size=8), mode="shadow")
    for i in range(40):
        engine.add(1, name=f"cmpl-9-0-beam-{i}-b7", prompt=40, max_tokens=1, logprobs=8)
        engine.add(30, prompt=40)
    engine.step()
    assert len(engine.scheduler.waiting) > 20
    engine.advisor.set_mode("act")
    engine.run()
    stats = engine.stats()
    assert adds_up(stats)
    assert (stats["beam_steps"], stats["completions"]) == (40, 40)
    assert engine.advisor.breaker.state == "closed"
    assert not engine.advisor._advisor._beam_steps


def test_what_is_typical_is_not_learned_from_them():
    alone, beside = (Engine(SMALL).predict_with(fitted(), mode="act") for _ in range(2))
    for engine in (alone, beside):
        for _ in range(30):
            engine.add(120, prompt=100, extra_args={"client_id": "long"})
        engine.run(20)
    for i in range(30):
        beside.add(1, name=f"cmpl-9-0-beam-{i}-b7", prompt=40, max_tokens=1, logprobs=8)
    beside.run(20)
    theirs, ours = (engine.advisor._advisor._typical for engine in (alone, beside))
    assert theirs.tokens == ours.tokens > 10


def test_one_that_is_given_up_is_one_too(tmp_path):
    engine = Engine().predict_with(fitted(), mode="shadow", record=str(tmp_path))
    engine.add(1, name="cmpl-9-0-beam-0-b7", max_tokens=1, logprobs=8)
    engine.abort("cmpl-9-0-beam-0-b7")
    stats = engine.stats()
    assert (stats["beam_steps"], stats["unpredicted"], stats["finish_reasons"]) == (1, 0, {})
    engine.step()
    assert not engine.advisor._advisor._beam_steps
