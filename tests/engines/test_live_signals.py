"""What the model says of the end, from the logits processor to predictor and recording."""

import polars as pl
import pytest
from engine_help import Engine

from sagellm_lifetime import create_predictor
from sagellm_lifetime.vllm.launch.server import (
    PROCESSOR,
    LaunchError,
    check_one_process,
    command,
    environment,
)
from sagellm_lifetime.vllm.settings import LiveSettings


@pytest.fixture
def eos(vllm):
    from sagellm_lifetime.vllm import logits_processor as eos

    eos._notes.clear()
    return eos


class Heard:
    """A network that keeps what it was asked."""

    def __init__(self):
        self.predictor = create_predictor("lstm", online="off")
        self.requests = []
        self._ask = self.predictor.predict_batch
        self.predictor.predict_batch = self.predict_batch

    def predict_batch(self, requests):
        self.requests.extend(requests)
        return self._ask(requests)


def run(engine, eos, steps):
    """Steps the engine, with notes as a model would leave them; extra arguments by request."""
    asked = {}
    for _ in range(steps):
        for name, request in engine.scheduler.requests.items():
            extra = request.sampling_params.extra_args or {}
            asked[name] = extra
            if "watch_eos" in extra:
                notes = eos._notes.setdefault(extra["watch_eos"], [])
                while len(notes) <= request.num_output_tokens:
                    notes.append([-2.0 - len(notes) // 16, 0.5])
        engine.step()
    return asked


def test_signals_reach_predictor_and_recording(eos, tmp_path):
    heard = Heard()
    engine = Engine()
    engine.predict_with(heard.predictor, signals=True, record=str(tmp_path))
    engine.add(40, name="a", extra_args={"watch_eos": "somebody else's", "client_id": "c"})
    engine.add(10, name="b")
    asked = run(engine, eos, 50)
    assert {name: extra["watch_eos"] for name, extra in asked.items()} == {"a": "a", "b": "b"}
    assert asked["a"]["client_id"] == "c"
    said = {(r.sequence_id, r.current_length): r.prompt_features for r in heard.requests}
    assert said["a", 16]["eos_logprob"] == [-2.0]
    assert said["a", 32]["eos_logprob"] == [-2.0, -3.0]
    assert said["a", 32]["entropy"] == [0.5, 0.5]
    assert not eos._notes
    engine.scheduler.shutdown()
    rows = pl.concat([pl.read_parquet(path) for path in tmp_path.glob("*.parquet")])
    rows = {row["request_id"]: row for row in rows.iter_rows(named=True)}
    assert rows["a"]["eos_logprob"] == [-2.0, -3.0]
    assert rows["b"]["eos_logprob"] == rows["b"]["entropy"] == []
    assert "output_token_ids" not in rows["a"]
    assert rows["a"]["temperature"] == 1.0


def test_nobody_is_watched_unless_asked_for(eos):
    engine = Engine().on()
    engine.add(20, name="a")
    assert "watch_eos" not in run(engine, eos, 25)["a"]


def test_the_processor_is_loaded_where_it_is_asked_for():
    line = command("m", LiveSettings(signals=True), [])
    assert line[line.index("--logits-processors") + 1] == PROCESSOR
    assert line[line.index("--distributed-executor-backend") + 1] == "uni"
    assert "--logits-processors" not in command("m", LiveSettings(), [])
    said = ["--distributed-executor-backend", "uni"]
    assert command("m", LiveSettings(signals=True), said).count(said[0]) == 1
    assert environment(LiveSettings(signals=True)) == {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    assert environment(LiveSettings()) == environment(None) == {}


@pytest.mark.parametrize(
    "options",
    [["--tensor-parallel-size", "2"], ["-tp=2"], ["--distributed-executor-backend", "mp"]],
)
def test_a_model_in_other_processes_is_refused(options):
    with pytest.raises(LaunchError, match="--watch-eos"):
        check_one_process(options)
    check_one_process(["--tensor-parallel-size", "1", "--port", "2"])
