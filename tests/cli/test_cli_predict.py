"""``predict``: a line in, a line out, nothing lost."""

import json
import subprocess
import sys

import pytest

from sagellm_lifetime import PredictionRequest, Predictor, load_predictor
from sagellm_lifetime.cli import predict as command

REQUEST = {
    "sequence_id": "a",
    "token_ids": [1, 2, 3],
    "current_length": 1,
    "max_length": 400,
    "prompt_features": {"client_id": "one", "prompt_length": 2},
}


def ask(cli, checkpoint, *lines):
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    done = cli("predict", "--checkpoint", checkpoint, stdin=text)
    return done, [json.loads(line) for line in done.out.splitlines()]


@pytest.mark.parametrize("kind", ["survival", "lstm"])
def test_answers_are_those_of_python(cli, request, kind):
    checkpoint = request.getfixturevalue(kind)
    done, (answer,) = ask(cli, checkpoint, REQUEST)
    assert done.code == 0
    result = load_predictor(checkpoint).predict(PredictionRequest(**REQUEST))
    assert answer == {
        "sequence_id": "a",
        "estimated_remaining_tokens": result.estimated_remaining_tokens,
        "confidence": result.confidence,
        "estimated_time": result.estimated_time,
        "source": "model",
        "mean": result.distribution.mean(),
        "quantiles": {
            str(q): result.distribution.quantile(q) for q in (0.05, 0.25, 0.5, 0.75, 0.95)
        },
    }


def test_completions_are_learned_from(cli, survival):
    completion = {"sequence_id": "a", "actual_length": 30, "actual_time": 1.0}
    done, answers = ask(cli, survival, REQUEST, completion, completion)
    assert done.code == 0
    assert answers[1] == {"sequence_id": "a", "learned": True}
    reason = answers[2].pop("reason")
    assert reason.startswith("no prediction of this sequence_id since")
    assert answers[2] == {"sequence_id": "a", "learned": False}


BAD_LINES = {
    "nonsense": "not JSON",
    "[1, 2]": "not a JSON object",
    "{}": "sequence_id",
    '{"sequence_id": 1.5}': "sequence_id",
    '{"sequence_id": true}': "sequence_id",
    '{"sequence_id": 1, "max_len": 5}': "max_len",
    '{"sequence_id": 1, "current_length": -1}': "current_length",
    '{"sequence_id": 1, "current_length": 1.5}': "current_length",
    '{"sequence_id": 1, "current_length": 1' + "0" * 30 + "}": "current_length",
    '{"sequence_id": 1, "max_length": "many"}': "max_length",
    '{"sequence_id": 1, "max_length": NaN}': "NaN",
    '{"sequence_id": 1, "token_ids": "abc"}': "token_ids",
    '{"sequence_id": 1, "token_ids": [1, "b"]}': "token_ids",
    '{"sequence_id": 1, "prompt_features": [1]}': "prompt_features",
    '{"sequence_id": 1, "prompt_features": {"prompt_length": "long"}}': "prompt_features",
    '{"sequence_id": 1, "actual_length": -1}': "actual_length",
    '{"sequence_id": 1, "actual_length": 1, "actual_time": "x"}': "actual_time",
    '{"sequence_id": 1, "actual_length": 1, "finish_reason": "eos"}': "finish_reason",
    '{"sequence_id": 1, "actual_length": 1, "actual_time": 1' + "0" * 400 + "}": "actual_time",
    '{"sequence_id": 1, "actual_length": 1, "actual_time": 1e308}': "actual_time",
    '{"sequence_id": 1, "actual_length": 1, "actual_time": true}': "actual_time",
    '{"sequence_id": 1, "actual_length": 1, "finish_reason": ["stop"]}': "finish_reason",
    '{"sequence_id": 1, "prompt_features": {"prefix_hashes": {"a": 1}}}': "prefix_hashes",
    '{"sequence_id": 1, "prompt_features": {"prompt_text": ["a"]}}': "prompt_text",
    '{"sequence_id": 1, "prompt_features": {"model": ' + "[" * 900 + "]" * 900 + "}}": "model",
    '{"sequence_id": 1' + "0" * 5000 + "}": "too many digits",
    '{"sequence_id": 1, "' + "x" * 10**6 + '": 1}': "unknown field",
    "[" * 100_000: "nested too deep",
}


def test_a_bad_line_is_answered_in_its_place(cli, survival):
    lines = [line + "\n" for line in BAD_LINES]
    done, answers = ask(cli, survival, REQUEST, "\n", *lines, REQUEST)
    assert done.code == 2
    assert len(answers) == len(BAD_LINES) + 2
    assert answers[0] == answers[-1]
    for number, (answer, told) in enumerate(zip(answers[1:-1], BAD_LINES.values(), strict=True), 3):
        assert answer["line"] == number
        assert told in answer["error"]
        assert len(answer["error"]) <= 400
    assert done.err.startswith(f"error: {len(BAD_LINES)} of {len(BAD_LINES) + 2} lines")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("raised", [ArithmeticError, IndexError, RuntimeError, MemoryError])
def test_no_line_ends_the_stream(cli, survival, monkeypatch, raised):
    usual = Predictor.predict

    def predict(self, request):
        if request.sequence_id == "odd":
            raise raised("out of\nthe blue" + "x" * 1000)
        return usual(self, request)

    monkeypatch.setattr(Predictor, "predict", predict)
    done, answers = ask(cli, survival, REQUEST, {"sequence_id": "odd"}, REQUEST)
    assert done.code == 2
    assert answers[0] == answers[2]
    assert answers[1]["line"] == 2
    assert answers[1]["error"].startswith(f"{raised.__name__}: out of the blue")
    assert len(answers[1]["error"]) <= 400


def test_an_answer_that_json_cannot_say_is_an_error_of_its_line(cli, survival, monkeypatch):
    usual = Predictor.predict

    def predict(self, request):
        result = usual(self, request)
        if request.sequence_id == "odd":
            result.estimated_time = float("inf")
        return result

    monkeypatch.setattr(Predictor, "predict", predict)
    done, answers = ask(cli, survival, REQUEST, {"sequence_id": "odd"}, REQUEST)
    assert done.code == 2
    assert "estimated_time" in answers[2]
    assert answers[1]["line"] == 2
    assert "JSON" in answers[1]["error"]


def test_times_at_the_limit_leave_finite_estimates(cli, survival):
    lines = []
    for i in range(40):
        lines += [REQUEST | {"sequence_id": i}]
        lines += [{"sequence_id": i, "actual_length": 1, "actual_time": 1e8}]
    done, answers = ask(cli, survival, *lines, REQUEST)
    assert done.code == 0
    assert 0 < answers[-1]["estimated_time"] < 1e20


def test_a_line_without_end_is_passed_over(cli, survival, monkeypatch):
    monkeypatch.setattr(command, "LONGEST_LINE", 1000)
    endless = b'{"sequence_id": "' + b"x" * 5000 + b'"}\n'
    good = json.dumps(REQUEST).encode() + b"\n"
    done = cli("predict", "--checkpoint", survival, stdin=good + endless + endless + good)
    answers = [json.loads(line) for line in done.out.splitlines()]
    assert [answer.get("line") for answer in answers] == [None, 2, 3, None]
    assert answers[1]["error"] == "longer than 1000 bytes"


def test_text_that_is_not_utf8(cli, survival):
    done = cli("predict", "--checkpoint", survival, stdin=b'{"sequence_id": "\xff"}\n')
    assert done.code == 2
    assert json.loads(done.out) == {"line": 1, "error": "not UTF-8 text"}


def test_no_lines_at_all(cli, survival):
    done = cli("predict", "--checkpoint", survival)
    assert (done.code, done.out, done.err) == (0, "", "")


def test_each_line_is_answered_before_the_next_is_read(survival):
    command = [sys.executable, "-c", "from sagellm_lifetime.cli.main import main; main()"]
    with subprocess.Popen(
        [*command, "predict", "--checkpoint", str(survival)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        for age in (1, 2, 3):
            process.stdin.write(json.dumps(REQUEST | {"current_length": age}) + "\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["sequence_id"] == "a"
        process.stdout.close()  # nobody reads any more: quiet, and over
        process.stdin.write(json.dumps(REQUEST) + "\n")
        process.stdin.close()
        assert process.wait(timeout=30) == 141
