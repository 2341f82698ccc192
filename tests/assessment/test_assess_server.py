"""What a server tells of its engine, and what is said where it does not."""

import http.server
import json
import shutil
import ssl
import subprocess
import threading
from contextlib import contextmanager

import pytest

from sagellm_lifetime.assessment.engine import Engine
from sagellm_lifetime.assessment.server import ask_server, read_metrics
from sagellm_lifetime.core.errors import LifetimeError

LINE = (
    'vllm:cache_config_info{{block_size="32",enable_prefix_caching="{caching}",engine="{engine}",'
    'kv_cache_dtype_skip_layers="[\\"a,b\\"]",{tokens}num_gpu_blocks="{blocks}"}} 1.0\n'
)
LIMITS = {"vllm_config": {"scheduler_config": {"max_num_seqs": 8, "max_num_batched_tokens": 2048}}}


def metrics(engines=1, blocks="1200", tokens="", caching=True):
    lines = [
        LINE.format(engine=i, blocks=blocks, tokens=tokens, caching=caching) for i in range(engines)
    ]
    return "# TYPE vllm:cache_config_info gauge\n" + "".join(lines)


@contextmanager
def serving(answers, context=None, key=None):
    """A server that answers these paths, to whoever has the key."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status = 200 if self.path in answers else 404
            if key is not None and self.headers["Authorization"] != f"Bearer {key}":
                status = 401
            self.send_response(status)
            self.end_headers()
            self.wfile.write(answers.get(self.path, "").encode() if status == 200 else b"no")

        def log_message(self, *_args):
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http{'s' if context else ''}://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def told(url, key=None):
    """Return the line of a refusal, without the address."""
    with pytest.raises(LifetimeError) as caught:
        ask_server(url, key)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(url)
    return line.removeprefix(f"{url}/metrics: ")


def test_memory_and_limits_of_a_server():
    answers = {
        "/metrics": metrics(caching=False),
        "/server_info?config_format=json": json.dumps(LIMITS),
        "/version": '{"version": "0.32.0"}',
    }
    with serving(answers) as url:
        for address in (url, f"{url}/", f"{url}/v1", f"{url}/metrics"):
            engine = Engine.of(url=address)
            assert (engine.kv_tokens, engine.block_size) == (38_400, 32)
            assert (engine.max_num_seqs, engine.max_num_batched_tokens) == (8, 2048)
        given = Engine.of(url=url, max_num_seqs=4)
    assert (given.max_num_seqs, given.max_num_batched_tokens) == (4, 2048)
    words = " ".join(engine.how)
    assert "(vLLM 0.32.0) tells" in words
    assert "At most 8 running sequences and 2,048 tokens a step, as the server tells" in (
        words.replace(", as the server tells and", " and")
    )
    assert "Its prefix cache is off" in words
    assert not engine.settings(prefix_caching=True).prefix_caching


def test_a_server_that_tells_no_limits():
    with serving({"/metrics": metrics()}) as url:
        engine = Engine.of(gpu="a100", url=url)
        assert (engine.max_num_seqs, engine.max_num_batched_tokens) == (256, 2048)
        assert any("so give --max-num-seqs" in line for line in engine.how)
        assert engine.settings(prefix_caching=True).prefix_caching


def test_blocks_of_all_cores_are_told_for_each():
    """vLLM adds up ``num_gpu_blocks``, and not ``kv_cache_size_tokens``."""
    assert read_metrics(metrics(2)).tokens == 600 * 32
    found = read_metrics(metrics(2, blocks="128", tokens='kv_cache_size_tokens="2048",'))
    assert (found.tokens, found.engines) == (2048, 2)


def test_the_number_of_tokens_counts_where_there_is_one():
    hybrid = metrics(tokens='kv_cache_size_tokens="99000",')
    assert read_metrics(hybrid).tokens == 99_000
    assert read_metrics(metrics(tokens='kv_cache_size_tokens="None",')).tokens == 38_400


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "no metrics of vLLM: another server"),
        ("<html>welcome</html>", "no metrics of vLLM"),
        ("sglang:num_running_reqs 0.0\n", "no metrics of vLLM"),
        ("vllm:num_requests_running 0.0\n", "no vllm:cache_config_info among the metrics"),
        (metrics(blocks="None"), "has no number of blocks"),
        (metrics(blocks="-3"), "has no number of blocks"),
    ],
)
def test_metrics_that_do_not_tell(text, line):
    with serving({"/metrics": text}) as url:
        found = told(url)
    assert line in found
    assert found.endswith("give --kv-tokens N instead")


def test_a_key():
    with serving({"/metrics": metrics()}, key="s3cret") as url:
        assert told(url) == "an API key is wanted (HTTP 401): set the variable VLLM_API_KEY"
        assert told(url, "wr0ng").startswith("this API key is refused (HTTP 401)")
        assert ask_server(url, "s3cret").tokens == 38_400


def test_no_server_there():
    with serving({}) as url:
        assert "(HTTP 404), so no vLLM server" in told(url)
    assert told(url).startswith("no engine answers there")
    for wrong in ("localhost:8000", "http://", "http://a:b", "ftp://a", "http://[::1", "file:///x"):
        with pytest.raises(LifetimeError, match="not the address of an engine"):
            ask_server(wrong)


def test_https(tmp_path, monkeypatch):
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, to make a certificate")
    files = ("-keyout", tmp_path / "key.pem", "-out", tmp_path / "certificate.pem")
    subject = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    line = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    subprocess.run([*line, *files, *subject], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    with serving({"/metrics": metrics()}, context) as url:
        assert told(url).startswith("its certificate is not trusted")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        assert ask_server(url).tokens == 38_400
    with serving({"/metrics": metrics()}) as url:
        secure = url.replace("http:", "https:")
        assert told(secure) == "no TLS is spoken there: use http://"
