"""Module paths of version 0.1.0 lead to the modules of now, with a warning."""

import importlib
import pickle
import pkgutil
import subprocess
import sys
import warnings

import pytest

from sagellm_lifetime import _moved


def test_every_old_path_leads_to_a_module():
    for new in {*_moved._MODULES.values(), *_moved._PACKAGES.values()}:
        assert importlib.util.find_spec(f"sagellm_lifetime.{new}") is not None, new


def test_an_old_path_gives_the_names_of_now_and_a_warning():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        old = importlib.import_module("sagellm_lifetime.core.history.read")
    new = importlib.import_module("sagellm_lifetime.history.read")
    assert caught[-1].category is DeprecationWarning
    assert str(caught[-1].message).endswith("is now sagellm_lifetime.history.read")
    assert old.read_history is new.read_history
    assert new.__spec__.name == new.__name__ == "sagellm_lifetime.history.read"
    assert pickle.loads(pickle.dumps(old.read_history)) is new.read_history


def test_a_name_that_never_was_is_still_unknown():
    with pytest.raises(ModuleNotFoundError, match=r"core\.nothing"):
        importlib.import_module("sagellm_lifetime.core.nothing")


def test_new_paths_give_no_warning():
    code = "import sagellm_lifetime, sagellm_lifetime.history.read, sagellm_lifetime.cli.main"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        subprocess.run([sys.executable, "-W", "error::DeprecationWarning", "-c", code], check=True)


def test_a_class_that_was_renamed_is_found_by_its_old_name():
    for old, names in _moved._NAMES.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            module = importlib.import_module(f"sagellm_lifetime.{old}")
        for name, name_now in names.items():
            assert getattr(module, name) is getattr(module, name_now)


@pytest.mark.parametrize("package", ["formats", "convert"])
def test_a_package_below_a_moved_package_is_one_and_has_its_modules(package):
    new_package = importlib.import_module(f"sagellm_lifetime.history.{package}")
    names = [module.name for module in pkgutil.iter_modules(new_package.__path__)]
    assert len(names) > 4
    for name in names:
        new = importlib.import_module(f"{new_package.__name__}.{name}")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            old = importlib.import_module(f"sagellm_lifetime.core.history.{package}.{name}")
        assert str(caught[-1].message).endswith(f"is now {new.__name__}")
        own = {key: value for key, value in vars(new).items() if not key.startswith("__")}
        assert own
        assert own.items() <= vars(old).items()


def test_a_module_that_never_was_in_a_moved_package_is_unknown_by_its_old_name():
    with pytest.raises(ModuleNotFoundError, match=r"core\.history\.nothing"):
        importlib.import_module("sagellm_lifetime.core.history.nothing")


OLD_NAME = {
    "an attribute": "import sagellm_lifetime\nsagellm_lifetime.LearningElsewhere\n",
    "an import": "\nfrom sagellm_lifetime import LearningElsewhere\n",
}


@pytest.mark.parametrize("code", OLD_NAME.values(), ids=OLD_NAME)
def test_an_old_name_is_shown_to_whoever_runs_it(tmp_path, code):
    """By Python's default filter, which shows a deprecation only where the program itself is."""
    program = tmp_path / "program.py"
    program.write_text(code)
    done = subprocess.run(
        [sys.executable, str(program)], check=True, capture_output=True, text=True
    )
    assert done.stderr.startswith(f"{program}:2: DeprecationWarning: LearningElsewhere is now")
    assert done.stderr.count("DeprecationWarning") == 1
