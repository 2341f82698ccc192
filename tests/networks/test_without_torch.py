"""PyTorch is an extra: without it everything but training works, and a message says what to do."""

import subprocess
import sys
import textwrap

import pytest

BLOCKED = """
import sys, warnings
warnings.simplefilter("error")

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == "torch" or name.startswith("torch."):
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, Blocker())
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["survival", "lstm", "transformer"])
def test_predicts_learns_saves_and_loads(name, tmp_path):
    out = run(
        f"""
        from sagellm_lifetime import PredictionRequest, create_predictor, load_predictor
        predictor = create_predictor({name!r})
        for i in range(100):
            predictor.predict(PredictionRequest(i, [], 0, 4096, {{"client_id": "c"}}))
            predictor.update(i, 300, 3.0)
        predictor.save({str(tmp_path / "c")!r})
        predictor = load_predictor({str(tmp_path / "c")!r})
        print(predictor.predict(PredictionRequest(0, [], 0, 4096)).estimated_remaining_tokens)
        """
    )
    assert 270 <= int(out) <= 330


def test_fit_names_the_command_and_changes_nothing():
    out = run(
        """
        import polars as pl
        from sagellm_lifetime import MissingExtraError, PredictionRequest, create_predictor
        predictor = create_predictor("lstm")
        predictor.predict(PredictionRequest("running", [], 0, None))
        try:
            predictor.fit(pl.DataFrame({"actual_length": [50] * 60}))
        except MissingExtraError as error:
            print(error)
        print(predictor.predict(PredictionRequest(1, [], 0, None)).source)
        print(predictor.get_metrics()["running"])
        create_predictor("survival").fit(pl.DataFrame({"actual_length": [50] * 60}))
        """
    )
    message, source, running = out.splitlines()
    assert "pip install 'isagellm-lifetime[train]'" in message
    assert (source, running) == ("prior", "2")


def test_reading_a_pt_file_names_the_command(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(b"anything")
    out = run(
        f"""
        from sagellm_lifetime import MissingExtraError, load_predictor
        try:
            load_predictor({str(path)!r})
        except MissingExtraError as error:
            print(error)
        """
    )
    assert "pip install" in out


def test_import_is_light():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, sagellm_lifetime as s; s.create_predictor('lstm'); "
            "print([m for m in ('torch', 'matplotlib', 'lightgbm') if m in sys.modules])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
