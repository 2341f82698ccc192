"""The watch on the end of sequences, driven as vLLM's sampler drives it."""

import math
from types import SimpleNamespace

import pytest

ENDS = [2, 5]
VOCABULARY = 8


@pytest.fixture
def eos(vllm):
    from sagellm_lifetime.vllm import logits_processor as eos

    eos._notes.clear()
    return eos


@pytest.fixture
def config():
    model = SimpleNamespace(
        hf_text_config=SimpleNamespace(eos_token_id=2),
        try_get_generation_config=lambda: {"eos_token_id": [5, 2]},
    )
    return SimpleNamespace(model_config=model)


@pytest.fixture
def watch(eos, config):
    import torch

    return eos.EosWatch(config, torch.device("cpu"), False)


def update(watch, size, *, added=(), removed=(), moved=()):
    from vllm.v1.sample.logits_processor import BatchUpdate

    watch.update_state(BatchUpdate(size, list(removed), list(added), list(moved)))


def asking(row, key, output):
    from vllm import SamplingParams

    extra = None if key is None else {"watch_eos": key}
    return row, SamplingParams(extra_args=extra), [1, 2, 3], output


def random_logits(rows, seed=0):
    import torch

    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def truth(logits):
    """Log-probability of an end and entropy of one row, number by number."""
    weights = [math.exp(value) for value in logits.tolist()]
    shares = [weight / sum(weights) for weight in weights]
    end = math.log(sum(shares[i] for i in ENDS))
    return end, -sum(share * math.log(share) for share in shares if share)


def test_notes_are_the_models_own(eos, watch):
    logits = random_logits(2)
    before = logits.clone()
    update(watch, 2, added=[asking(0, "a", []), asking(1, "b", [])])
    assert watch.apply(logits) is logits
    assert (logits == before).all()
    for row, key in enumerate("ab"):
        ends, entropies = eos.pop(key)
        assert ends + entropies == pytest.approx(truth(before[row]), rel=1e-5)


def test_looks_before_every_token(eos, watch):
    output = []
    update(watch, 1, added=[asking(0, "a", output)])
    seen = []
    for step in range(20):
        logits = random_logits(1, seed=step)
        watch.apply(logits)
        seen.append(truth(logits[0]))
        output.append(7)
        watch.update_state(None)
    ends, entropies = eos.pop("a")
    assert list(zip(ends, entropies, strict=True)) == [pytest.approx(one, rel=1e-5) for one in seen]


def test_follows_a_request_to_another_row(eos, watch):
    from vllm.v1.sample.logits_processor import MoveDirectionality

    update(watch, 3, added=[asking(0, "a", []), asking(1, None, []), asking(2, "c", [])])
    update(watch, 2, removed=[0], moved=[(2, 0, MoveDirectionality.UNIDIRECTIONAL)])
    logits = random_logits(2)
    watch.apply(logits)
    assert eos.pop("a") == ([], [])
    assert eos.pop("c")[0] == [pytest.approx(truth(logits[0])[0], rel=1e-5)]


def test_who_does_not_ask_is_not_watched(eos, watch):
    update(watch, 1, added=[asking(0, None, [])])
    watch.apply(random_logits(1))
    assert not eos._notes


def test_a_step_that_is_computed_again_is_noted_once(eos, watch):
    update(watch, 1, added=[asking(0, "a", [])])
    watch.apply(random_logits(1, seed=1))
    again = random_logits(1, seed=2)
    watch.apply(again)
    assert eos.pop("a")[0] == [pytest.approx(truth(again[0])[0], rel=1e-5)]


def test_tokens_that_are_ruled_out_do_not_spoil_the_entropy(eos, watch):
    update(watch, 1, added=[asking(0, "a", [])])
    logits = random_logits(1)
    logits[0, 3] = -math.inf
    watch.apply(logits)
    assert eos.pop("a")[1] == [pytest.approx(truth(logits[0])[1], rel=1e-5)]


def test_notes_are_handed_over_once(eos, watch):
    update(watch, 1, added=[asking(0, "a", [])])
    watch.apply(random_logits(1))
    assert eos.pop("a") != ([], [])
    assert eos.pop("a") == ([], [])


def test_a_model_without_an_end_is_left_alone(eos, config):
    import torch

    config.model_config.hf_text_config.eos_token_id = None
    config.model_config.try_get_generation_config = lambda: None
    watch = eos.EosWatch(config, torch.device("cpu"), False)
    update(watch, 1, added=[asking(0, "a", [])])
    watch.apply(random_logits(1))
    assert eos.pop("a") == ([], [])


def test_vllm_loads_it_by_name_and_applies_it_before_the_temperature(eos, config):
    import torch
    from vllm.v1.sample.logits_processor import _load_custom_logitsprocs

    (loaded,) = _load_custom_logitsprocs([f"{eos.__name__}:EosWatch"])
    assert loaded is eos.EosWatch
    assert not loaded(config, torch.device("cpu"), False).is_argmax_invariant()


def test_what_fails_here_does_not_end_the_engine(eos, watch, monkeypatch, caplog):
    logits = random_logits(1)
    update(watch, 1, added=[asking(0, "a", [])])
    watch.apply(logits)
    for broken in ("apply", "update"):
        other = type(watch).__new__(type(watch))
        other.__dict__.update(watch.__dict__, _watched=dict(watch._watched))
        caplog.clear()
        with monkeypatch.context() as patch:
            if broken == "apply":
                patch.setattr(other, "_ends", "no tensor")
            else:
                patch.setattr(eos, "process_dict_updates", lambda *_: 1 // 0)
                update(other, 1)
            assert other.apply(logits) is logits
        update(other, 2, added=[asking(1, "b", [])])
        assert other.apply(logits) is logits
        assert eos.notes_of("b") == []
        (said,) = caplog.messages
        assert "off until restart" in said
    assert len(eos.notes_of("a")) == 1


def test_notes_of_those_that_are_gone_can_be_dropped(eos):
    eos._notes.update(a=[[0.0, 1.0]], b=[[0.0, 2.0]])
    eos.keep({"b"})
    assert eos.notes_of("a") == []
    assert eos.notes_of("b") == [[0.0, 2.0]]
