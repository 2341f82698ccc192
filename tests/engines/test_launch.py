"""``engine start``: what is refused before anything heavy, and what is run otherwise."""

import json
import subprocess
import sys
from importlib import import_module

import pytest
from engine_help import fitted

from sagellm_lifetime import create_predictor
from sagellm_lifetime.cli import engine
from sagellm_lifetime.cli.main import run
from sagellm_lifetime.vllm.compat import interface
from sagellm_lifetime.vllm.compat.versions import KNOWN_GOOD, UNKNOWN, VERSIONS
from sagellm_lifetime.vllm.engine_state import EngineState
from sagellm_lifetime.vllm.launch import address
from sagellm_lifetime.vllm.launch import server as launch
from sagellm_lifetime.vllm.settings import LiveSettings

ON = "--enable-lifetime-prediction"


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path / "model"


@pytest.fixture
def start(monkeypatch, tmp_path, capfd):
    """Run the command in an empty folder; what it would have started, or its complaint.

    It looks whether vLLM is there and imports nothing of it, so these tests run without it.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "find_spec", lambda name: True)
    monkeypatch.setattr(address, "PORT", 0)  # any that is free

    def call(*args):
        started = []
        monkeypatch.setattr(engine.os, "execv", lambda path, line: started.append(line))
        code = run(["engine", "start", *map(str, args)], "sage llm")
        err = capfd.readouterr().err
        if code:
            assert code == 2
            assert not started
            assert err.startswith("error: ")
            assert err.count("\n") == 1
            return err
        assert "--additional-config" in err or ON not in args
        (line,) = started
        return line[3:]

    return call


def settings_of(line):
    return json.loads(line[line.index("--additional-config") + 1])["lifetime"]


def test_the_specifications_line(start, model, tmp_path):
    create_predictor("lstm", hidden_size=16).save(tmp_path / "trained")
    line = start(
        *(model, "--engine-kind", "llm", ON, "--predictor-type", "lstm"),
        *("--predictor-hidden-size", 16, "--predictor-checkpoint", "trained"),
        *("--enable-online-learning", "--", "--seed", 8001, "--dtype", "float32"),
    )
    assert line[0] == str(model)
    assert line[line.index("--scheduler-cls") + 1] == launch.SCHEDULER
    assert line[line.index("--middleware") + 1] == launch.MIDDLEWARE
    assert line[line.index("--seed") : line.index("--seed") + 4] == [
        *("--seed", "8001", "--dtype", "float32")
    ]
    said = settings_of(line)
    assert LiveSettings.of(said) == LiveSettings(
        mode="shadow",
        predictor="lstm",
        width=16,
        checkpoint=str(tmp_path / "trained"),
        learn=True,
        state=str(tmp_path / "runs" / "engine"),
    )


@pytest.mark.parametrize(("name", "width"), [("lstm", "hidden_size"), ("transformer", "d_model")])
def test_a_checkpoint_of_another_width(start, model, name, width):
    create_predictor(name, **{width: 16}).save("trained")
    line = (model, ON, "--predictor-checkpoint", "trained", "--predictor-hidden-size")
    for more in ((), ("--predictor-type", name)):
        assert "trained: --predictor-hidden-size is 16 there, not 32" in start(*line, 32, *more)
        assert settings_of(start(*line, 16, *more))["width"] == 16
    fitted().save("tables")
    line = (model, ON, "--predictor-checkpoint", "tables", "--predictor-hidden-size")
    assert settings_of(start(*line, 32))["width"] == 32  # it has none


def test_nothing_would_look_at_the_end(start, model, tmp_path):
    said = start(model, ON, "--watch-eos")
    assert "--watch-eos: auto does not look at it" in said
    create_predictor("orca").save(tmp_path / "trained")
    assert "orca does not" in start(model, ON, "--watch-eos", "--predictor-checkpoint", "trained")
    for more in (("--predictor-type", "lstm"), ("--record", tmp_path / "history")):
        assert settings_of(start(model, ON, "--watch-eos", *more))["signals"] is True


def test_a_worker_of_ours_reads_hidden_states(start, model):
    line = start(model, ON, "--watch-hidden", "--", "-tp=2", "--spec-method", "ngram")
    assert settings_of(line)["hidden"] is True
    assert line[line.index("--worker-cls") + 1] == launch.WORKER
    for options, told in (
        (("--worker-cls", "mine.Worker"), "--watch-hidden has a worker of its own"),
        (("--distributed-executor-backend", "ray"), "--watch-hidden: not with"),
        (("--enable-dbo",), "--enable-dbo, which splits the tokens of a step"),
        (("-pcp", "2"), "-pcp, which splits the tokens of a step"),
    ):
        assert told in start(model, ON, "--watch-hidden", "--", *options)
    assert "needs --enable-lifetime-prediction" in start(model, "--watch-hidden")


def test_what_is_named_is_there(vllm):
    from sagellm_lifetime.vllm.live import scheduler

    module, _, name = launch.MIDDLEWARE.rpartition(".")
    assert hasattr(__import__(module, fromlist=[name]), name)
    assert f"{scheduler.__module__}.{scheduler.__name__}" == launch.SCHEDULER
    assert launch.RUNNER == "sagellm_lifetime.vllm.launch.serve"


def test_plain_vllm_where_nothing_is_asked_for(start, model):
    assert start(model, "--", "--seed", "1") == [str(model), "--seed", "1"]


def test_another_scheduler_is_vllms_own_business_without_ours(start, model):
    options = ["--", "--scheduler-cls", "x.Y"]
    assert start(model, *options) == [str(model), "--scheduler-cls", "x.Y"]
    for asked in ([ON], ["--record", "rec"]):
        assert "--scheduler-cls: " in start(model, *asked, *options)


def test_recorded_without_prediction(start, model, tmp_path):
    said = settings_of(start(model, "--record", "rec", "--record-content"))
    assert LiveSettings.of(said) == LiveSettings(
        predict=False,
        mode="off",
        record=str(tmp_path / "rec"),
        content=True,
        state=str(tmp_path / "runs" / "engine"),
    )


def test_names_of_the_hub_are_taken_as_they_are(start):
    for name in ("org/name-1.5B", "gpt2", "s3://bucket/model"):
        assert start(name)[0] == name


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("./nope", "./nope: no such folder\n"),
        ("../smollm2", "../smollm2: no such folder\n"),
        ("~/nope", "no such folder"),
        ("/nowhere", "no such folder"),
        ("models/nope", "models/nope: no such folder in models\n"),
        ("models/smollm2x", "models/smollm2x: no such folder in models\n"),
        ("models/a/b", "no such folder in models"),
        ("nowhere/a/b", "not a name of the hub"),
        ("README.md", "README.md: a file, but not a .gguf"),
        ("models/config.json", "a file, but not a .gguf"),
    ],
)
def test_no_model_there(start, tmp_path, name, told):
    (tmp_path / "models").mkdir()
    for file in ("README.md", "models/config.json"):
        (tmp_path / file).write_text("{}")
    assert told in start(name, ON)


def test_what_may_be_a_model_is_not_refused(start, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "small.gguf").write_bytes(b"GGUF")
    for name in ("Qwen/Qwen2.5-7B-Instruct", "models/small.gguf", "HuggingFaceTB/SmolLM2-135M"):
        assert start(name, ON)[0] == name


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--speculative-config", "--speculative-config"),
        ("--speculative_config.method=ngram", "--speculative-config"),
        ("-sc", "-sc"),
        ("--spec-method", "--spec-method"),
    ],
)
def test_no_signals_beside_it(start, model, option, named):
    line = [model, ON, "--predictor-type", "lstm"]
    options = ["--", option, *(() if "=" in option else ["x"])]
    assert f"--watch-eos: not with {named}: " in start(*line, "--watch-eos", *options)
    assert option in start(*line, *options)  # vLLM's own business


@pytest.mark.parametrize(
    "found", ["0.28.2", "0.34.0", "0.34.0rc1", "0.28.1+cpu", "1.32.0", "0.3.2", "0.320.0", "dev"]
)
def test_an_untested_vllm_is_refused_by_what_it_lacks(start, model, monkeypatch, found):
    monkeypatch.setattr(interface, "version", lambda: found)
    monkeypatch.setattr(interface, "changes", lambda: ["Scheduler.running is gone"])
    for asked in ([ON], ["--record", "rec"]):
        said = start(model, *asked)
        assert f"vLLM {found} is not" in said
        assert f"({VERSIONS}): Scheduler.running is gone" in said
        assert f"vllm=={KNOWN_GOOD}" in said
    assert start(model)  # nothing of ours runs in it
    monkeypatch.setattr(interface, "changes", list)
    assert start(model, ON)


@pytest.mark.parametrize(
    "found", ["0.29.0", "0.30.1", "0.31.4", "0.32.0", "0.32.0+cpu", "0.33.1rc2", UNKNOWN]
)
def test_every_release_of_the_series_passes(start, model, monkeypatch, found):
    monkeypatch.setattr(interface, "version", lambda: found)
    assert start(model, ON)


def test_keys_are_passed_on_and_not_printed(monkeypatch, model, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "find_spec", lambda name: True)
    monkeypatch.setattr(address, "PORT", 0)
    started = []
    monkeypatch.setattr(engine.os, "execv", lambda path, line: started.append(line))
    options = [
        *("--api-key", "hush1", "hush2", "--seed", "81", "--api_key=hush3", "--api-k", "hush4"),
        *("--hf-token", "hush5", "--hf_token=hush6", "--served-model-name", "seen"),
        *("--model-loader-extra-config", '{"s3_secret_access_key": "hush7"}'),
        *("--model-loader-extra-config.s3_secret_access_key", "hush8", "--host", "::1"),
    ]
    assert run(["engine", "start", str(model), ON, "--", *options], "sage llm") == 0
    err = capfd.readouterr().err
    assert "hush" not in err
    assert "--api-key '***' '***' --seed 81 '--api_key=***'" in err
    assert "--served-model-name seen" in err
    assert "--host ::1" in err
    assert started[0][-len(options) - 2 : -2] == options


def test_the_users_additional_config_stays(start, model):
    given = json.dumps({"other": [1]})
    for form in (["--additional-config", given], [f"--additional_config={given}"]):
        line = start(model, ON, "--", *form, "--seed", "1")
        assert line.count("--additional-config") == 1
        both = json.loads(line[line.index("--additional-config") + 1])
        assert both.keys() == {"other", "lifetime"}
        assert line[line.index("--seed") + 1] == "1"
        assert not any(part.startswith("--additional_config") for part in line)


def test_a_config_file_is_passed_on_and_its_additional_config_kept(start, model, tmp_path):
    (tmp_path / "vllm.yaml").write_text(
        "seed: 1\nenforce-eager: true\nadditional-config:\n  other: [1]\nshutdown-timeout: 3\n"
    )
    line = start(model, ON, "--record", "rec", "--", "--config", "vllm.yaml")
    assert line[line.index("--config") + 1] == "vllm.yaml"
    both = json.loads(line[line.index("--additional-config") + 1])
    assert both.keys() == {"other", "lifetime"}
    assert "--shutdown-timeout" not in line
    assert "--seed" not in line


def additional(line):
    return json.loads(line[line.index("--additional-config") + 1])


def forms(name, value):
    """How one setting may be said in ``--additional-config``."""
    whole = json.dumps({"lifetime": {name: value}, "other": {"a": [1, 2]}})
    return [
        ["--additional-config", whole],
        [f"--additional-config={whole}"],
        ["--additional_config", whole],
        ["--additional-conf", whole],
        [f"--additional-config.lifetime.{name}", json.dumps(value)],
        [f"--additional_config.lifetime.{name}={json.dumps(value)}"],
        ["--additional-config.lifetime", json.dumps({name: value})],
    ]


@pytest.mark.parametrize("form", range(7))
@pytest.mark.parametrize("dashes", [[], ["--"]], ids=["passed on", "after --"])
def test_settings_of_additional_config_arrive(start, model, form, dashes):
    for name, value in (("floor_s", 0.25), ("watermark", 0), ("learn", True)):
        words = forms(name, value)[form]
        line = start(model, ON, "--lifetime-mode", "act", *dashes, *words, "--seed", "5")
        assert line.count("--additional-config") == 1
        assert line[line.index("--seed") + 1] == "5"
        both = additional(line)
        assert both["lifetime"][name] == value
        assert both["lifetime"]["mode"] == "act"
        if form < 4:
            assert both["other"] == {"a": [1, 2]}


@pytest.mark.parametrize(
    "text",
    [
        "additional-config:\n  other: [1]\n  lifetime:\n    pause_s: 7\n    state: kept\n",
        'additional_config: \'{"other": [1], "lifetime": {"pause_s": 7, "state": "kept"}}\'\n',
    ],
)
def test_settings_of_a_config_file_arrive(start, model, tmp_path, text):
    (tmp_path / "vllm.yaml").write_text(text)
    line = start(
        *(model, ON, "--config", "vllm.yaml", "--additional-config.lifetime.share=0.5"),
        *("--additional-config", '{"lifetime": {"pause_s": 8}, "more": true}'),
    )
    assert additional(line) == {
        "other": [1],
        "more": True,
        "lifetime": {
            **{"pause_s": 8, "share": 0.5, "mode": "shadow"},
            "state": str(tmp_path / "kept"),
        },
    }
    (tmp_path / "keys.yaml").write_text("additional-config.lifetime.share: 0.5\n")
    assert "write it as one object" in start(model, ON, "--config", "keys.yaml")


def test_what_is_set_there_is_looked_at_like_an_option(start, model, tmp_path):
    def on(**said):
        return [model, ON, "--additional-config", json.dumps({"lifetime": said})]

    assert "share must be a number from 0 to 1, got '0.2'" in start(*on(share="0.2"))
    assert "did you mean limit_s" in start(*on(limits=1))
    assert "got 3" in start(model, ON, "--additional-config", '{"lifetime": 3}')
    assert "no such checkpoint" in start(*on(checkpoint="nowhere"))
    assert "keeps an order of its own" in start(*on(mode="act"), "--scheduling-policy", "priority")
    assert "auto does not look at it" in start(*on(signals=True))
    line = start(*on(signals=True, predictor="lstm", state=""))
    assert launch.PROCESSOR in line
    assert launch.MIDDLEWARE not in line
    assert settings_of(start(*on(checkpoint=""), "--state", "s"))["state"] == str(tmp_path / "s")


@pytest.mark.parametrize(
    ("ours", "theirs", "told"),
    [
        (["--lifetime-mode", "act"], {"mode": "shadow"}, "--lifetime-mode act: "),
        (["--predictor-type", "lstm"], {"predictor": "orca"}, "lifetime.predictor = 'orca'"),
        (["--state", "a"], {"state": "b"}, "--state a: "),
        (["--lifetime-min-confidence", "0"], {"min_confidence": 0.5}, "min_confidence = 0.5"),
        (["--enable-online-learning"], {"learn": False}, "--enable-online-learning: "),
        ([], {"predict": False}, f"{ON}: "),
        (["--predictor-hidden-size", "8"], {"width": "8"}, "width = '8'"),
    ],
)
def test_two_values_of_one_setting_are_refused(start, model, ours, theirs, told):
    words = ["--additional-config", json.dumps({"lifetime": theirs})]
    said = start(model, ON, *ours, *words)
    assert told in said
    assert "leave one of them out" in said


def test_the_same_said_twice_is_no_contradiction(start, model, tmp_path):
    words = ["--additional-config", '{"lifetime": {"mode": "act", "state": "./a"}}']
    line = start(model, ON, "--lifetime-mode", "act", "--state", tmp_path / "a", *words)
    assert settings_of(line) == {"mode": "act", "state": str(tmp_path / "a")}


def test_settings_that_nobody_would_read_are_refused(start, model):
    words = ["--additional-config", '{"lifetime": {"mode": "act"}, "other": 1}']
    assert "does nothing without --enable-lifetime-prediction" in start(model, *words)
    by_hand = [*words, "--scheduler-cls", launch.SCHEDULER]
    assert start(model, *by_hand) == [str(model), *by_hand]
    assert "mode 'act' needs predict" in start(model, "--record", "r", *words)


def test_command_puts_the_users_settings_and_ours_together():
    words = ["--seed", "1", "--additional-config.lifetime.limit_s", "2"]
    line = launch.command("m", LiveSettings(mode="act"), words)
    assert additional(line) == {"lifetime": {"mode": "act", "limit_s": 2}}
    with pytest.raises(launch.LaunchError, match=r"lifetime\.mode = 'off'"):
        launch.command("m", LiveSettings(), ["--additional-config.lifetime.mode", "off"])


def test_lists_of_the_users_and_ours_are_put_together(start, model, tmp_path):
    (tmp_path / "vllm.yaml").write_text("logits-processors: [a:A, b:B]\nmiddleware: c.C\n")
    on = [model, ON, "--predictor-type", "lstm", "--watch-eos"]

    def processors(line):
        first = line.index("--logits-processors") + 1
        last = next(i for i in range(first, len(line)) if line[i].startswith("-"))
        assert line.count("--logits-processors") == 1
        return line[first:last]

    line = start(*on, "--logits-processors", "x:X", "y:Y", "--seed", "1")
    assert processors(line) == [launch.PROCESSOR, "x:X", "y:Y"]
    assert "--seed" in line
    assert processors(start(*on, "--logits_processors=x:X")) == [launch.PROCESSOR, "x:X"]
    assert processors(start(*on, "--config", "vllm.yaml")) == [launch.PROCESSOR, "a:A", "b:B"]
    assert processors(start(*on, "--logits-processors", launch.PROCESSOR)) == [launch.PROCESSOR]
    line = start(*on, "--middleware", "m.M", "--middleware=n.N")
    assert [line[i + 1] for i, word in enumerate(line) if word == "--middleware"] == [
        *(launch.MIDDLEWARE, "m.M")
    ]
    assert "--middleware=n.N" in line
    assert launch.MIDDLEWARE in start(*on, "--config", "vllm.yaml")
    assert start(model, ON, "--middleware", launch.MIDDLEWARE).count(launch.MIDDLEWARE) == 1


def test_what_the_environment_says_is_not_overwritten(start, model, monkeypatch):
    on = [model, ON, "--predictor-type", "lstm", "--watch-eos"]
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    assert "your environment has another" in start(*on)
    assert start(*on[:-1])
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    assert start(*on)


def test_options_of_vllms_are_passed_on(start, model):
    words = ["--seed", "5", "-tp=1", "-O3", "--enforce-eager", "--served_model_name", "a", "b"]
    words += ["--compilation-config.mode=3", "-cc.level", "0", "--max-model-len=1k"]
    line = start(model, *words[:2], ON, *words[2:5], "--lifetime-mode", "act", *words[5:])
    first = line.index("--seed")
    assert line[first : first + len(words)] == words
    assert settings_of(line)["mode"] == "act"
    assert start(model, *words) == [str(model), *words]


@pytest.mark.usefixtures("vllm")
def test_no_option_of_vllms_is_taken_for_one_of_ours():
    from sagellm_lifetime.vllm.compat.torch_companions import ready_for_vllm
    from sagellm_lifetime.vllm.launch.vllm_args import is_option

    ready_for_vllm()
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    names = [name for action in parser._actions for name in action.option_strings]
    assert len(names) > 300
    engine.check_names(names, ["--engine-kind", *launch.OPTIONS.values()])
    # What is short for an option that we look at is short for no other.
    looked_at = ["--host", "--port", "--uds", "--additional-config", "--middleware", "--headless"]
    looked_at += ["--logits-processors", "--scheduler-cls", "--shutdown-timeout", launch.BACKEND]
    looked_at += ["--api-key"]
    for name in looked_at:
        assert name in names
        for length in range(3, len(name)):
            if is_option(name[:length], name):
                alike = [each for each in names if each.startswith(name[:length])]
                assert alike == [name] or name[:length] in alike or len(alike) > 1


def test_our_options_stand_for_settings(start):
    import inspect
    from dataclasses import fields

    names = {field.name for field in fields(LiveSettings)}
    assert set(launch.OPTIONS) < names
    given = {name.replace("_", "-") for name in inspect.signature(engine.start).parameters}
    assert {f"--{name}" for name in given} == {
        *launch.OPTIONS.values(),
        *("--model", "--options", "--engine-kind"),
    }


def test_time_to_write_the_rest(start, model):
    line = start(model, ON, "--record", "rec")
    assert "--shutdown-timeout" in line
    line = start(model, ON, "--record", "rec", "--", "--shutdown-timeout", "0")
    assert line.count("--shutdown-timeout") == 1


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["/nowhere/model", ON], "no such folder"),
        (["empty", ON], "config.json is missing"),
        (["{model}", "--engine-kind", "embedding"], "engine-kind"),
        (["{model}", ON, "--predictor-type", "oracle"], "unknown predictor 'oracle'"),
        (["{model}", ON, "--predictor-type", "orca", "--predictor-hidden-size", "8"], "no hidden"),
        (
            ["{model}", ON, "--predictor-type", "lstm", "--predictor-hidden-size", "100000000"],
            "less than or equal to 2048",
        ),
        (["{model}", ON, "--predictor-checkpoint", "nowhere"], "no such checkpoint"),
        (["{model}", ON, "--predictor-checkpoint", "broken.pt"], "broken.pt"),
        (["{model}", ON, "--predictor-checkpoint", "empty"], "not a checkpoint"),
        (
            ["{model}", ON, "--predictor-type", "lstm", "--predictor-checkpoint", "trained"],
            "holds a survival predictor, not lstm",
        ),
        (["{model}", ON, "--lifetime-policy", "best"], "unknown policy 'best'"),
        (["{model}", ON, "--lifetime-min-confidence", "1.5"], "lifetime-min-confidence"),
        (["{model}", "--lifetime-min-confidence", "0.5"], "needs --enable-lifetime-prediction"),
        (["{model}", ON, "--lifetime-mode", "off"], "lifetime-mode"),
        (["{model}", "--predictor-type", "lstm"], "needs --enable-lifetime-prediction"),
        (["{model}", "--enable-online-learning"], "needs --enable-lifetime-prediction"),
        (["{model}", ON, "--record-content"], "--record"),
        (["{model}", ON, "--record", "broken.pt"], "broken.pt"),
        (["{model}", ON, "--state", "used"], "another engine runs"),
        (["{model}", ON, "--", "--state", "x"], "--state is no option of vLLM's: give it before"),
        (["{model}", ON, "--lifetime-mod", "act"], "did you mean --lifetime-mode?"),
        (["{model}", ON, "--watch_eoss"], "did you mean --watch-eos?"),
        (["{model}", ON, "--enable-lifetime"], "did you mean --enable-lifetime-prediction?"),
        (["{model}", ON, "--record-contents=1"], "did you mean --record-content?"),
        (["--seed", "1", "{model}", ON], "--seed: MODEL comes first"),
        (["{model}", "--model", "other"], "--model other: the model is"),
        (["{model}", ON, "--", "--scheduler-cls", "x.Y"], "--scheduler-cls"),
        (["{model}", ON, "--", "--scheduler-c=x.Y"], "--scheduler-cls"),
        (["{model}", ON, "--", "--config", "scheduler.yaml"], "--scheduler-cls"),
        (["{model}", ON, "--", "--config", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["{model}", ON, "--", "--config", "broken.pt"], "broken.pt: not a YAML file"),
        (["{model}", ON, "--", "--additional-config", "{{"], "not a JSON object"),
        (["{model}", ON, "--", "--additional-config.a"], "--additional-config.a: needs a value"),
        (
            ["{model}", ON, "--additional-config", '{{"lifetime": {{"state": "\\ud801"}}}}'],
            "state must be a path",
        ),
        (["{model}", ON, "--additional-config.lifetime.state", "loop"], "leads nowhere"),
        (["{model}", ON, "--additional-config.lifetime.width", "9" * 900 + "k"], "width must be"),
        (["{model}", ON, "--additional-config.lifetime.width", "9" * 5000 + "K"], "width must be"),
        (["{model}", ON, "--", "--config", "date.yaml"], "additional-config cannot be given"),
        (["{model}", ON, "--host", "é..y"], "not the name of a host"),
        (["{model}", ON, "--config=scheduler.yaml"], "give it as two words"),
        (["{model}", ON, "--config"], "--config: needs a file"),
        (
            ["{model}", ON, "--lifetime-mode", "act", "--", "--scheduling-policy", "priority"],
            "keeps an order of its own",
        ),
        (
            ["{model}", ON, "--lifetime-mode", "act", "--", "--scheduling_policy=priority"],
            "keeps an order of its own",
        ),
        (
            ["{model}", ON, "--lifetime-mode", "act", "--", "--scheduling", "priority"],
            "keeps an order of its own",
        ),
        (
            ["{model}", ON, "--lifetime-mode", "act", "--", "--config", "priority.yaml"],
            "keeps an order of its own",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_refused_in_one_line(start, model, tmp_path, args, told):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.pt").write_bytes(b"no checkpoint")
    (tmp_path / "scheduler.yaml").write_text("seed: 8001\nscheduler-cls: x.Y\n")
    (tmp_path / "priority.yaml").write_text("scheduling_policy: priority\n")
    (tmp_path / "date.yaml").write_text("additional-config: {when: 2031-01-01}\n")
    (tmp_path / "loop").symlink_to("loop")
    fitted().save(tmp_path / "trained")
    used = EngineState(tmp_path / "used", 0)
    assert told in start(*(each.format(model=model) for each in args))
    used.close()


def test_without_vllm_it_says_how_to_get_it(start, model, monkeypatch):
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    assert "pip install 'isagellm-lifetime[vllm]'" in start(model, ON)


def test_shadow_goes_with_vllms_priorities(start, model):
    assert "priority" in start(model, ON, "--", "--scheduling-policy", "priority")


@pytest.mark.parametrize("version", [KNOWN_GOOD, "0.1.0"])
def test_refusing_imports_nothing_heavy(version):
    code = (
        "import sys\n"
        "from sagellm_lifetime.cli.main import run\n"
        "from sagellm_lifetime.vllm.compat import interface\n"
        f"interface.version = lambda: {version!r}\n"
        "assert run(['engine', 'start', '/nowhere/x', '--enable-lifetime-prediction'], 's') == 2\n"
        "print([m for m in ('vllm', 'torch', 'polars', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_vllm_gets_the_scheduler_that_it_needs(vllm, monkeypatch):
    from types import SimpleNamespace

    from sagellm_lifetime.vllm import live

    made = []
    for name in ("LiveScheduler", "LiveAsyncScheduler"):
        monkeypatch.setattr(live, name, lambda name=name, **options: made.append((name, options)))
    for is_async in (False, True):
        scheduler_config = SimpleNamespace(async_scheduling=is_async)
        live.scheduler(SimpleNamespace(scheduler_config=scheduler_config), block_size=16)
    assert [name for name, _ in made] == ["LiveScheduler", "LiveAsyncScheduler"]
    assert made[0][1]["block_size"] == 16


def test_a_fleet_is_named_by_its_store(start, model, tmp_path):
    folder = ("--lifetime-fleet", str(tmp_path / "fleet"))
    assert "needs --enable-online-learning" in start(model, ON, *folder)
    line = start(model, ON, "--enable-online-learning", *folder)
    assert settings_of(line)["fleet"] == str(tmp_path / "fleet")
    wrong = start(model, ON, "--enable-online-learning", "--lifetime-fleet", "http://cache")
    assert "'http' is no store of a fleet" in wrong
    shown = launch.shown(["serve", '{"lifetime": {"fleet": "redis://me:hush@cache:6379/0"}}'])
    assert "hush" not in shown
    assert "redis://***@cache:6379/0" in shown


def test_the_client_of_a_request_is_taken_from_its_key(start, model, monkeypatch):
    source = ("--lifetime-client-from", "api-key")
    line = start(model, ON, *source, "--", "--api-key", "hush")
    middlewares = [line[i + 1] for i, word in enumerate(line) if word == "--middleware"]
    assert middlewares == [launch.MIDDLEWARE, launch.CLIENTS]
    assert settings_of(line)["client_from"] == "api-key"
    module, _, name = launch.CLIENTS.rpartition(".")
    assert isinstance(getattr(import_module(module), name), type)
    assert launch.CLIENTS not in start(model, ON)
    assert "client_from must be api-key, user or header:NAME" in start(
        model, ON, "--lifetime-client-from", "ip"
    )
    assert "needs --enable-lifetime-prediction" in start(model, *source)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    settings = LiveSettings(client_from="api-key")
    assert launch.remarks(settings, ["--api-key", "hush"]) == []
    assert "checks no key" in launch.remarks(settings, [])[0]
    assert launch.remarks(LiveSettings(client_from="user"), []) == []
    assert launch.remarks(None, []) == []
