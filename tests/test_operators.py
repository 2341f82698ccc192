"""Dashboard, alert rules, container file and Kubernetes page fit what there is."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DASHBOARD = ROOT / "dashboards" / "lifetime.json"
ALERTS = ROOT / "dashboards" / "alerts.yml"
KUBERNETES = ROOT / "deploy" / "kubernetes.yaml"
CONTAINER = ROOT / "deploy" / "Dockerfile"
METRIC = re.compile(r"(?:lifetime_predictor_|vllm:)\w+")
SUFFIXES = ("_total", "_bucket", "_sum", "_count", "_info")


def program(name):
    """Return a module of scripts/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def dashboard():
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def panels(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


@pytest.fixture(scope="module")
def rules():
    (group,) = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return group["rules"]


@pytest.fixture(scope="module")
def expressions(panels, rules):
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    return [*asked, *(rule["expr"] for rule in rules)]


# -- metrics ---------------------------------------------------------------------------------


def test_every_metric_of_ours_is_there(expressions, tmp_path):
    pytest.importorskip("prometheus_client")
    from sagellm_lifetime.vllm.observability.metrics import LifetimeCollector

    (tmp_path / "engine-0").mkdir()
    kinds = {family.name: family.type for family in LifetimeCollector(tmp_path).collect()}
    ends = {"counter": "_total", "info": "_info"}
    there = {name + ends.get(kind, "") for name, kind in kinds.items()}
    used = {name for expr in expressions for name in METRIC.findall(expr)}
    assert {name for name in used if name.startswith("lifetime_")} <= there


def test_a_fleet_is_watched_whole(expressions, tmp_path):
    pytest.importorskip("prometheus_client")
    from sagellm_lifetime.vllm.observability.metrics import LifetimeCollector

    (tmp_path / "engine-0").mkdir()
    there = {family.name for family in LifetimeCollector(tmp_path).collect()}
    fleet = {name for name in there if "_fleet_" in name}
    asked = " ".join(expressions)
    assert len(fleet) == 6
    assert all(re.search(rf"{name}\w*\{{", asked) for name in fleet)


def test_every_metric_of_vllms_is_there_with_the_same_labels(expressions, vllm):
    from vllm.v1.metrics import loggers

    source = inspect.getsource(loggers)
    used = {n for expr in expressions for n in METRIC.findall(expr) if n.startswith("vllm:")}
    assert len(used) >= 10
    for name in used:
        stem = name
        for suffix in SUFFIXES:
            stem = stem.removesuffix(suffix)
        assert f'"{stem}"' in source or f'"{stem}_total"' in source, name
    assert 'labelnames = ["model_name", "engine"]' in source
    assert "model_config.served_model_name" in source  # our label, too


def test_counters_are_asked_for_their_rise(expressions):
    for expr in expressions:
        for name in re.findall(r"\w*(?:_total|_bucket)\b", expr):
            assert re.search(rf"(?:rate|increase)\((?:vllm:)?{name}[{{\[]", expr), (name, expr)


# -- the dashboard ----------------------------------------------------------------------------


def test_the_dashboard_is_what_its_program_makes():
    assert DASHBOARD.read_text(encoding="utf-8") == program("make_dashboard").text()


def test_every_query_follows_the_variables(dashboard, panels):
    names = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert names == {"datasource", "namespace", "instance", "model"}
    for panel in panels:
        for target in panel["targets"]:
            selectors = re.findall(r"\{[^}]*\}", target["expr"])
            assert len(selectors) == len(METRIC.findall(target["expr"]))
            for selector in selectors:
                assert (
                    'namespace=~"$namespace",instance=~"$instance",model_name=~"$model"' in selector
                )
    titles = [panel["title"] for panel in panels]
    assert len(titles) == len(set(titles))


def test_panels_do_not_overlap(dashboard):
    taken = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"])
                 for y in range(at["y"], at["y"] + at["h"])}  # fmt: skip
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


def lost(ours, theirs, path=""):
    """Return the paths of what is in ``ours`` and not the same in ``theirs``."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [where for key, value in ours.items()
                for where in (lost(value, theirs[key], f"{path}/{key}")
                              if key in theirs else [f"{path}/{key}"])]  # fmt: skip
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [where for i, (a, b) in pairs for where in lost(a, b, f"{path}/{i}")]
    return [] if ours == theirs else [path]


def test_the_dashboard_is_of_grafanas_schema(dashboard):
    """Grafana's published types read all of it and write the same again: no unknown field."""
    reason = "needs Grafana's types: pip install grafana-foundation-sdk"
    sdk = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason=reason)
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins

    register_default_plugins()

    def written(data):
        return json.loads(JSONEncoder(sort_keys=True).encode(sdk.Dashboard.from_json(data)))

    assert lost(dashboard, written(dashboard)) == []
    wrong = json.loads(json.dumps(dashboard))
    wrong["panels"][1]["fieldConfig"]["defaults"]["units"] = "s"
    wrong["panels"][1]["targets"][0]["query"] = "up"
    assert lost(wrong, written(wrong)) == [
        "/panels/1/fieldConfig/defaults/units",
        "/panels/1/targets/0/query",
    ]


# -- alert rules -----------------------------------------------------------------------------

BAD = {
    "LifetimeCircuitBreakerOpen": {'lifetime_predictor_breaker_state{state="open"%}': "1x60"},
    "LifetimeFaultsRepeat": {'lifetime_predictor_faults_total{kind="slow"%}': "0+0.2x60"},
    "LifetimeCostHigh": {
        "lifetime_predictor_overhead_seconds_total{%}": "0+3x60",
        "lifetime_predictor_step_seconds_total{%}": "0+60x60",
    },
    "LifetimeNotCalibrated": {
        "lifetime_predictor_within_10_percent_total{%}": "0+2x60",
        "lifetime_predictor_confidence_total{%}": "0+8x60",
        "lifetime_predictor_scored_total{%}": "0+20x60",
    },
    "LifetimeNotPredicting": {
        "lifetime_predictor_unpredicted_total{%}": "0+10x60",
        'lifetime_predictor_mode{state="off"%}': "0x60",
    },
    "LifetimeLearnerDown": {"lifetime_predictor_learner_running{%}": "0x60"},
    "LifetimeLearnerBehind": {
        "lifetime_predictor_lessons_dropped_total{%}": "0+5x60",
        "lifetime_predictor_lessons_taken_total{%}": "0+10x60",
    },
    "LifetimeRecordLost": {"lifetime_predictor_record_lost_total{%}": "0+1x60"},
    "LifetimeStatisticsOld": {"lifetime_predictor_stats_age_seconds{%}": "0+60x60"},
    "LifetimeLongWaits": {
        'vllm:request_queue_time_seconds_bucket{le="60"%}': "0+1x60",
        'vllm:request_queue_time_seconds_bucket{le="120"%}': "0+10x60",
        'vllm:request_queue_time_seconds_bucket{le="+Inf"%}': "0+10x60",
        'lifetime_predictor_mode{state="act"%}': "1x60",
    },
}
"""For every rule the series under which it fires."""
GOOD = {
    "LifetimeCircuitBreakerOpen": {'lifetime_predictor_breaker_state{state="open"%}': "0x60"},
    "LifetimeFaultsRepeat": {'lifetime_predictor_faults_total{kind="slow"%}': "0x30 1x30"},
    "LifetimeCostHigh": {
        "lifetime_predictor_overhead_seconds_total{%}": "0+1x60",
        "lifetime_predictor_step_seconds_total{%}": "0+60x60",
    },
    "LifetimeNotCalibrated": {
        "lifetime_predictor_within_10_percent_total{%}": "0+7x60",
        "lifetime_predictor_confidence_total{%}": "0+8x60",
        "lifetime_predictor_scored_total{%}": "0+20x60",
    },
    "LifetimeNotPredicting": {
        "lifetime_predictor_unpredicted_total{%}": "0+10x60",
        'lifetime_predictor_mode{state="off"%}': "1x60",
    },
    "LifetimeLearnerDown": {"lifetime_predictor_learner_running{%}": "1x60"},
    "LifetimeLearnerBehind": {
        "lifetime_predictor_lessons_dropped_total{%}": "0x60",
        "lifetime_predictor_lessons_taken_total{%}": "0x60",
    },
    "LifetimeRecordLost": {"lifetime_predictor_record_lost_total{%}": "0x60"},
    "LifetimeStatisticsOld": {"lifetime_predictor_stats_age_seconds{%}": "1x60"},
    "LifetimeLongWaits": {
        'vllm:request_queue_time_seconds_bucket{le="60"%}': "0+1x60",
        'vllm:request_queue_time_seconds_bucket{le="120"%}': "0+10x60",
        'vllm:request_queue_time_seconds_bucket{le="+Inf"%}': "0+10x60",
        'lifetime_predictor_mode{state="act"%}': "0x60",
    },
}
"""And the series under which it does not."""


def series(values):
    where = 'engine="0",instance="a:8000",model_name="m"'
    return [
        {
            "series": name.replace("%", where if "{%" in name else f",{where}"),
            "values": said,
        }
        for name, said in values.items()
    ]


def test_every_alert_says_what_to_do(rules):
    assert {rule["alert"] for rule in rules} == BAD.keys() == GOOD.keys()
    for rule in rules:
        assert rule["labels"]["severity"] in {"info", "warning"}
        assert rule["annotations"].keys() == {"summary", "description"}


def test_alerts_fire_where_they_should_and_nowhere_else(rules, tmp_path):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool: apt-get install prometheus")
    firing = 'count(ALERTS{{alertname="{}",alertstate="firing"}}) or vector(0)'
    tests = [
        {
            "interval": "1m",
            "input_series": series(values),
            "promql_expr_test": [
                {
                    "expr": firing.format(alert),
                    "eval_time": "60m",
                    "exp_samples": [{"labels": "{}", "value": value}],
                }
            ],
        }
        for cases, value in ((BAD, 1), (GOOD, 0))
        for alert, values in cases.items()
    ]
    file = tmp_path / "cases.yml"
    document = {"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests}
    file.write_text(yaml.safe_dump(document))
    done = subprocess.run(
        [promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


# -- container and Kubernetes ------------------------------------------------------------------


@pytest.fixture(scope="module")
def objects():
    """Return the objects of the Kubernetes page by kind and name."""
    documents = yaml.safe_load_all(KUBERNETES.read_text(encoding="utf-8"))
    return {(each["kind"], each["metadata"]["name"]): each for each in documents}


@pytest.fixture
def pod(objects):
    return objects["StatefulSet", "vllm"]["spec"]["template"]["spec"]


def test_the_arguments_of_the_pods_start_an_engine(pod, monkeypatch, tmp_path):
    """Our command reads them, and gives vLLM the rest."""
    from sagellm_lifetime.cli.engine import app as engine
    from sagellm_lifetime.cli.main import main
    from sagellm_lifetime.vllm.launch import server

    assert engine is not None
    started = []
    monkeypatch.setattr(server, "check", lambda *_: None)
    monkeypatch.setattr("sagellm_lifetime.cli.engine.check_folder", lambda _: None)
    monkeypatch.setattr("os.execv", lambda _, line: started.append(line))
    (container,) = pod["containers"]
    monkeypatch.setattr("sys.argv", ["x", "engine", "start", *container["args"]])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    (line,) = started
    settings = json.loads(line[line.index("--additional-config") + 1])["lifetime"]
    assert settings == {"mode": "shadow", "learn": True, "state": "/state"}
    assert "--shutdown-timeout=60" in line
    assert line[3] == "Qwen/Qwen2.5-7B-Instruct"


def test_a_pod_has_time_to_end(pod):
    (container,) = pod["containers"]
    (before,) = (container["lifecycle"]["preStop"]["exec"]["command"][1],)
    options = dict(arg.split("=") for arg in container["args"] if "=" in arg)
    needed = int(before) + int(options["--shutdown-timeout"])
    assert pod["terminationGracePeriodSeconds"] >= needed + 15


def test_every_replica_has_a_state_of_its_own(objects, pod):
    stateful = objects["StatefulSet", "vllm"]["spec"]
    (container,) = pod["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    claims = {claim["metadata"]["name"] for claim in stateful["volumeClaimTemplates"]}
    assert mounts.keys() == claims | {volume["name"] for volume in pod["volumes"]}
    assert f"--state={mounts['state']}" in container["args"]
    assert stateful["replicas"] > 1
    assert stateful["updateStrategy"]["type"] == "RollingUpdate"
    assert ("Service", stateful["serviceName"]) in objects
    image = CONTAINER.read_text(encoding="utf-8")
    for path in ("state", "models"):
        assert mounts[path] in image


def test_everything_selects_the_pods(objects):
    stateful = objects["StatefulSet", "vllm"]["spec"]
    labels = stateful["template"]["metadata"]["labels"]
    for (kind, _), each in objects.items():
        selector = each["spec"]["selector"]
        chosen = selector if kind == "Service" else selector["matchLabels"]
        assert chosen.items() <= labels.items()
    ports = {port["name"] for port in stateful["template"]["spec"]["containers"][0]["ports"]}
    for (kind, _), each in objects.items():
        if kind == "Service":
            assert {port["targetPort"] for port in each["spec"]["ports"]} <= ports


def test_the_container_is_built_from_what_a_build_needs():
    """What the file copies is what is installed: the build context leaves nothing out."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert {"pyproject.toml", "README.md", "LICENSE", "src"} == kept
    text = CONTAINER.read_text(encoding="utf-8")
    entry = json.loads(re.search(r"^ENTRYPOINT (.*)$", text, re.M)[1])
    assert entry == ["sagellm-lifetime", "engine", "start"]  # no shell between it and a SIGTERM
