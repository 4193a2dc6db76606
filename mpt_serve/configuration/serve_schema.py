"""Strict validation of serve_config.yaml: our settings and Serve's own keys.

Serve ignores unknown keys, so that old releases can read new files; a typo in `num_replicas` then silently means 1.
The names and types come from Serve's own schema, so they follow the installed Ray.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ray.runtime_env import RuntimeEnv
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.schema import ServeDeploySchema

from mpt_serve.configuration.config_file import ConfigFile
from mpt_serve.configuration.model_folder import folder_problem
from mpt_serve.configuration.problems import Path, Problem, closest, schema_problems, value_text
from mpt_serve.configuration.settings import Settings

__all__ = ["DEPLOYMENTS", "IMPORT_PATH", "check_file", "check_serve_config"]

IMPORT_PATH = "mpt_serve.app:build"
DEFAULTS_IMPORT_PATH = "mpt_serve.app:app"  # what `serve build` writes
DEPLOYMENTS = ("Ingress", "Tokenizer", "Generator")


def check_file(path: str, here: bool = False) -> None:
    """Validate a Serve configuration file. Raises ConfigurationError with file, line, setting and nearest valid name.

    here: the file is for this machine, so a model folder must exist on this machine.
    """
    file = ConfigFile(path)
    problems = check_serve_config(file.data) or (list(_model_problems(file.data)) if here else [])
    if problems:
        raise file.error(problems)


def check_serve_config(config: Mapping[str, Any]) -> list[Problem]:
    """Return every mistake in a parsed Serve configuration; of other applications, only those in Serve's keys."""
    problems = schema_problems(ServeDeploySchema, config)
    for index, application in enumerate(_mappings(config.get("applications"))):
        path: Path = ("applications", index)
        problems += _runtime_env_problems(application, path)
        for number, deployment in enumerate(_mappings(application.get("deployments"))):
            problems += _deployment_problems(deployment, (*path, "deployments", number))
        if application.get("import_path") in (IMPORT_PATH, DEFAULTS_IMPORT_PATH):
            problems += _application_problems(application, path)
    return list(dict.fromkeys(problems)) or [*_timeout_problems(config), *_queue_problems(config)]


def _application_problems(application: Mapping[str, Any], path: Path) -> Iterator[Problem]:
    args = application.get("args") or {}
    if args and application["import_path"] != IMPORT_PATH:
        yield Problem(
            (*path, "import_path"),
            f"must be '{IMPORT_PATH}' when the application has args; got {value_text(application['import_path'])}",
        )
    for problem in schema_problems(Settings, args):
        yield Problem((*path, "args", *problem.path), problem.message, problem.key)
    for number, deployment in enumerate(_mappings(application.get("deployments"))):
        name = deployment.get("name")
        if isinstance(name, str) and name not in DEPLOYMENTS:
            place = (*path, "deployments", number, "name")
            yield Problem(place, f"unknown deployment '{name}'; {closest(name, DEPLOYMENTS)}")


def _deployment_problems(deployment: Mapping[str, Any], path: Path) -> Iterator[Problem]:
    # Serve's schema also accepts any mapping for these two, so wrong values in them pass it.
    for name, model in (("autoscaling_config", AutoscalingConfig), ("request_router_config", RequestRouterConfig)):
        for problem in schema_problems(model, deployment.get(name) or {}):
            yield Problem((*path, name, *problem.path), problem.message, problem.key)
    scaling = deployment.get("autoscaling_config")
    if deployment.get("name") == "Generator" and isinstance(scaling, Mapping) and scaling.get("min_replicas") == 0:
        yield Problem(
            (*path, "autoscaling_config", "min_replicas"),
            "must be at least 1; got 0, which leaves no Generator to serve the request that would start one",
        )
    options = deployment.get("ray_actor_options")
    if isinstance(options, Mapping):
        yield from _runtime_env_problems(options, (*path, "ray_actor_options"))


def _runtime_env_problems(holder: Mapping[str, Any], path: Path) -> Iterator[Problem]:
    runtime_env = holder.get("runtime_env")
    for key in runtime_env if isinstance(runtime_env, Mapping) else ():
        if key not in RuntimeEnv.known_fields:
            nearest = closest(str(key), RuntimeEnv.known_fields)
            yield Problem((*path, "runtime_env"), f"unknown setting '{key}'; {nearest}", str(key))


def _timeout_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Find deadlines of Serve that expire before ours: Serve responds in plain text instead of the API's errors."""
    serve_timeout = (config.get("http_options") or {}).get("request_timeout_s")
    if serve_timeout is None:
        return
    for index, _, settings in _own_applications(config):
        ours = settings.limits.request_timeout_s
        if float(serve_timeout) <= ours:
            yield Problem(
                ("http_options", "request_timeout_s"),
                f"must be above the application's limits.request_timeout_s ({ours} s); got {serve_timeout} s, with"
                " which clients would get Serve's plain-text error. Raise it, or lower"
                f" applications[{index}].args.limits.request_timeout_s",
            )


def _queue_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Find queues of Serve that fill before ours: Serve rejects in plain text instead of the API's errors."""
    for index, application, settings in _own_applications(config):
        ours = settings.limits.max_waiting_requests
        for number, deployment in enumerate(_mappings(application.get("deployments"))):
            if deployment["name"] != "Ingress":
                continue
            path: Path = ("applications", index, "deployments", number)
            ongoing, queued = deployment.get("max_ongoing_requests"), deployment.get("max_queued_requests")
            if isinstance(ongoing, int) and ongoing <= ours:
                yield Problem(
                    (*path, "max_ongoing_requests"),
                    f"must be above the application's limits.max_waiting_requests ({ours}); got {ongoing}, with which"
                    " clients would get Serve's plain-text error. Remove it, or lower that limit",
                )
            if queued not in (None, -1):
                yield Problem(
                    (*path, "max_queued_requests"),
                    f"must not be set; got {queued}, with which Serve would refuse requests in plain text. Remove it:"
                    " the application's limits.max_waiting_requests refuses them with the API's own errors",
                )


def _model_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    for index, _, settings in _own_applications(config):
        problem = folder_problem(settings.model)
        if problem is not None:
            yield Problem(("applications", index, "args", "model"), problem)


def _own_applications(config: Mapping[str, Any]) -> Iterator[tuple[int, Mapping[str, Any], Settings]]:
    for index, application in enumerate(config["applications"]):
        if application["import_path"] == IMPORT_PATH:
            yield index, application, Settings.from_mapping(application.get("args") or {})


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []
