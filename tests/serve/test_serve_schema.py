"""The strict check of a whole Serve configuration."""

import copy
from pathlib import Path

import pytest
import yaml

from mpt_serve.configuration.problems import ConfigurationError
from mpt_serve.configuration.serve_schema import check_file, check_serve_config

ROOT = Path(__file__).parents[2]
GOOD = {
    "proxy_location": "HeadOnly",
    "http_options": {"host": "127.0.0.1", "port": 8000, "request_timeout_s": 700},
    "grpc_options": {"port": 9000},
    "logging_config": {"log_level": "INFO"},
    "controller_options": {"runtime_env": {"env_vars": {"A": "b"}}},
    "applications": [
        {
            "name": "mpt",
            "route_prefix": "/",
            "import_path": "mpt_serve.app:build",
            "runtime_env": {"env_vars": {"A": "b"}},
            "args": {"model": "embedded", "engine": {"max_num_seqs": 8}},
            "deployments": [
                {"name": "Ingress", "max_ongoing_requests": 1000},
                {
                    "name": "Generator",
                    "autoscaling_config": {"min_replicas": 1, "max_replicas": 2, "policy": {"policy_kwargs": {"x": 1}}},
                    "ray_actor_options": {"num_gpus": 1, "resources": {"anything": 1}, "runtime_env": {"pip": []}},
                    "request_router_config": {"max_backoff_s": 0.1},
                    "backpressure_config": {"status_code": 429},
                },
            ],
        }
    ],
}
PLACES = {
    (): ("proxy_locaton", "proxy_location"),
    ("http_options",): ("prot", "port"),
    ("grpc_options",): ("prt", "port"),
    ("logging_config",): ("log_levl", "log_level"),
    ("controller_options",): ("runtimeenv", "runtime_env"),
    ("applications", 0): ("import_pth", "import_path"),
    ("applications", 0, "runtime_env"): ("env_var", "env_vars"),
    ("applications", 0, "args"): ("max_modle_len", "max_model_len"),
    ("applications", 0, "args", "engine"): ("block_sise", "block_size"),
    ("applications", 0, "deployments", 1): ("num_replica", "num_replicas"),
    ("applications", 0, "deployments", 1, "autoscaling_config"): ("min_replica", "min_replicas"),
    ("applications", 0, "deployments", 1, "autoscaling_config", "policy"): ("policy_kwarg", "policy_kwargs"),
    ("applications", 0, "deployments", 1, "ray_actor_options"): ("num_gpu", "num_gpus"),
    ("applications", 0, "deployments", 1, "ray_actor_options", "runtime_env"): ("piip", "pip"),
    ("applications", 0, "deployments", 1, "request_router_config"): ("max_backof_s", "max_backoff_s"),
    ("applications", 0, "deployments", 1, "backpressure_config"): ("status_cod", "status_code"),
}


def changed(path: tuple, key: object, value: object) -> dict:
    config = copy.deepcopy(GOOD)
    part = config
    for step in path:
        part = part[step]
    part[key] = value
    return config


def test_the_shipped_file_and_a_full_one_are_good() -> None:
    check_file(str(ROOT / "serve_config.yaml"))
    assert check_serve_config(GOOD) == []


@pytest.mark.parametrize("path", PLACES, ids=lambda path: ".".join(map(str, path)) or "top")
def test_a_typo_at_any_depth_is_reported_with_place_and_nearest_name(path: tuple) -> None:
    typo, right = PLACES[path]
    problems = check_serve_config(changed(path, typo, 1))
    assert [(problem.path, problem.message) for problem in problems] == [
        (path, f"unknown setting '{typo}'; did you mean '{right}'?")
    ]


def test_an_unknown_deployment_is_reported_with_the_nearest_name() -> None:
    (problem,) = check_serve_config(changed(("applications", 0, "deployments", 1), "name", "Generater"))
    assert str(problem) == (
        "applications[0].deployments[1].name: unknown deployment 'Generater'; did you mean 'Generator'?"
    )


@pytest.mark.parametrize(
    ("path", "key", "value", "message"),
    [
        (("http_options",), "port", "no", "http_options.port must be an integer; got 'no' (a string)"),
        (("applications", 0, "deployments", 0), "num_replicas", 0, "num_replicas must be above 0"),
        (
            ("applications", 0, "deployments", 1, "autoscaling_config"),
            "max_replicas",
            0,
            "autoscaling_config.max_replicas must be above 0",
        ),
        (
            ("applications", 0, "deployments", 1, "autoscaling_config"),
            "min_replicas",
            0,
            "autoscaling_config.min_replicas must be at least 1; got 0, which leaves no Generator",
        ),
        (("applications", 0), "host", "x", 'Host "x" is set in the config for application `mpt`'),
        (("applications", 0), "args", [], "args must be"),
        (
            ("applications", 0),
            "import_path",
            "mpt_serve.app:app",
            "import_path must be 'mpt_serve.app:build' when the application has args; got 'mpt_serve.app:app'",
        ),
        ((), "applications", None, "applications must be"),
        (("applications",), 0, "mpt", "applications[0] must be a mapping"),
    ],
)
def test_wrong_values_are_reported_too(path: tuple, key: object, value: object, message: str) -> None:
    assert message in "\n".join(map(str, check_serve_config(changed(path, key, value))))


def test_serves_deadline_must_not_come_before_ours() -> None:
    (problem,) = check_serve_config(changed(("http_options",), "request_timeout_s", 600))
    assert problem.path == ("http_options", "request_timeout_s")
    assert "limits.request_timeout_s (600.0 s)" in problem.message


def test_serves_deadline_may_be_written_as_serve_reads_it() -> None:
    assert check_serve_config(changed(("http_options",), "request_timeout_s", "700")) == []
    assert len(check_serve_config(changed(("http_options",), "request_timeout_s", "5"))) == 1


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("max_ongoing_requests", 256, "must be above the application's limits.max_waiting_requests (256); got 256"),
        ("max_queued_requests", 5, "refuse requests in plain text"),
    ],
)
def test_serve_must_not_refuse_before_we_do(key: str, value: int, message: str) -> None:
    ingress = ("applications", 0, "deployments", 0)
    (problem,) = check_serve_config(changed(ingress, key, value))
    assert problem.path == (*ingress, key)
    assert message in problem.message
    assert check_serve_config(changed(("applications", 0, "deployments", 1), key, value)) == []


def test_other_applications_are_checked_in_serves_keys_only() -> None:
    other = {
        "name": "other",
        "route_prefix": "/x",
        "import_path": "a:b",
        "args": {"x": 1},
        "deployments": [{"name": "Y"}],
    }
    config = copy.deepcopy(GOOD)
    config["applications"].append(other)
    assert check_serve_config(config) == []


def test_mistakes_are_reported_by_line(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(
        "# a comment\nhttp_options:\n  prot: 1\napplications:\n"
        "  - import_path: mpt_serve.app:build\n    args:\n      model: x\n      dtyp: auto\n"
    )
    with pytest.raises(ConfigurationError) as error:
        check_file(str(file))
    assert str(error.value) == (
        f"{file}: 2 errors\n"
        "  line 3: http_options: unknown setting 'prot'; did you mean 'port'?\n"
        "  line 8: applications[0].args: unknown setting 'dtyp'; did you mean 'dtype'?"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("http_options:\n  port: 1\n  port: 2\n", "line 1: http_options: 'port' occurs twice, in lines 2 and 3"),
        ("[1, 2]", "must be a mapping at the top; got a list"),
        ("", "must be a mapping at the top; got null"),
        ("a: [", "is not YAML"),
        ("a: \0", "is not YAML"),
        ("a: &a\n  b: *a\n", "has an alias that contains itself"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=r"serve\.yaml") as error:
        check_file(str(file))
    assert message in str(error.value)


def test_a_model_folder_must_be_here_only_where_it_is_to_run_here(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("applications:\n  - import_path: mpt_serve.app:build\n    args: { model: /no/such/folder }\n")
    check_file(str(file))
    with pytest.raises(ConfigurationError, match=r"line 3: applications\[0\]\.args\.model: there is no folder"):
        check_file(str(file), here=True)


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no such file; `mpt-serve docs configuration"):
        check_file(str(tmp_path / "none.yaml"))


def test_checking_leaves_the_configuration_alone() -> None:
    config = changed(("applications", 0, "deployments", 0), "gang_scheduling_config", {"gang_size": 1})
    before = yaml.safe_dump(config)
    check_serve_config(config)
    assert yaml.safe_dump(config) == before


GENERATOR = ("applications", 0, "deployments", 1)


@pytest.mark.parametrize(
    ("path", "key", "value", "message"),
    [
        (
            ("applications", 0, "runtime_env"),
            "env_vars",
            {"OMP_NUM_THREADS": 1},
            "runtime_env.env_vars.OMP_NUM_THREADS must be a string, in quotes; got 1 (an integer)",
        ),
        (
            (*GENERATOR, "ray_actor_options", "runtime_env"),
            "env_vars",
            {"A": True},
            "ray_actor_options.runtime_env.env_vars.A must be a string, in quotes; got true",
        ),
        (
            ("applications", 0, "runtime_env"),
            "env_vars",
            ["A=1"],
            "runtime_env.env_vars must be a mapping; got a list",
        ),
        (GENERATOR, "user_config", {"x": 1}, "deployments[1].user_config must not be set; no deployment of mpt_serve"),
        (
            GENERATOR,
            "name",
            "Ingress",
            "deployments[1].name: the deployment 'Ingress' is configured twice, also in deployments[0]",
        ),
        (GENERATOR, "placement_group_strategy", "PACK", "deployments[1].placement_group_strategy: Serve refuses it"),
        (GENERATOR, "placement_group_bundles", [{"CPU": 0}], "deployments[1]: Serve refuses it: Bundles"),
        (GENERATOR, "max_replicas_per_node", 1000, "max_replicas_per_node: Serve refuses it"),
        ((*GENERATOR, "ray_actor_options"), "num_gpus", -1, "ray_actor_options"),
        (GENERATOR, "max_surge_percent", 101, "max_surge_percent must be at most 100; got 101"),
    ],
)
def test_what_serve_would_refuse_only_when_it_deploys(path: tuple, key: str, value: object, message: str) -> None:
    """By then it has stopped to look after the running application."""
    assert message in "\n".join(map(str, check_serve_config(changed(path, key, value))))
