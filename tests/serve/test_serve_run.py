"""The ways a user starts the product: `serve run`, with a typo too, and `serve build`."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import openai
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema
from server import ROOT, ServerProcess, environment, free_port, serve_config

from mpt_serve.configuration.serve_schema import check_serve_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.exhaustive  # test_serve_schema.py has the messages; test_redeploy.py starts a program that ends
def test_a_plain_serve_run_ends_with_the_nearest_name_of_a_typo(tmp_path: Path) -> None:
    config = serve_config({"model": "embedded"}, free_port(), proxy_locaton="HeadOnly")
    config["applications"][0]["deployments"][2]["num_replica"] = 2
    with ServerProcess.of(config, tmp_path) as server:
        assert server.wait_end() != 0
        output = server.output()
    assert "unknown setting 'proxy_locaton'; did you mean 'proxy_location'?" in output
    assert "applications[0].deployments[2]: unknown setting 'num_replica'; did you mean 'num_replicas'?" in output
    assert "Traceback" not in output.split("serve_config.yaml: 2 errors")[0]


def test_the_shipped_configuration_serves_the_embedded_model(tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config["http_options"]["port"] = free_port()
    config["applications"][0]["args"]["engine"] = {"pre_compile": False}  # minutes, on the first start of a machine
    with ServerProcess.of(config, tmp_path, guarded=False) as server:
        assert _plain_text_until_ready(server) <= {404, 503}
        _check_what_serves_proxy_answers_itself(server.url)
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=200) as client:
            model = client.models.list().data[0].id
            messages = [{"role": "user", "content": "Hello!"}]
            reply = client.chat.completions.create(model=model, messages=messages, max_tokens=32, temperature=0)
            streamed = client.chat.completions.create(
                model=model, messages=messages, max_tokens=32, temperature=0, stream=True
            )
            text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
        _check_the_outputs_of_the_documentation(server.url)
    assert model == "embedded"
    assert reply.choices[0].message.content == text
    assert text.strip()


def test_what_serve_build_writes_is_a_configuration_without_mistakes(tmp_path: Path) -> None:
    command = [
        str(Path(sys.executable).with_name("serve")),
        "build",
        "mpt_serve.app:app",
        "-o",
        str(tmp_path / "b.yaml"),
    ]
    subprocess.run(command, check=True, cwd=ROOT, env=environment(tmp_path), capture_output=True)
    config = yaml.safe_load((tmp_path / "b.yaml").read_text())
    (application,) = ServeDeploySchema.model_validate(config).applications
    assert {deployment.name for deployment in application.deployments} == {"Ingress", "Tokenizer", "Generator"}
    assert check_serve_config(json.loads(json.dumps(config))) == []


def _check_what_serves_proxy_answers_itself(url: str) -> None:
    """Serve's own answers to headers that it cannot decode, without our middleware in its proxy (docs/api.md)."""
    for header in (b"x-request-id", b"x-session-id", b"serve_multiplexed_model_id"):
        with httpx.Client(base_url=url) as http:
            response = http.get("/health", headers=[(header, b"\xff")])
        assert (response.status_code, response.text) == (500, "Internal Server Error")
        assert response.headers["content-type"].startswith("text/plain")
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}


def _check_the_outputs_of_the_documentation(url: str) -> None:
    """Send each request of docs/uses.md."""
    page = (ROOT / "docs" / "uses.md").read_text(encoding="utf-8")
    shown = re.findall(
        r"```bash\ncurl http://[^/]+(\S+) .*? -d '(.*?)'\n```\n+(`{3,})text\n(.*?)\n\3\n", page, re.DOTALL
    )
    assert len(shown) == page.count("curl ") > 0
    for path, body, _, output in shown:
        response = httpx.post(f"{url}{path}", json=json.loads(body), timeout=200).json()
        assert response["choices"][0]["message"]["content"].strip() == output


def _plain_text_until_ready(server: ServerProcess) -> set[int]:
    """Wait for the server; return the statuses of Serve's own answers until an Ingress replica ran (docs/api.md)."""
    statuses = set()
    while True:
        try:
            response = httpx.get(f"{server.url}/health", timeout=60)
        except httpx.TransportError:  # the proxy does not listen yet
            assert server.process.poll() is None, server.output()
            time.sleep(0.1)
            continue
        if response.status_code == 200:
            break
        assert response.headers["content-type"].startswith("text/plain"), f"{response.status_code} {response.text}"
        statuses.add(response.status_code)
        time.sleep(0.1)
    server.wait_ready()
    return statuses
