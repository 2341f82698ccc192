"""vLLM's command line as we read it, against vLLM's own parser."""

import json

import pytest

from sagellm_lifetime.vllm.launch import server as launch
from sagellm_lifetime.vllm.launch.vllm_args import LaunchError, json_option, list_option, unfolded
from sagellm_lifetime.vllm.settings import KEY, LiveSettings

NAME = "--additional-config"


@pytest.fixture(scope="module")
def parse(vllm):
    """What vLLM's server makes of its command line."""
    from sagellm_lifetime.vllm.compat.torch_companions import ready_for_vllm

    ready_for_vllm()
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    return lambda *words: parser.parse_args(list(words))


@pytest.mark.parametrize(
    "words",
    [
        [NAME, '{"a": {"b": [1, 2]}, "c": "x=y"}'],
        [NAME + '={"a": "b=c"}'],
        ["--additional_config", "{}"],
        ["--additional-c", '{"a": null}'],
        [NAME + ".a.b", "0.2", NAME + ".a.c_d=true", "--additional_config.a.e", "text"],
        [NAME + ".a", '{"b": {"c": 1}}', NAME + ".a.b.d", "2"],
        [NAME + ".n", "4k", NAME + ".m=2K", NAME + ".o", "1.5M", NAME + ".p", "1.5K"],
        [NAME + ".l+", "a,b", NAME + ".l+=c"],
        [NAME + ".f", "1e-3", NAME + ".g", "-5", NAME + ".h", "NaN."],
        ["--seed", "1", NAME + ".a", "1", "--enforce-eager", "--host", "a.b"],
    ],
    ids=" ".join,
)
def test_a_json_option_is_read_as_vllm_reads_it(parse, words):
    rest, found = json_option(words, NAME)
    assert found == parse(*words).additional_config
    assert not any("additional" in word for word in rest)
    other, same = parse(*rest), parse(*words)
    other.additional_config = same.additional_config
    assert other == same


def test_several_are_put_together_where_vllm_keeps_the_last(parse):
    words = [NAME, '{"a": 1, "c": {"d": [1]}}', NAME + ".b", "2", NAME, '{"a": 3, "c": {"e": 4}}']
    assert parse(*words).additional_config == {"b": 2}
    assert json_option(words, NAME) == ([], {"a": 3, "b": 2, "c": {"d": [1], "e": 4}})


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([NAME], "needs a value"),
        ([NAME + ".a.b"], "needs a value"),
        ([NAME, "[1]"], "not a JSON object"),
        ([NAME, "{"], "not a JSON object"),
        ([NAME, "[" * 100_000], "not a JSON object"),
        ([NAME, '{"a": ' + "9" * 5000 + "}"], "not a JSON object"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_object_is_refused(words, told):
    with pytest.raises(LaunchError, match=told) as raised:
        json_option(words, NAME)
    assert len(str(raised.value)) < 300


def test_a_list_option_is_read_as_vllm_reads_it(parse):
    name = "--logits-processors"
    for words in (
        [name, "a:A", "b:B", "--seed", "1"],
        ["--seed", "1", name, "a:A"],
        ["--logits_processors=a:A", "--seed", "1"],
        [name, "a:A", "--seed", "1", name, "b:B", "c:C"],
        ["--seed", "1"],
    ):
        rest, found = list_option(words, name)
        assert found == (parse(*words).logits_processors or [])
        assert rest == ["--seed", "1"]


def test_a_config_file_is_read_as_vllm_reads_it(parse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(
        "seed: 3\nenforce-eager: true\nserved-model-name: [a, b]\nmiddleware: x.Y\n"
        "additional_config:\n  lifetime:\n    share: 0.5\n  other: [1]\n"
    )
    words = ["--config", "a.yaml", "--dtype", "float32"]
    both = parse(*words), parse(*[w for w in unfolded(words) if w not in words[:2]])
    assert both[0] == both[1]


def test_vllm_gets_what_everybody_said(parse, tmp_path, monkeypatch):
    """The whole line, through vLLM's own parser."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(
        "middleware: x.Y\nlogits-processors: [a:A, b:B]\nshutdown-timeout: 3\n"
        "additional-config:\n  lifetime:\n    share: 0.5\n    limit_s: 2\n  other: [1]\n"
    )
    words = ["--config", "a.yaml", "--middleware", "m.M", "--additional_config.lifetime.limit_s=3"]
    settings = LiveSettings(mode="act", learn=True, signals=True, state="/s")
    line = launch.command("m", settings, words)
    got = parse(*line[line.index("m") + 1 :])
    assert got.additional_config == {
        "other": [1],
        KEY: {**settings.json(), "share": 0.5, "limit_s": 3},
    }
    assert got.scheduler_cls == launch.SCHEDULER
    assert got.middleware == ["x.Y", launch.MIDDLEWARE, "m.M"]
    assert got.logits_processors == [launch.PROCESSOR, "a:A", "b:B"]
    assert got.shutdown_timeout == 3
    assert got.distributed_executor_backend == "uni"
    assert json.loads(line[-1]) == got.additional_config
