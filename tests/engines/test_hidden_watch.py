"""The reading of hidden states, driven as vLLM's model runner drives it."""

from types import SimpleNamespace

import numpy as np
import pytest

LAYERS, WIDTH, DEEP = 3, 8, 1


@pytest.fixture
def hidden_watch(vllm):
    from sagellm_lifetime.vllm import hidden_watch

    hidden_watch._board.__init__()
    return hidden_watch


@pytest.fixture
def config():
    text = SimpleNamespace(num_hidden_layers=LAYERS, hidden_size=WIDTH, vocab_size=257)
    model = SimpleNamespace(hf_text_config=text, model="/some/where/tiny", dtype="float32")
    return SimpleNamespace(model_config=model)


class Driven:
    """A model of layers that add a residual, run on rows of known states.

    The state of a token is ``[request, position, 1, …]``.
    """

    def __init__(self, watch_class, config, monkeypatch):
        import torch

        class Layer(torch.nn.Module):
            def forward(self, states, residual):
                return states, residual

        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = torch.nn.ModuleList(Layer() for _ in range(LAYERS))

            def forward(self, states):
                residual = states / 2
                for layer in self.layers:
                    states, residual = layer(states / 2, residual)
                    states = states * 2
                return states

        self.torch = torch
        self.watch = watch_class(config, torch.device("cpu"), False)
        self.model = Model()
        self.metadata = None
        module = __import__(watch_class.__module__, fromlist=["x"])
        monkeypatch.setattr(module, "is_forward_context_available", lambda: True)
        monkeypatch.setattr(module, "get_forward_context", self._context)
        self.outputs, self.prompts = {}, {}

    def _context(self):
        named = None if self.metadata is None else {"layer": self.metadata}
        return SimpleNamespace(attn_metadata=named)

    def add(self, row, key, prompt):
        from vllm import SamplingParams
        from vllm.v1.sample.logits_processor import BatchUpdate

        self.outputs[row], self.prompts[row] = self.outputs.get(row, []), prompt
        params = SamplingParams(extra_args={"watch_hidden": key} if key else None)
        added = [(row, params, list(range(prompt)), self.outputs[row])]
        self.watch.update_state(BatchUpdate(row + 1, [], added, []))

    def step(self, spans, tokens=True):
        """Run positions ``begin, end`` of each row; those that end known tokens get one more."""
        torch = self.torch
        begins, lengths, states = [0], [], []
        for row, (begin, end) in enumerate(spans):
            begins.append(begins[-1] + end - begin)
            lengths.append(end)
            rest = [1.0] * (WIDTH - 2)
            states += [[row + 1.0, float(position), *rest] for position in range(begin, end)]
        self.metadata = SimpleNamespace(
            query_start_loc=torch.tensor(begins),
            seq_lens=torch.tensor(lengths),
            max_query_len=max(end - begin for begin, end in spans),
        )
        self.model(torch.tensor(states))
        if tokens:
            for row, end in enumerate(lengths):
                if end == self.prompts[row] + len(self.outputs[row]):
                    self.outputs[row].append(7)

    def decode(self, row_count, steps):
        for _ in range(steps):
            ends = [self.prompts[r] + len(self.outputs[r]) for r in range(row_count)]
            self.step([(end - 1, end) for end in ends])


@pytest.fixture
def driven(hidden_watch, config, monkeypatch):
    made = Driven(hidden_watch.HiddenWatch, config, monkeypatch)
    yield made
    made.watch._finder.remove()


def position_of(hidden_watch, key, age):
    return float(hidden_watch.readings_of(key)[age][1])


def test_the_last_prompt_token_is_read_in_the_step_that_ends_the_prefill(hidden_watch, driven):
    driven.add(0, "a", 10)
    driven.step([(0, 4)])
    assert hidden_watch.readings_of("a") == {}
    driven.step([(4, 10)])
    state = hidden_watch.readings_of("a")[0]
    assert state.dtype == np.float32
    assert state.tolist() == [1.0, 9.0, *[1.0] * (WIDTH - 2)]
    assert hidden_watch.take_fresh() == {"a"}
    assert hidden_watch.take_fresh() == set()


def test_a_prompt_of_the_prefix_cache_still_runs_its_last_token(hidden_watch, driven):
    driven.add(0, "a", 10)
    driven.step([(9, 10)])
    assert position_of(hidden_watch, "a", 0) == 9


def test_one_token_of_a_longer_prompt_is_not_the_last(hidden_watch, driven):
    driven.add(0, "a", 10)
    driven.step([(8, 9)])
    assert hidden_watch.readings_of("a") == {}


def test_means_of_the_last_sixteen_inputs_at_two_ages(hidden_watch, driven):
    driven.add(0, "a", 10)
    driven.add(1, None, 5)
    driven.add(2, "c", 6)
    driven.step([(0, 10), (0, 5), (0, 6)])
    driven.decode(3, 70)
    # Token i stands at position 9 + i: inputs 16 to 31 lie behind the 32nd token.
    assert position_of(hidden_watch, "a", 32) == pytest.approx(
        np.mean([9 + i for i in range(16, 32)])
    )
    assert position_of(hidden_watch, "a", 64) == pytest.approx(
        np.mean([9 + i for i in range(48, 64)])
    )
    assert position_of(hidden_watch, "c", 32) == pytest.approx(5 + 23.5)
    assert set(hidden_watch._board.readings) == {"a", "c"}
    assert len(driven.watch._rows[0].rows) == 0


def test_computed_again_after_a_preemption(hidden_watch, driven):
    driven.add(0, "a", 10)
    driven.step([(0, 10)])
    first = hidden_watch.readings_of("a")[0]
    driven.decode(1, 19)
    driven.add(0, "a", 10)  # it comes back: 26 of its 30 tokens are in the cache
    driven.step([(26, 30)])
    assert hidden_watch.readings_of("a")[0] is first
    driven.decode(1, 20)
    assert position_of(hidden_watch, "a", 32) == pytest.approx(9 + 23.5)


def test_requests_that_have_ended_are_forgotten(hidden_watch, driven):
    for i in range(1200):
        driven.add(0, f"r{i}", 2)
        driven.step([(0, 2)])
        hidden_watch.pop(f"r{i}")
    assert len(driven.watch._known) < 600


def test_drafts_are_not_read_before_they_are_accepted(hidden_watch, driven):
    driven.add(0, "a", 10)
    driven.step([(0, 10)])
    while len(driven.outputs[0]) < 40:
        known = 10 + len(driven.outputs[0])
        driven.step([(known - 1, known + 3)], tokens=False)  # one token and three drafts
        driven.outputs[0] += [7, 7]  # one draft was right
    # Of every two tokens only the first is an input that was known when it ran.
    assert position_of(hidden_watch, "a", 32) == pytest.approx(9 + 24, abs=1.5)


def test_readings_are_handed_over_once_and_forgotten(hidden_watch, driven):
    driven.add(0, "a", 10)
    driven.step([(0, 10)])
    assert set(hidden_watch.pop("a")) == {0}
    assert hidden_watch.pop("a") == {}
    assert hidden_watch.take_fresh() == set()
    driven.add(0, "b", 10)
    driven.step([(0, 10)])
    hidden_watch.keep(["c"])
    assert hidden_watch.readings_of("b") == {}


def test_without_metadata_nothing_is_read(hidden_watch, driven):
    driven.add(0, "a", 2)
    driven.metadata = None
    driven.model(driven.torch.ones(2, WIDTH))
    assert hidden_watch.readings_of("a") == {}


def test_a_fault_ends_the_watch_and_is_told_to_the_scheduler_once(
    hidden_watch, driven, monkeypatch, caplog
):
    def fail(_state):
        raise ValueError("broken")

    monkeypatch.setattr(hidden_watch, "reduced", fail)
    driven.add(0, "a", 10)
    driven.step([(0, 10)])
    assert "read no more" in caplog.text
    with pytest.raises(ValueError, match="broken"):
        hidden_watch.take_fresh()
    assert hidden_watch.take_fresh() == set()
    driven.step([(10, 11)])
    assert hidden_watch.readings_of("a") == {}


def test_another_layer_or_precision_is_another_source(hidden_watch, config):
    first = hidden_watch.source_of(config.model_config, 2)
    assert first.startswith("tiny layer 2 ")
    config.model_config.model = "/elsewhere/tiny"
    assert hidden_watch.source_of(config.model_config, 2) == first
    assert hidden_watch.source_of(config.model_config, 1) != first
    config.model_config.dtype = "bfloat16"
    assert hidden_watch.source_of(config.model_config, 2) != first


def test_vllm_loads_it_by_name_and_skips_it_for_greedy_requests(hidden_watch, config):
    import torch
    from vllm.v1.sample.logits_processor import _load_custom_logitsprocs

    (loaded,) = _load_custom_logitsprocs([f"{hidden_watch.__name__}:HiddenWatch"])
    watch = loaded(config, torch.device("cpu"), False)
    watch._finder.remove()
    assert watch.is_argmax_invariant()
    logits = torch.ones(2, 3)
    assert watch.apply(logits) is logits
