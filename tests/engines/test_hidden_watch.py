"""The reading of hidden states, driven as vLLM's worker drives it."""

from types import SimpleNamespace

import numpy as np
import pytest

WIDTH = 8


@pytest.fixture
def watch():
    pytest.importorskip("torch")
    from sagellm_lifetime.vllm import hidden_watch

    return hidden_watch


class Driven:
    """Requests on a reader, with rows of known states: ``[request, position, 1, …]``."""

    def __init__(self, watch):
        self.watch, self.reader = watch, watch.HiddenReader()
        self.prompts, self.computed, self.readings = {}, {}, {}
        self.faults, self.new = [], []
        self.finished = set()

    def add(self, name, prompt, asked=True):
        """Begin a request, or bring it back after a preemption of model runner V2."""
        self.prompts[name] = prompt
        asks = {self.watch.ASK: name} if asked else None
        params = SimpleNamespace(extra_args=asks)
        self.new.append((name, params, list(range(prompt))))

    def finish(self, name):
        self.finished.add(name)
        del self.prompts[name]

    def step(self, drafts=None, order=None, returned=False, **spans):
        """Run positions ``begin, end`` of each request; the last ``drafts`` of them are guesses."""
        import torch

        drafts, new = drafts or {}, []
        for name, params, prompt in self.new:
            new.append(
                SimpleNamespace(
                    req_id=name,
                    sampling_params=params,
                    prompt_token_ids=prompt,
                    num_computed_tokens=spans[name][0],
                )
            )
        cached = [name for name in spans if name not in {one.req_id for one in new}]
        output = SimpleNamespace(
            finished_req_ids=self.finished,
            num_scheduled_tokens={name: end - begin for name, (begin, end) in spans.items()},
            scheduled_spec_decode_tokens={name: [7] * n for name, n in drafts.items()},
            scheduled_new_reqs=new,
            scheduled_cached_reqs=SimpleNamespace(
                req_ids=cached, num_computed_tokens=[spans[name][0] for name in cached]
            ),
        )
        self.new, self.finished = [], set()
        self.reader.begin(output)
        order = order or list(spans)
        rows = [
            [float(sorted(self.prompts).index(name)), float(position), *[1.0] * (WIDTH - 2)]
            for name in order
            for position in range(*spans[name])
        ]
        states = torch.tensor(rows)
        was_waiting = self.reader.is_waiting
        if not returned:
            half = states / 2
            self.reader.capture(None, (), (half, half))
            half += 100.0  # as the next layer does
        step = self.reader.read(order, states if returned else None)
        report = self.reader.report(step)
        for name, readings in (report.readings if report else {}).items():
            for age, state in readings.items():
                assert age not in self.readings.setdefault(name, {}), "read twice"
                self.readings[name][age] = state
        if report and report.fault:
            self.faults.append(report.fault)
        return was_waiting

    def decode(self, steps, **ends):
        """Run one token of each request per step; the arguments are where they are."""
        for _ in range(steps):
            self.step(**{name: (end, end + 1) for name, end in ends.items()})
            ends = {name: end + 1 for name, end in ends.items()}

    def position(self, name, age):
        return float(self.readings[name][age][1])


@pytest.fixture
def driven(watch):
    return Driven(watch)


def test_the_last_prompt_token_is_read_in_the_step_that_ends_the_prefill(driven):
    driven.add("a", 10)
    assert not driven.step(a=(0, 4))
    assert driven.readings == {}
    assert driven.step(a=(4, 10))
    state = driven.readings["a"][0]
    assert state.dtype == np.float32
    assert state.tolist() == [0.0, 9.0, *[1.0] * (WIDTH - 2)]


def test_a_prompt_of_the_prefix_cache_still_runs_its_last_token(driven):
    driven.add("a", 10)
    driven.step(a=(9, 10))
    assert driven.position("a", 0) == 9


def test_one_token_of_a_longer_prompt_is_not_the_last(driven):
    driven.add("a", 10)
    driven.step(a=(8, 9))
    assert driven.readings == {}


def test_rows_are_found_in_the_order_of_the_model_runner(driven):
    driven.add("a", 10)
    driven.add("b", 5)
    driven.step(order=["b", "a"], a=(0, 10), b=(2, 5))
    assert driven.readings["a"][0][:2].tolist() == [0.0, 9.0]
    assert driven.readings["b"][0][:2].tolist() == [1.0, 4.0]


def test_states_that_the_model_returns_are_read_as_those_of_the_hook(driven):
    driven.add("a", 10)
    driven.step(returned=True, a=(0, 10))
    assert driven.position("a", 0) == 9


def test_means_of_the_last_sixteen_inputs_at_two_ages(driven):
    driven.add("a", 10)
    driven.add("b", 5, asked=False)
    driven.add("c", 6)
    driven.step(a=(0, 10), b=(0, 5), c=(0, 6))
    driven.decode(70, a=10, b=5, c=6)
    # Token i stands at position 9 + i: inputs 16 to 31 lie behind the 32nd token.
    assert driven.position("a", 32) == pytest.approx(np.mean([9 + i for i in range(16, 32)]))
    assert driven.position("a", 64) == pytest.approx(np.mean([9 + i for i in range(48, 64)]))
    assert driven.position("c", 32) == pytest.approx(5 + 23.5)
    assert set(driven.readings) == {"a", "c"}
    assert not driven.reader._requests


def test_steps_without_a_reading_touch_no_state(driven):
    driven.add("a", 10)
    driven.step(a=(0, 10))
    assert not any(driven.step(a=(10 + i, 11 + i)) for i in range(15))
    assert driven.step(a=(25, 26))
    driven.decode(47, a=26)
    assert not any(driven.step(a=(73 + i, 74 + i)) for i in range(15))


@pytest.mark.parametrize("is_new", [False, True], ids=["runner V1", "runner V2"])
def test_computed_again_after_a_preemption(driven, is_new):
    driven.add("a", 10)
    driven.step(a=(0, 10))
    first = driven.readings["a"][0]
    driven.decode(20, a=10)
    if is_new:
        driven.add("a", 10)
    driven.step(a=(8, 20))  # it comes back: 8 of its 31 tokens are in the cache
    driven.step(a=(20, 31))
    assert driven.readings["a"][0] is first
    driven.decode(45, a=31)
    assert driven.position("a", 32) == pytest.approx(9 + 23.5)
    assert driven.position("a", 64) == pytest.approx(9 + 55.5)


def test_preempted_before_the_prefill_has_ended(driven):
    driven.add("a", 10)
    driven.step(a=(0, 4))
    driven.step(a=(0, 10))
    assert driven.position("a", 0) == 9


def test_all_readings_in_one_step_of_a_sequence_that_comes_back(driven):
    driven.add("a", 10)
    driven.step(a=(0, 90))
    assert [driven.position("a", age) for age in (0, 32, 64)] == [9, 32.5, 64.5]


def test_requests_that_have_ended_are_forgotten(driven):
    for i in range(50):
        driven.add(f"r{i}", 2)
        driven.step(**{f"r{i}": (0, 2 + 70 * (i % 2))})
        driven.finish(f"r{i}")
    driven.add("a", 2)
    driven.step(a=(0, 2))
    assert (set(driven.reader._requests), driven.reader._complete) == ({"a"}, {})


def test_a_sequence_with_all_readings_that_comes_back_is_not_read_again(driven):
    driven.add("a", 10)
    driven.step(a=(0, 90))
    driven.add("a", 10)
    assert not driven.step(a=(0, 91))


@pytest.mark.parametrize("accepted", [0, 1, 3])
def test_refused_drafts_are_replaced_and_accepted_ones_are_read(driven, accepted):
    driven.add("a", 10)
    driven.step(a=(0, 10))
    computed = 10
    while computed < 90:
        driven.step(drafts={"a": 3}, a=(computed, computed + 4))
        computed += 1 + accepted
    assert driven.position("a", 32) == pytest.approx(9 + 23.5)
    assert driven.position("a", 64) == pytest.approx(9 + 55.5)
    assert not driven.faults


def test_a_reading_ends_only_where_its_last_state_is_no_draft(driven):
    driven.add("a", 10)
    driven.step(a=(0, 10))
    driven.decode(30, a=10)
    driven.step(drafts={"a": 2}, a=(40 - 1, 42))  # position 40 is the last of the window
    assert 32 not in driven.readings["a"]
    driven.step(a=(42, 43))  # both drafts were right
    assert driven.position("a", 32) == pytest.approx(9 + 23.5)


def test_a_session_goes_on_with_a_longer_prompt(driven):
    driven.add("a", 10)
    driven.step(a=(0, 10))
    driven.readings.clear()
    driven.add("a", 30)
    driven.step(a=(10, 30))
    assert driven.position("a", 0) == 29


def test_a_key_of_a_client_is_not_watched(driven):
    driven.add("a", 10)
    driven.new[0][1].extra_args["watch_hidden"] = "other"
    assert not driven.step(a=(0, 10))


def test_prompts_of_embeddings_and_pooling_are_not_read(driven):
    driven.add("a", 10)
    driven.new[0] = ("a", driven.new[0][1], None)
    driven.add("b", 10)
    driven.new[1] = ("b", None, driven.new[1][2])
    assert not driven.step(a=(0, 10), b=(0, 10))


def test_a_fault_ends_the_reading_and_is_reported_once(watch, driven, monkeypatch, caplog):
    def fail(_state):
        raise ValueError("broken")

    monkeypatch.setattr(watch, "reduced", fail)
    driven.add("a", 10)
    driven.step(a=(0, 10))
    assert "read no more" in caplog.text
    assert driven.faults == ["ValueError"]
    driven.add("b", 10)
    driven.step(b=(0, 10))
    assert (driven.faults, driven.readings) == (["ValueError"], {})


@pytest.mark.parametrize("place", ["begin", "capture", "read"])
def test_a_fault_at_any_place_is_reported(driven, monkeypatch, place):
    driven.add("a", 10)
    if place == "begin":
        monkeypatch.delattr(driven.new[0][1], "extra_args")
    elif place == "capture":
        monkeypatch.setattr(driven.reader, "capture", lambda *_: None)  # the layer did not run
    else:
        monkeypatch.setattr(driven.watch, "_on_host", lambda *_: 1 / 0)
    driven.step(a=(0, 10))
    wanted = {"begin": "AttributeError", "capture": "RuntimeError", "read": "ZeroDivisionError"}
    assert driven.faults == [wanted[place]]


def test_another_layer_or_precision_is_another_source(watch):
    text = SimpleNamespace(num_hidden_layers=3, hidden_size=WIDTH, vocab_size=257)
    model = SimpleNamespace(hf_text_config=text, model="/some/where/tiny", dtype="float32")
    first = watch.source_of(model, 2)
    assert first.startswith("tiny layer 2 ")
    model.model = "/elsewhere/tiny"
    assert watch.source_of(model, 2) == first
    assert watch.source_of(model, 1) != first
    model.dtype = "bfloat16"
    assert watch.source_of(model, 2) != first


@pytest.mark.parametrize(("stages", "layer"), [(1, 20), (2, 20), (3, 21), (4, 24)])
def test_the_last_stage_of_a_pipeline_reads(vllm, watch, stages, layer):
    text = SimpleNamespace(num_hidden_layers=30)
    config = SimpleNamespace(
        model_config=SimpleNamespace(hf_text_config=text),
        parallel_config=SimpleNamespace(pipeline_parallel_size=stages),
    )
    assert watch.layer_read(config) == layer
