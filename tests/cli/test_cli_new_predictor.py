"""Models of another package: one new file each, registered by an entry point as if installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import sagellm_lifetime

SOURCE = Path(sagellm_lifetime.__file__).parents[1]
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "write-a-predictor.md"
FILES = {
    "by_client": PAGE.read_text(encoding="utf-8")
    .partition("<!-- run: file by_client.py -->\n```python\n")[2]
    .partition("```\n")[0],
    "deep": """
from sagellm_lifetime.networks.lstm import LSTMModel

class Deep(LSTMModel):
    name = "deep"

class Fixed(LSTMModel):
    name = "fixed"

    def __init__(self, **options):
        super().__init__(8, 1, **options)
""",
    "odd": """
from sagellm_lifetime import LengthModel

class Half(LengthModel):
    name = "half"

class Misnamed(LengthModel):
    name = "other"
    hazards = learn = state = restore = None

nothing = 5
""",
    "ends": "import sys; sys.exit('bye')",
}
MODELS = {"by-client": "by_client:ByClient", "deep": "deep:Deep", "fixed": "deep:Fixed"}
ODD = {
    "ends": ("ends:X", "cannot be loaded (SystemExit: bye)"),
    "absent": ("no_such_module:X", "ModuleNotFoundError: No module named 'no_such_module'"),
    "half": ("odd:Half", "lacks hazards, learn, restore, state"),
    "misnamed": ("odd:Misnamed", "has the name 'other'"),
    "nothing": ("odd:nothing", "is no LengthModel class"),
}


def installed(folder, models, name="others", version="1.2"):
    """Make ``folder`` look like a place where a package is installed."""
    for module, code in FILES.items():
        (folder / f"{module}.py").write_text(code)
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"{key} = {value}\n" for key, value in models.items()]
    (info / "entry_points.txt").write_text("[sagellm_lifetime.models]\n" + "".join(lines))
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return installed(tmp_path_factory.mktemp("site"), MODELS)


@pytest.fixture
def python(site, tmp_path):
    def run(code, *paths):
        paths = [str(path) for path in (*paths, site, SOURCE)]
        return subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{code}"],
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
        f"print([m for m in (*{heavy}, *{tuple(FILES)}) if m in sys.modules])"
    )
    done = python(code)
    shown = " ".join(done.stdout.replace("│", " ").split())
    assert shown.count("transformer, by-client, deep or fixed") == 2
    assert shown.endswith("[]")


def test_commands_take_it(python, history, tmp_path):
    train = ("train", "--data-path", str(history), "--predictor-type")
    assert python(command(*train, "by-client")).returncode == 0
    model = tmp_path / "runs/lifetime/by-client"
    assert json.loads((model / "manifest.json").read_text())["options"]["groups"] == 512
    judged = python(
        command("evaluate", "--data-path", str(history), "--checkpoint", str(model), "--json", "-")
    )
    assert judged.returncode == 0
    assert "by-client of " in judged.stderr
    assert json.loads(judged.stdout)["rows"] > 0
    refused = python(command(*train, "by-client", "--epochs", "3"))
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: --epochs is for auto, lstm, transformer, deep and fixed; by-client has no network\n"
    )


@pytest.mark.slow
def test_commands_know_that_it_is_a_network(python, history, tmp_path):
    pytest.importorskip("torch")
    train = ("train", "--data-path", str(history), "--epochs", "1", "--hidden-size", "8")
    done = python(command(*train, "--predictor-type", "deep"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("log  ")
    assert '"hidden_size": 8' in (tmp_path / "runs/lifetime/deep/manifest.json").read_text()
    refused = python(command(*train, "--predictor-type", "fixed"))
    assert refused.returncode == 2
    assert "the network of fixed has no width" in refused.stderr


def test_results_have_it(python):
    code = f"sys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n"
    done = python(code + "import results; print(*results.slow_first())")
    assert done.stdout.split() == [
        *("auto", "lstm", "transformer", "deep", "fixed"),
        *("rivals", "by-client", "survival", "linear", "orca", "baseline"),
    ]


def test_it_is_made_saved_and_taught_in_a_process_of_its_own_by_name(python):
    done = python(
        "from sagellm_lifetime import BackgroundLearner, create_predictor, load_predictor\n"
        "from sagellm_lifetime.testing.common import teach\n"
        "predictor = create_predictor('by-client', groups=8, capacity=50)\n"
        "with BackgroundLearner(predictor, 'state', every=3600.0) as learner:\n"
        "    teach(predictor, 20)\n"
        "    assert learner.drain(60.0)\n"
        "found = load_predictor('state')\n"
        "print(type(found).__name__, type(found.model).__name__, found.lessons, found.options)\n"
        "from sagellm_lifetime import RequestError\n"
        "try: create_predictor('by-client', window=3)\n"
        "except RequestError as error: print(error)"
    )
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    options = {"seed": 0, "groups": 8, "capacity": 50, "expire_after": 3600.0}
    assert first == f"Predictor ByClient 20 {options}"
    assert second.startswith("predictor 'by-client': ")


@pytest.mark.parametrize("name", ODD)
def test_one_that_fails_is_one_line_and_keeps_no_other_from_working(name, python, tmp_path):
    value, problem = ODD[name]
    (tmp_path / "broken").mkdir()
    broken = installed(tmp_path / "broken", {name: value}, "broken")
    refused = python(command("train", "--data-path", "x.csv", "--predictor-type", name), broken)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert f"predictor {name!r} of broken 1.2" in refused.stderr
    assert problem in refused.stderr
    done = python(
        "from sagellm_lifetime import create_predictor\n"
        "print(create_predictor('survival').name, create_predictor('by-client').name)",
        broken,
    )
    assert (done.stdout, done.stderr) == ("survival by-client\n", "")


def test_a_name_that_is_taken_is_said(python, tmp_path):
    (tmp_path / "twice").mkdir()
    twice = installed(tmp_path / "twice", {"survival": "by_client:ByClient"}, "twice")
    done = python(
        "from sagellm_lifetime import create_predictor\n"
        "from sagellm_lifetime.predictor.registry import predictor_names\n"
        "print(predictor_names().count('survival'), create_predictor('survival').model.name)",
        twice,
    )
    assert done.stdout == "1 survival\n"
    assert "the model 'survival' of twice 1.2 is not used: sagellm-lifetime has one" in done.stderr
