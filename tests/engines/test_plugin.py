"""vLLM's plug-in: it does nothing unless it is asked for, and then all that our launcher does."""

import json
import os
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from engine_help import fitted

from sagellm_lifetime.core.errors import LifetimeError
from sagellm_lifetime.vllm.compat import interface
from sagellm_lifetime.vllm.engine_state import EngineState
from sagellm_lifetime.vllm.launch import plugin
from sagellm_lifetime.vllm.launch.engine_arguments import switch_on, switch_on_server
from sagellm_lifetime.vllm.launch.server import CLIENTS, MIDDLEWARE, PROCESSOR, SCHEDULER, WORKER
from sagellm_lifetime.vllm.launch.variable import VARIABLE
from sagellm_lifetime.vllm.settings import LiveSettings

GROUP = "vllm.general_plugins"


@pytest.fixture(autouse=True)
def _here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(interface, "version", lambda: "0.32.0")


def arguments(**given):
    """What the plug-in reads of vLLM's engine arguments."""
    values = {
        "scheduler_cls": None,
        "additional_config": {},
        "logits_processors": None,
        "distributed_executor_backend": None,
        "shutdown_timeout": 0,
        "scheduling_policy": "fcfs",
    }
    return SimpleNamespace(**{**values, **given})


def settings_of(arguments):
    return LiveSettings.of(arguments.additional_config["lifetime"])


class EngineArgs:
    """vLLM's, as far as the plug-in goes."""

    def __init__(self, **given):
        vars(self).update(vars(arguments(**given)))

    @classmethod
    def from_cli_args(cls, args):
        return cls(**vars(args))

    def create_engine_config(self, usage_context=None):
        return self.scheduler_cls, usage_context


@pytest.fixture
def registered(monkeypatch):
    """A module with engine arguments in vLLM's place, and the plug-in registered twice."""
    module = ModuleType("vllm.engine.arg_utils")
    for name in ("from_cli_args", "create_engine_config"):  # put back after the test
        monkeypatch.setattr(EngineArgs, name, vars(EngineArgs)[name])
    module.AsyncEngineArgs = type("AsyncEngineArgs", (EngineArgs,), {})
    module.EngineArgs = made = EngineArgs
    monkeypatch.setitem(sys.modules, "vllm.engine.arg_utils", module)
    plugin.register()
    config, parsed = made.create_engine_config, made.from_cli_args.__func__
    plugin.register()
    assert made.create_engine_config is config
    assert made.from_cli_args.__func__ is parsed
    return module


def test_it_is_an_entry_point_of_vllm():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    (place,) = project["project"]["entry-points"][GROUP].values()
    module, _, name = place.partition(":")
    assert getattr(import_module(module), name) is plugin.register


def test_a_process_without_engine_arguments_is_left_alone(monkeypatch):
    monkeypatch.delitem(sys.modules, "vllm.engine.arg_utils", raising=False)
    plugin.register()
    assert "vllm.engine.arg_utils" not in sys.modules


@pytest.mark.parametrize("unset", [None, "", "off"])
def test_nothing_is_changed_unless_asked_for(registered, monkeypatch, unset):
    if unset is not None:
        monkeypatch.setenv(VARIABLE, unset)
    plain = arguments(additional_config={"other": 1}, middleware=[])
    before = dict(vars(plain))
    engine = registered.AsyncEngineArgs.from_cli_args(plain)
    assert vars(plain) == vars(engine) == before
    assert engine.create_engine_config("usage") == (None, "usage")


def test_unasked_it_imports_nothing_else():
    code = (
        "import sys\n"
        "from types import ModuleType\n"
        "module = ModuleType('vllm.engine.arg_utils')\n"
        "class EngineArgs:\n"
        "    additional_config = {}\n"
        "    from_cli_args = classmethod(lambda cls, args: args)\n"
        "    def create_engine_config(self): return 'config'\n"
        "module.EngineArgs = EngineArgs\n"
        "sys.modules['vllm.engine.arg_utils'] = module\n"
        "before = set(sys.modules)\n"
        "from sagellm_lifetime.vllm.launch.plugin import register\n"
        "register()\n"
        "assert EngineArgs().create_engine_config() == 'config'\n"
        "ours = {m for m in sys.modules if m.startswith('sagellm_lifetime')}\n"
        "print(sorted(ours), [m for m in ('numpy', 'polars', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    package = "sagellm_lifetime"
    needed = [
        "",
        "._moved",
        ".vllm",
        ".vllm.launch",
        ".vllm.launch.plugin",
        ".vllm.launch.variable",
    ]
    assert done.stdout.strip() == f"{[package + name for name in needed]} []"


@pytest.mark.parametrize("mode", ["shadow", "act"])
@pytest.mark.parametrize("by", ["environment", "word", "object"])
def test_one_variable_or_one_flag_suffices(registered, monkeypatch, tmp_path, mode, by):
    given = arguments(middleware=["their.M"])
    if by == "environment":
        monkeypatch.setenv(VARIABLE, mode)
    else:
        value = mode if by == "word" else {"mode": mode, "learn": True}
        given.additional_config = {"lifetime": value, "other": 1}
    engine = registered.AsyncEngineArgs.from_cli_args(given)
    assert engine.scheduler_cls == given.scheduler_cls == SCHEDULER
    assert given.middleware == ["their.M", MIDDLEWARE]
    assert engine.shutdown_timeout == 10
    state = str(tmp_path / "runs" / "engine")
    assert settings_of(engine) == LiveSettings(mode=mode, learn=True, state=state)
    assert ("other" in engine.additional_config) == (by != "environment")
    # The second API server's process, and the configuration, find it done.
    vars_before = dict(vars(given))
    again = registered.AsyncEngineArgs.from_cli_args(given)
    assert vars(given) == vars_before
    assert again.create_engine_config() == (SCHEDULER, None)


def test_arguments_made_in_python(registered):
    engine = registered.EngineArgs(additional_config={"lifetime": "shadow"}, shutdown_timeout=3)
    assert engine.create_engine_config() == (SCHEDULER, None)
    assert settings_of(engine) == LiveSettings(learn=True)  # without a folder
    assert engine.shutdown_timeout == 3


def test_the_flag_goes_before_the_variable(monkeypatch, tmp_path):
    fitted().save(tmp_path / "trained")
    monkeypatch.setenv(VARIABLE, json.dumps({"mode": "act", "checkpoint": "trained"}))
    given = arguments(additional_config={"lifetime": {"mode": "shadow", "watermark": 0.1}})
    assert switch_on(given) == LiveSettings(
        watermark=0.1, predictor="", checkpoint=str(tmp_path / "trained")
    )
    assert given.shutdown_timeout == 0  # nothing is learned or recorded


def test_a_scheduler_that_is_ours_already_is_left_as_it_is(monkeypatch):
    monkeypatch.setenv(VARIABLE, "act")
    launched = arguments(
        scheduler_cls=SCHEDULER, additional_config={"lifetime": {"mode": "shadow"}}, middleware=[]
    )
    before = dict(vars(launched))
    switch_on_server(launched)
    assert switch_on(launched) == LiveSettings(mode="shadow")
    assert vars(launched) == before


def test_the_client_of_a_request(monkeypatch, caplog):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    for source, remarks in (("user", 0), ("header:X-Tenant", 0), ("api-key", 1)):
        given = arguments(additional_config={"lifetime": {"client_from": source}}, api_key=None)
        with caplog.at_level("WARNING", logger="vllm.sagellm_lifetime"):
            caplog.clear()
            switch_on_server(given)
        assert given.middleware == [MIDDLEWARE, CLIENTS]
        assert len(caplog.messages) == remarks


def test_the_signals_of_the_model(monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    lifetime = {"lifetime": {"predictor": "lstm", "signals": True}}
    given = arguments(additional_config=lifetime, logits_processors=["their:P"])
    switch_on(given)
    assert given.logits_processors == [PROCESSOR, "their:P"]
    assert given.distributed_executor_backend == "uni"
    with pytest.raises(LifetimeError, match="several processes"):
        switch_on(arguments(additional_config=lifetime, tensor_parallel_size=2))
    with pytest.raises(LifetimeError, match="speculative"):
        switch_on(arguments(additional_config=lifetime, speculative_config={"method": "ngram"}))


def test_the_hidden_state_of_the_model(monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    lifetime = {"lifetime": {"hidden": True}}
    given = arguments(
        additional_config=lifetime,
        pipeline_parallel_size=2,
        speculative_config={"method": "ngram"},
        worker_cls="auto",
    )
    switch_on(given)
    assert given.worker_cls == WORKER
    assert not given.logits_processors
    assert given.distributed_executor_backend is None
    for options, told in (
        ({"worker_cls": "mine.Worker"}, "--worker-cls: --watch-hidden has a worker of its own"),
        ({"distributed_executor_backend": "ray"}, "not with --distributed-executor-backend ray"),
        ({"enable_dbo": True}, "enable_dbo, which splits the tokens"),
        ({"prefill_context_parallel_size": 2}, "which splits the tokens"),
    ):
        with pytest.raises(LifetimeError, match=told):
            switch_on(arguments(additional_config=lifetime, **options))


def test_both_signals_of_the_model(monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    both = {"lifetime": {"predictor": "lstm", "hidden": True, "signals": True}}
    given = arguments(additional_config=both)
    switch_on(given)
    assert (given.logits_processors, given.worker_cls) == ([PROCESSOR], WORKER)


@pytest.mark.parametrize(
    ("variable", "given", "told"),
    [
        ("on", {}, "SAGELLM_LIFETIME: lifetime settings: a mode (off, shadow, act) or an object"),
        ('{"mod": 1}', {}, "unknown key 'mod': did you mean mode?"),
        ("[1]", {}, "a mode (off, shadow, act)"),
        (
            '{"mode": act}',
            {},
            "SAGELLM_LIFETIME: not valid JSON: Expecting value: line 1 column 10",
        ),
        ("shadow", {"scheduler_cls": "x.Y"}, "--scheduler-cls: ours takes its place"),
        ("act", {"scheduling_policy": "priority"}, "use fcfs to act"),
        ('{"mode": "switchback"}', {"scheduling_policy": "priority"}, "use fcfs to act"),
        ('{"state": "file"}', {}, "state: "),
        ('{"record": "file/below"}', {}, "is not a folder"),
        ('{"learn": true, "fleet": "file"}', {}, "fleet: "),
        ('{"checkpoint": "nowhere"}', {}, "no such checkpoint"),
        ('{"predictor": "oracle"}', {}, "unknown predictor 'oracle'"),
        ('{"state": "used"}', {}, "another engine runs"),
        ("", {"additional_config": {"lifetime": 3}}, "a mode (off, shadow, act)"),
        ("", {"additional_config": {"lifetime": {"watermark": 2}}}, "watermark must be a number"),
    ],
)
def test_a_mistake_ends_the_server_with_one_line(
    registered, monkeypatch, tmp_path, capsys, variable, given, told
):
    used = EngineState(tmp_path / "used", 0)
    (tmp_path / "file").touch()
    monkeypatch.setenv(VARIABLE, variable)
    with pytest.raises(SystemExit) as ended:
        registered.AsyncEngineArgs.from_cli_args(arguments(**given))
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert told in said
    assert said.count("\n") == 1
    used.close()


def test_the_password_of_a_store_is_in_no_argument_that_vllm_logs(monkeypatch):
    pytest.importorskip("redis")
    monkeypatch.setenv("LIFETIME_FLEET_PASSWORD", "")
    monkeypatch.delenv("LIFETIME_FLEET_PASSWORD")
    place = "redis://me:hu%2Fsh@cache:6379/0"
    given = arguments(additional_config={"lifetime": {"learn": True, "fleet": place}})
    assert switch_on(given).fleet == "redis://me@cache:6379/0"
    assert "sh@" not in str(given.additional_config)
    assert os.environ["LIFETIME_FLEET_PASSWORD"] == "hu/sh"


def test_a_mistake_in_python_is_an_exception(registered):
    engine = registered.EngineArgs(additional_config={"lifetime": "on"})
    with pytest.raises(LifetimeError, match="a mode"):
        engine.create_engine_config()


def test_an_untested_vllm_that_lacks_something_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(interface, "version", lambda: "0.34.0")
    monkeypatch.setattr(interface, "changes", lambda: ["Scheduler.running is gone"])
    with pytest.raises(SystemExit):
        switch_on_server(arguments(additional_config={"lifetime": "shadow"}))
    assert "Scheduler.running is gone" in capsys.readouterr().err


@pytest.mark.usefixtures("vllm")
@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--additional-config.lifetime", "shadow"], "shadow"),
        (["--additional_config.lifetime=act"], "act"),
        (["--additional-config.lifetime.client_from", "user"], {"client_from": "user"}),
        (["--additional-config", '{"lifetime": {"learn": true}}'], {"learn": True}),
    ],
)
def test_vllm_reads_the_flag_as_the_page_writes_it(words, value):
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(words)
    assert parsed.additional_config == {"lifetime": value}
    assert {
        *("scheduler_cls", "middleware", "logits_processors", "shutdown_timeout"),
        *("distributed_executor_backend", "scheduling_policy", "api_key", "speculative_config"),
        *("tensor_parallel_size", "pipeline_parallel_size"),
    } <= vars(parsed).keys()
