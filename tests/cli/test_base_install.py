"""Without extras what serves works, and everything else names the extra that it wants."""

import subprocess
import sys

import pytest

EXTRAS = ("torch", "tensorboard", "onnx", "lightgbm", "scipy", "matplotlib", "vllm", "isage")
CODE = f"""
import sys
sys.modules.update(dict.fromkeys({EXTRAS}))  # None: as if it were not installed
from sagellm_lifetime.cli.main import run
sys.exit(run(sys.argv[1:], "sagellm-lifetime"))
"""


@pytest.fixture
def bare(tmp_path):
    """Run a command line with no extra installed."""

    def call(*args, stdin=""):
        return subprocess.run(
            [sys.executable, "-c", CODE, *map(str, args)],
            capture_output=True,
            text=True,
            input=stdin,
            cwd=tmp_path,
            timeout=120,
            check=False,
        )

    return call


def test_train_predict_and_stats(bare, history):
    train = ("train", "--data-path", history, "--predictor-type", "survival")
    done = bare(*train, "--output-path", "made")
    assert done.returncode == 0, done.stderr
    asked = '{"sequence_id": 1, "token_ids": [], "current_length": 0, "max_length": 64}\n'
    done = bare("predict", "--checkpoint", "made", stdin=asked)
    assert done.returncode == 0, done.stderr
    assert "estimated_remaining_tokens" in done.stdout
    done = bare("stats", "--checkpoint", "made")
    assert done.returncode == 0, done.stderr


def test_a_trained_network_predicts(bare, lstm):
    asked = '{"sequence_id": 1, "token_ids": [], "current_length": 0, "max_length": 64}\n'
    done = bare("predict", "--checkpoint", lstm, stdin=asked)
    assert done.returncode == 0, done.stderr
    assert "estimated_remaining_tokens" in done.stdout


def test_evaluate_leaves_the_boosted_baseline_out(bare, history):
    done = bare("evaluate", "--data-path", history, "--predictor-type", "survival")
    assert done.returncode == 0, done.stderr
    told = (
        "left out beside: lightgbm "
        "(the baseline lightgbm needs: pip install 'isagellm-lifetime[report]')\n"
    )
    assert told in done.stderr
    assert "(residual_life)" in done.stdout


@pytest.mark.parametrize(
    ("args", "extra"),
    [
        (["evaluate", "--predictor-type", "survival", "--report", "out"], "report"),
        (["replay", "--report", "out"], "report"),
        (["train", "--predictor-type", "lstm"], "train"),
        (["evaluate", "--predictor-type", "lstm"], "train"),
        (["demo"], "report"),
        (["export", "--output-path", "m.pt"], "train"),
        (["export", "--output-path", "m.onnx"], "train"),
        (["engine", "start", "gpt2"], "vllm"),
        (["engine", "vllm", "--help"], "vllm"),
    ],
    ids=" ".join,
)
def test_the_extra_that_is_missing_is_named(bare, history, lstm, tmp_path, args, extra):
    reads = args[0] in {"evaluate", "replay", "train"}
    if args[0] == "export":
        args = [*args, "--checkpoint", lstm]
    done = bare(*args, *(["--data-path", history] if reads else []))
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith(f"pip install 'isagellm-lifetime[{extra}]'\n")
    assert not list(tmp_path.iterdir())
