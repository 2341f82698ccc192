"""Sequences of every kind a server meets, told apart and counted once."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from engine_help import MODEL_LENGTH, SMALL, Engine, adds_up, fitted, mixed_load

from sagellm_lifetime import create_predictor
from sagellm_lifetime.vllm.circuit_breaker import LOG


class Recording:
    """Stands for the recorder: keeps the rows."""

    content = False
    recorded = lost = waiting = replaced = 0

    def __init__(self):
        self.rows = []

    def take(self, make):
        self.rows.append(make())

    take_now = take

    def flush(self):
        """Nothing to write."""

    close = flush


@pytest.fixture
def engine():
    return recorded(Engine().predict_with(fitted(), mode="act"))


def recorded(engine):
    engine.rows = Recording()
    engine.scheduler.request_events.recorder = engine.rows
    return engine


def rows(engine):
    return {row["request_id"]: row for row in engine.rows.rows}


def test_reasons_and_lengths(engine):
    engine.add(9, name="stops")
    engine.add(99, name="capped", max_tokens=12)
    engine.add(10_000, name="long", prompt=100, max_tokens=10_000)
    engine.add(50, name="running")
    engine.step()
    engine.run(5)
    engine.abort("running")
    engine.add(50, name="waiting")
    engine.abort("waiting")
    engine.run()
    found = {
        name: (row["finish_reason"], row["actual_length"]) for name, row in rows(engine).items()
    }
    assert found == {
        "stops": ("stop", 9),
        "capped": ("length", 12),
        "long": ("length", MODEL_LENGTH - 100),
        "running": ("abort", 6),
        "waiting": ("abort", 0),
    }
    assert rows(engine)["capped"]["max_length"] == 12
    assert rows(engine)["long"]["max_length"] == MODEL_LENGTH - 100
    stats = engine.stats()
    assert adds_up(stats)
    assert (stats["completions"], stats["censored"], stats["running"]) == (1, 4, 0)
    assert stats["finish_reasons"] == {"stop": 1, "length": 2, "abort": 2}
    assert (stats["scored"], stats["capped"], stats["sums"]["scored"]) == (1, 2, 1)


def test_a_stop_string_is_no_abort(engine):
    letters = SimpleNamespace(
        decode=lambda ids, skip_special_tokens: "".join(chr(97 + i) for i in ids)
    )
    engine.scheduler.request_events.finish_reasons.tokenizer = letters
    for name, stop in (("stopped", ["xx", "hh"]), ("hung-up", ["xx"]), ("without", None)):
        engine.add(50, name=name, detokenize=True, stop=stop)  # generates h, h, h, …
    engine.run(6)
    engine.abort("stopped", "hung-up", "without")
    found = {name: row["finish_reason"] for name, row in rows(engine).items()}
    assert found == {"stopped": "stop", "hung-up": "abort", "without": "abort"}
    assert not engine.scheduler.requests


def test_what_cannot_be_decoded_counts_as_an_abort_and_nothing_after_it(engine, caplog):
    wrong = [True, True, False]
    caplog.set_level("WARNING", LOG.name)  # which the helper's scheduler has raised

    def decode(ids, skip_special_tokens):
        if wrong.pop(0):
            raise ValueError("a secret")
        return "h" * len(ids)

    engine.scheduler.request_events.finish_reasons.tokenizer = SimpleNamespace(decode=decode)
    for name in ("first", "second", "third"):
        engine.add(50, name=name, detokenize=True, stop=["hh"])
        engine.run(6)
        engine.abort(name)
    found = {name: row["finish_reason"] for name, row in rows(engine).items()}
    assert found == {"first": "abort", "second": "abort", "third": "stop"}
    (said,) = [r.getMessage() for r in caplog.records if "stop string" in r.getMessage()]
    assert "ValueError" in said
    assert "secret" not in said


def test_an_error_is_none_of_these(engine):
    from vllm.v1.request import RequestStatus

    engine.add(50, name="a")
    engine.add(50, name="b")
    engine.run(3)
    engine.scheduler.finish_requests(["a"], RequestStatus.FINISHED_ERROR)
    engine.scheduler.finish_requests(["b"], RequestStatus.FINISHED_REPETITION)
    assert rows(engine)["a"]["finish_reason"] == "error"
    assert rows(engine)["b"]["finish_reason"] == "length"


def test_samples_of_one_prompt(engine):
    for i in range(3):
        engine.add(5 + i, name=f"{i}_cmpl-7-ab")
    engine.run()
    assert {(r["prompt_id"], r["sample"]) for r in rows(engine).values()} == {
        ("cmpl-7-ab", 0),
        ("cmpl-7-ab", 1),
        ("cmpl-7-ab", 2),
    }
    assert engine.stats()["total_predictions"] == 3


@pytest.mark.parametrize("mode", ["shadow", "act"])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_preempted_and_resumed_they_are_predicted_once(mode, asynchronous):
    engine = recorded(
        Engine(asynchronous=asynchronous).predict_with(fitted(), mode=mode, learn=True)
    )
    mixed_load(engine, n=60, steps=2).run()
    assert engine.preempted
    stats = engine.learned()
    assert stats["total_predictions"] == stats["completions"] == stats["lessons"] - 200 == 60
    lengths = {name: row["actual_length"] for name, row in rows(engine).items()}
    assert lengths == engine.lengths
    assert engine.advisor.breaker.state == "closed"


@pytest.mark.parametrize("mode", ["act", "shadow"])
def test_who_waits_no_longer_is_no_backlog(mode):
    """One that is preempted alone comes back before anybody puts the queue in order."""
    engine = Engine(SMALL).predict_with(fitted(), mode=mode)
    for _ in range(3):
        for i in range(3):  # longer than a step may compute, so they have a place in the line
            engine.add(300 + 30 * i, prompt=100, extra_args={"client_id": "long"})
        before = len(engine.preempted)
        while len(engine.preempted) == before:
            engine.step()
        while engine.scheduler.waiting:
            engine.step()
        mixed_load(engine, n=24)
        engine.run()
        engine.advisor.flush()
        planner = engine.advisor._advisor
        assert not planner._records
        assert not planner._unplaced
        assert abs(planner._backlog) < 1.0
    assert not any(engine.stats()["breaker"]["faults"].values())


def test_chunked_prefill_and_prefix_cache():
    settings = replace(SMALL, prefix_caching=True, blocks=200, max_num_batched_tokens=64)
    engine = recorded(Engine(settings).predict_with(fitted(), mode="act"))
    shared = list(range(320))
    engine.add(5, name="first", prompt=[*shared, 1, 2])
    engine.run(2)
    assert engine.scheduler.requests["first"].num_output_tokens == 0  # still in prefill
    assert engine.stats()["running"] == 1
    engine.run()
    engine.add(5, name="second", prompt=[*shared, 3, 4])
    before = len(engine.schedule)
    engine.run()
    assert len(engine.schedule) - before < 7
    assert engine.stats()["completions"] == 2


def test_prefixes_are_told_as_traces_tell_them():
    settings = replace(SMALL, prefix_caching=True, blocks=200)
    engine = recorded(Engine(settings).on(mode="shadow"))
    engine.scheduler.request_events.adapter._stride = (
        4  # 64 tokens, so that the prompts may be short
    )
    same = list(range(130))
    for i, prompt in enumerate(([*same, 1], [*same, 2], [9, *same], same[:40])):
        engine.add(3, name=f"p{i}", prompt=prompt)
    engine.run()
    found = [rows(engine)[f"p{i}"].get("prefix_hashes") for i in range(4)]
    assert found[0] == found[1]
    assert len(found[0]) == 2
    assert found[2][0] != found[0][0]
    assert found[3] is None


def test_a_name_used_again_is_another_sequence(engine):
    engine.add(5, name="same")
    engine.run()
    engine.add(8, name="same")
    engine.run()
    engine.abort("same")  # too late: nothing
    assert [row["actual_length"] for row in engine.rows.rows] == [5, 8]
    assert engine.stats()["completions"] == 2


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_turns_of_a_session_are_sequences(asynchronous):
    engine = recorded(Engine(asynchronous=asynchronous).predict_with(fitted(), mode="act"))
    scheduler = engine.scheduler
    engine.add(6, name="talk", resumable=True)
    engine.add(40, name="other")
    engine.run(12)
    assert [row["actual_length"] for row in engine.rows.rows] == [6]
    assert engine.stats()["running"] == 1
    engine.lengths["talk"] = 4
    scheduler.add_request(engine.request(4, name="talk", prompt=[5, 6, 7], resumable=True))
    assert engine.stats()["running"] == 2
    engine.run(12)
    assert [row["actual_length"] for row in engine.rows.rows] == [6, 4]
    engine.advisor.set_mode("shadow")
    engine.step()
    engine.abort("talk")  # the client has gone, between two turns
    engine.run()
    assert [row["actual_length"] for row in engine.rows.rows] == [6, 4, 40]
    stats = engine.stats()
    assert adds_up(stats)
    assert (stats["completions"], stats["running"]) == (3, 0)
    assert not engine.scheduler.request_events.between


def test_several_accepted_tokens_a_step_count_all():
    engine = recorded(Engine().predict_with(create_predictor("lstm", hidden_size=8), mode="act"))
    engine.add(90, name="quick")
    engine.run(per_step=4)
    assert rows(engine)["quick"]["actual_length"] == 90
    assert engine.stats()["completions"] == 1


def test_draft_tokens_are_no_age(vllm):
    from vllm.v1.outputs import DraftTokenIds

    engine = recorded(Engine().predict_with(fitted(), mode="act"))
    engine.add(30, name="drafted")
    while engine.scheduler.requests:
        engine.step(per_step=2)
        if "drafted" in engine.scheduler.requests:
            engine.scheduler.update_draft_token_ids(DraftTokenIds(["drafted"], [[7, 7, 7]]))
    assert rows(engine)["drafted"]["actual_length"] == 30


@pytest.mark.parametrize("per_step", [1, 3])
def test_generated_tokens_are_handed_over_at_the_ages_that_matter(per_step, monkeypatch):
    predictor = create_predictor("lstm", hidden_size=8)
    engine = Engine().predict_with(predictor, mode="shadow")
    seen = []
    forecaster = engine.advisor._forecaster
    grown = forecaster.grown
    monkeypatch.setattr(
        forecaster, "grown", lambda requests: (seen.extend(requests), grown(requests))
    )
    engine.add(200, name="a", prompt=16)  # as long as the first chunk: not to be taken for it
    engine.run(10)
    engine.add(200, name="b", prompt=16)
    engine.run(per_step=per_step)
    for name in "ab":
        ages = [r.current_length for r in seen if r.sequence_id == name and r.current_length]
        wanted = [16, 32, 48, 64, 96, 128, 192]
        assert ages[-1] - wanted[-1] in range(4 * per_step)
        if per_step == 1:
            assert ages == wanted
        else:
            assert len(ages) >= 5  # the first look comes late, before the pace is known
    for request in seen:
        start = len(request.token_ids) - request.current_length
        assert request.token_ids[start:] == [7] * request.current_length
    assert engine.advisor.breaker.faults["exception"] == 0


def test_who_asks_is_taken_only_in_the_right_form(engine):
    said = {
        "good": {"client_id": "me", "session_id": 7, "turn": 3},
        "bad": {"client_id": ["x"], "session_id": True, "turn": "many", "arrival_time": "now"},
        "long": {"client_id": "x" * 10_000, "turn": -1},
        "none": None,
    }
    for name, extra in said.items():
        engine.add(3, name=name, extra_args=extra)
    engine.run()
    who = {
        name: {key: row[key] for key in ("client_id", "session_id", "turn") if key in row}
        for name, row in rows(engine).items()
    }
    assert who == {
        "good": {"client_id": "me", "session_id": "7", "turn": 3},
        "bad": {},
        "long": {"client_id": "x" * 256},
        "none": {},
    }
    assert engine.stats()["completions"] == 4


def test_every_request_aborted_at_once(engine):
    mixed_load(engine, n=20, steps=1)
    from vllm.v1.request import RequestStatus

    engine.scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED)
    assert adds_up(engine.stats())
    assert engine.stats()["running"] == 0
    engine.add(3)
    engine.run()
    assert engine.advisor.breaker.state == "closed"


def test_a_reset_of_the_prefix_cache_preempts_all():
    engine = recorded(Engine().predict_with(fitted(), mode="shadow"))
    for _ in range(5):
        engine.add(20)
    engine.run(5)
    engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    engine.run()
    assert engine.stats()["completions"] == 5
    assert engine.advisor.breaker.state == "closed"


def test_blocks_for_drafts_count_when_memory_is_short():
    engine = Engine().predict_with(fitted(), mode="act")
    engine.scheduler.num_lookahead_tokens = 3  # as with a speculative configuration
    mixed_load(engine, n=40, steps=2).run()
    stats = engine.stats()
    assert engine.preempted
    assert adds_up(stats)
    assert stats["completions"] == 40
    assert not any(stats["breaker"]["faults"].values())
