"""A new predictor is one file and one line: in a copy of the package, with both added."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sagellm_lifetime

PACKAGE = Path(sagellm_lifetime.__file__).parent
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FILES = {
    "plain": """
from sagellm_lifetime.predictor.orca import OrcaLifetimePredictor

class Plain(OrcaLifetimePredictor):
    name = "plain"
""",
    "deep": """
from sagellm_lifetime.predictor.lstm import LSTMLifetimePredictor

class Deep(LSTMLifetimePredictor):
    name = "deep"
""",
    "fixed": """
from sagellm_lifetime.predictor.lstm import LSTMLifetimePredictor

class Fixed(LSTMLifetimePredictor):
    name = "fixed"

    def __init__(self, **options):
        super().__init__(8, 1, **options)
""",
}
ANCHOR = "PREDICTORS: Final"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The package with three predictors more."""
    root = tmp_path_factory.mktemp("source")
    copy = shutil.copytree(
        PACKAGE, root / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__")
    )
    registry = copy / "predictor/registry.py"
    text = registry.read_text()
    for name, code in FILES.items():
        (copy / f"predictor/{name}.py").write_text(code)
        text = text.replace(
            f"}}\n{ANCHOR}", f'    "{name}": "{name}:{name.title()}",\n}}\n{ANCHOR}'
        )
    assert all(f'"{name}": ' in text for name in FILES)
    registry.write_text(text)
    return root


@pytest.fixture
def python(source, tmp_path):
    def run(code, path=source):
        begin = f"import sys; sys.path.insert(0, {str(path)!r})\n"
        return subprocess.run(
            [sys.executable, "-c", begin + code],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
        )

    return run


def command(*args):
    return f"from sagellm_lifetime.cli.main import run; sys.exit(run({args!r}, 'sagellm-lifetime'))"


def test_help_names_it_and_loads_nothing(python):
    heavy = ("torch", "onnxruntime", "onnx", "polars", "numpy", "sagellm_lifetime.predictor.base")
    code = (
        "from sagellm_lifetime.cli.main import run\n"
        "for name in ('train', 'evaluate'): run([name, '--help'], 'x')\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = python(code)
    shown = " ".join(done.stdout.replace("│", " ").split())
    assert shown.count("transformer, plain, deep or fixed") == 2
    assert shown.endswith("[]")


def test_commands_take_it(python, history, tmp_path):
    train = ("train", "--data-path", str(history), "--predictor-type")
    assert python(command(*train, "plain")).returncode == 0
    assert '"predictor": "plain"' in (tmp_path / "runs/lifetime/plain/manifest.json").read_text()
    refused = python(command(*train, "plain", "--epochs", "3"))
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: --epochs is for lstm, transformer, deep and fixed; plain has no network\n"
    )


def test_commands_know_that_it_is_a_network(python, history, tmp_path):
    pytest.importorskip("torch")
    train = ("train", "--data-path", str(history), "--epochs", "1", "--hidden-size", "8")
    done = python(command(*train, "--predictor-type", "deep"))
    assert (done.returncode, done.stderr) == (0, "")
    assert '"hidden_size": 8' in (tmp_path / "runs/lifetime/deep/manifest.json").read_text()
    refused = python(command(*train, "--predictor-type", "fixed"))
    assert refused.returncode == 2
    assert "the network of fixed has no width" in refused.stderr


def test_results_have_it(python):
    code = f"sys.path.insert(0, {str(BENCHMARKS)!r}); import results; print(*results.slow_first())"
    assert python(code).stdout.split() == [
        *("lstm", "transformer", "deep", "fixed"),
        *("rivals", "plain", "survival", "linear", "orca", "baseline"),
    ]
