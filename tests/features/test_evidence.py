"""The sequence a network reads: completions in order, the admission, chunks as they complete."""

import numpy as np
import pytest

from sagellm_lifetime.core.errors import RequestError
from sagellm_lifetime.core.grid import MAX_LENGTH
from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.features.context import OF_CLIENT, OF_SESSION, RecentCompletions
from sagellm_lifetime.features.encode import WIDTH, admission_step, finished_step, log_scaled
from sagellm_lifetime.features.evidence import (
    CHUNK_AGES,
    MOST_CHUNKS,
    chunks_at,
    generated_tokens,
    read_chunks,
    read_evidence,
)
from sagellm_lifetime.features.name_keys import NameKeys
from sagellm_lifetime.features.request import RequestFeatures, read_request

SAID = {"client_id": "c", "session_id": "s"}
KEYS = NameKeys.seeded(0)


def asked(age=0, tokens=(), **said) -> PredictionRequest:
    return PredictionRequest("x", list(tokens), age, 4096, {**SAID, **said})


def evidence_of(request, recent=None):
    features = read_request(request, KEYS)
    return read_evidence(request, features.session_key, features, recent or RecentCompletions())


def test_completions_come_oldest_first_and_the_admission_last():
    recent = RecentCompletions()
    features = read_request(asked(), KEYS)
    past = [10, 20, 30, 40, 50, 60]
    for length in past:
        recent.learn(features, features.session_key, length, censored=length == 50)
    evidence = evidence_of(asked(), recent)
    steps = [step.numbers for step in evidence.steps()]
    assert len(steps) == OF_CLIENT + OF_SESSION + 1
    lengths = [step[4] for step in steps[:-1]]
    wanted = past[-OF_CLIENT:] + past[-OF_SESSION:]
    assert np.allclose(lengths, [log_scaled(n) for n in wanted])
    assert [step[5] for step in steps[:-1]] == [n == 50 for n in wanted]
    kinds = [int(np.argmax(step[:4])) for step in steps]
    assert kinds == [1] * OF_CLIENT + [0] * OF_SESSION + [2]
    recency = [step[6] for step in steps[OF_CLIENT:-1]]
    assert recency == sorted(recency, reverse=True)
    assert recency[-1] == 0.0


def test_every_step_has_the_same_layout():
    recent = RecentCompletions()
    features = read_request(asked(prompt_length=7), KEYS)
    recent.learn(features, features.session_key, 10, censored=False)
    request = asked(200, range(260), prompt_text="Why?", prompt_length=60, temperature=1.0)
    evidence = evidence_of(request, recent)
    read_chunks(evidence, request)
    for step in evidence.steps():
        assert step.numbers.shape == (WIDTH,)
        assert step.numbers.dtype == np.float32
        assert np.isfinite(step.numbers).all()


def test_missing_differs_from_zero():
    for key in ("prompt_length", "max_length", "turn", "temperature", "has_tools"):
        missing = admission_step(RequestFeatures(), None, 0)
        zero = admission_step(RequestFeatures(**{key: 0}), None, 0)
        assert not np.array_equal(missing, zero), key


def test_what_follows_a_finished_turn_is_its_growth():
    recent = RecentCompletions()
    before = read_request(asked(prompt_length=100), KEYS)
    recent.learn(before, before.session_key, 50, censored=False)
    (finished,) = recent.session(before.session_key)
    step = finished_step(finished, read_request(asked(prompt_length=180), KEYS), "session", 0)
    assert step[4 + 5] == pytest.approx(log_scaled(30))
    assert step[4 + 6] == 0.0


def test_recent_completions_are_bounded_and_round_trip():
    recent = RecentCompletions(capacity=10)
    for i in range(100):
        features = RequestFeatures(client_key=KEYS.key("client", i), prompt_length=i or None)
        recent.learn(features, KEYS.key("session", i), i, censored=bool(i % 2))
    assert recent.session(KEYS.key("session", 0)) == []
    assert recent.session(0) == []
    (last,) = recent.session(KEYS.key("session", 99))
    assert (last.length, last.censored, last.prompt_length) == (99, True, 99)
    twin = RecentCompletions(capacity=10)
    twin.restore(recent.state())
    assert twin._items == recent._items
    for each in (recent, twin):
        each.learn(RequestFeatures(), KEYS.key("session", 99), 5, censored=False)
    assert twin._items == recent._items


def test_sessions_that_come_once_replace_none_that_come_again():
    recent = RecentCompletions(capacity=100)
    known = list(range(1, 41))
    for _ in range(2):
        for session in known:
            recent.learn(RequestFeatures(), session, 50, censored=False)
    for i in range(5000):
        recent.learn(RequestFeatures(client_key=9), 1000 + i, 7, censored=False)
    assert all(len(recent.session(session)) == 2 for session in known)
    assert len(recent._items) == 100
    twin = RecentCompletions(capacity=100)
    twin.restore(recent.state())
    assert list(twin._once) == list(recent._once)


def test_chunks_are_two_per_octave():
    assert CHUNK_AGES[:8] == [16, 32, 48, 64, 96, 128, 192, 256]
    assert CHUNK_AGES[-1] >= MAX_LENGTH
    assert [chunks_at(age) for age in (0, 15, 16, 47, 48, 10**7)] == [
        0,
        0,
        1,
        2,
        3,
        len(CHUNK_AGES),
    ]


def test_chunks_are_read_once_as_they_complete():
    tokens = np.random.default_rng(0).integers(0, 9000, 400).tolist()
    evidence = evidence_of(asked(0, tokens[:100]))
    read = []
    for age in (0, 10, 16, 17, 40, 50, 300):
        request = asked(age, tokens[: 100 + age])
        if read_chunks(evidence, request):
            read.append(age)
            assert evidence.age == age
            assert not read_chunks(evidence, request)
    assert read == [16, 40, 50, 300]
    assert len(evidence.chunks) == chunks_at(300)
    whole = evidence_of(asked(0, tokens[:100]))
    read_chunks(whole, asked(300, tokens))
    for a, b in zip(whole.chunks, evidence.chunks, strict=True):
        assert np.array_equal(a.numbers, b.numbers)
        assert np.array_equal(a.tokens, b.tokens)


def test_a_refused_request_leaves_the_evidence_as_it_was():
    tokens = list(range(200))
    evidence = evidence_of(asked(0, tokens[:100]))
    read_chunks(evidence, asked(20, tokens[:120]))
    before = (len(evidence.chunks), evidence.chunks_read, evidence.age)
    late = [
        *tokens[:160],
        "a",
        *tokens[161:],
    ]  # after new chunks that are good
    for bad in (asked(100, late), asked(100, output_text=["secret"])):
        with pytest.raises(RequestError) as caught:
            read_chunks(evidence, bad)
        assert "secret" not in str(caught.value)
        assert (len(evidence.chunks), evidence.chunks_read, evidence.age) == before
    assert read_chunks(evidence, asked(100, tokens))
    assert len(evidence.chunks) == chunks_at(100)


def test_a_network_sees_the_newest_chunks():
    evidence = evidence_of(asked(0, [1] * 10))
    read_chunks(evidence, asked(5000, [1] * 5010))
    assert len(evidence.steps()) == 1 + MOST_CHUNKS
    assert evidence.steps()[-1] is evidence.chunks[-1]
    assert len(evidence.steps(3)) == 1 + 3


def test_signals_of_the_engine_are_bounded():
    for value, kept in (
        (float("-inf"), True),
        (1e300, True),
        (np.float32(-3), True),
        (float("nan"), False),
        ("x", False),
        ([1, 2], True),
        ([], False),
        (["x", None], False),
        (np.array([-1.0, -2.0]), True),
    ):
        evidence = evidence_of(asked(0, [1] * 10))
        read_chunks(evidence, asked(20, [1] * 30, eos_logprob=value))
        numbers = evidence.chunks[0].numbers
        assert np.isfinite(numbers).all()
        assert (np.abs(numbers[-11]) > 0) == kept, value


def test_each_chunk_has_its_own_entries_of_a_signal():
    evidence = evidence_of(asked(0, [1] * 10))
    said = {"eos_logprob": [-16.0, -8.0, -4.0, -2.0, -1.0], "entropy": [4.0]}
    read_chunks(evidence, asked(70, [1] * 80, **said))
    eos, newest = ([chunk.numbers[at] for chunk in evidence.chunks] for at in (-12, -8))
    assert eos == [-1.0, -0.5, -0.25, -0.125]
    assert newest == eos
    assert [chunk.numbers[-10] for chunk in evidence.chunks] == [1.0, 0.0, 0.0, 0.0]
    read_chunks(evidence, asked(96, [1] * 106, eos_logprob=[-16.0] * 4 + [-8.0, -4.0]))
    assert (evidence.chunks[4].numbers[-12], evidence.chunks[4].numbers[-8]) == (-0.375, -0.25)


def test_generated_part_of_the_tokens():
    tokens = list(range(100))
    assert generated_tokens(asked(40, tokens), None) == tokens[60:]
    assert generated_tokens(asked(40, tokens), 60) == tokens[60:]
    assert generated_tokens(asked(0, tokens), None) == []
    assert generated_tokens(asked(40, tokens[:20]), None) == []
    assert generated_tokens(asked(40, tokens[:60]), 60) == [], "the prompt alone"
    assert generated_tokens(asked(40, tokens[:40]), 60) == tokens[:40], "the output alone"


def test_text_stands_in_for_tokens():
    evidence = evidence_of(asked())
    text = "1. one thing. 2. another thing. " * 20
    assert read_chunks(evidence, asked(100, output_text=text))
    assert len(evidence.chunks) == chunks_at(100)
    assert len(evidence.chunks[-1].tokens) > 0
    assert not read_chunks(evidence_of(asked()), asked(100)), "nothing was said"


def test_a_short_list_of_tokens_is_no_prompt():
    evidence = evidence_of(asked(50, range(20)))
    assert len(evidence.steps()[0].tokens) == 0
