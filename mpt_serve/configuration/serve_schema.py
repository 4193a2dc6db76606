"""Strict validation of serve_config.yaml: our settings and Serve's own keys.

Serve ignores unknown keys, so that old releases can read new files; a typo in `num_replicas` then silently means 1.
The names and types come from Serve's own schema, so they follow the installed Ray.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from ray.runtime_env import RuntimeEnv
from ray.serve._private.config import ReplicaConfig
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.schema import ServeDeploySchema

from mpt_serve.configuration.config_file import ConfigFile
from mpt_serve.configuration.model_folder import folder_problem
from mpt_serve.configuration.problems import Path, Problem, closest, schema_problems, value_text
from mpt_serve.configuration.settings import Settings

__all__ = ["DEPLOYMENTS", "IMPORT_PATH", "check_file", "check_serve_config", "own_applications"]

IMPORT_PATH = "mpt_serve.app:build"
DEFAULTS_IMPORT_PATH = "mpt_serve.app:app"  # what `serve build` writes
DEPLOYMENTS = ("Ingress", "Tokenizer", "Generator")

# Ray checks these only when it starts a worker, and then the running application has lost its configuration.
_RUNTIME_ENV_TYPES: Mapping[str, tuple[type, ...]] = {
    "env_vars": (dict,),
    "working_dir": (str,),
    "py_modules": (list,),
    "excludes": (list,),
    "pip": (str, list, dict),
    "uv": (str, list, dict),
    "conda": (str, dict),
}
_KINDS: Mapping[type, str] = {dict: "a mapping", str: "a string", list: "a list"}
# Serve reads the options of a deployment with these only when it deploys.
_REPLICA_OPTIONS = (
    "ray_actor_options",
    "placement_group_bundles",
    "placement_group_strategy",
    "placement_group_bundle_label_selector",
    "max_replicas_per_node",
)


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
        problems += _repeated_deployments(application, path)
        for number, deployment in enumerate(_mappings(application.get("deployments"))):
            problems += _deployment_problems(deployment, (*path, "deployments", number))
        if application.get("import_path") in (IMPORT_PATH, DEFAULTS_IMPORT_PATH):
            problems += _application_problems(application, path)
    return list(dict.fromkeys(problems)) or [
        *_timeout_problems(config),
        *_queue_problems(config),
        *_option_problems(config),
    ]


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
        if deployment.get("user_config") is not None:
            yield Problem(
                (*path, "deployments", number, "user_config"),
                "must not be set; no deployment of mpt_serve has a `reconfigure` method, without which Serve starts no"
                " replica. All settings are under the application's args",
            )


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


def _option_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Find options that Serve's schema accepts and its controller refuses when it deploys."""
    for index, application in enumerate(_mappings(config.get("applications"))):
        for number, deployment in enumerate(_mappings(application.get("deployments"))):
            yield from _refused_options(deployment, ("applications", index, "deployments", number))


def _refused_options(deployment: Mapping[str, Any], path: Path) -> Iterator[Problem]:
    options = {name: copy.deepcopy(deployment[name]) for name in _REPLICA_OPTIONS if deployment.get(name) is not None}
    (options.get("ray_actor_options") or {}).pop("runtime_env", None)  # checked above; its packages are not here
    try:
        ReplicaConfig.create(object, **options)
    except (TypeError, ValueError) as error:
        named = next((name for name in options if name in str(error)), None)
        yield Problem(path if named is None else (*path, named), f"Serve refuses it: {error}")


def _repeated_deployments(application: Mapping[str, Any], path: Path) -> Iterator[Problem]:
    """Find second entries of one deployment, which Serve applies over the first."""
    first: dict[object, int] = {}
    for number, deployment in enumerate(_mappings(application.get("deployments"))):
        name = deployment.get("name")
        if isinstance(name, str) and first.setdefault(name, number) != number:
            place = (*path, "deployments", number, "name")
            yield Problem(place, f"the deployment '{name}' is configured twice, also in deployments[{first[name]}]")


def _runtime_env_problems(holder: Mapping[str, Any], path: Path) -> Iterator[Problem]:
    runtime_env = holder.get("runtime_env")
    if not isinstance(runtime_env, Mapping):
        return
    place = (*path, "runtime_env")
    for key, value in runtime_env.items():
        kinds = _RUNTIME_ENV_TYPES.get(key)
        if key not in RuntimeEnv.known_fields:
            yield Problem(place, f"unknown setting '{key}'; {closest(str(key), RuntimeEnv.known_fields)}", str(key))
        elif kinds is not None and not isinstance(value, kinds):
            wanted = " or ".join(_KINDS[kind] for kind in kinds)
            yield Problem((*place, key), f"must be {wanted}; got {value_text(value)}")
    variables = runtime_env.get("env_vars")
    for name, value in variables.items() if isinstance(variables, Mapping) else ():
        if not isinstance(name, str) or not isinstance(value, str):
            wrong = value_text(name if isinstance(value, str) else value)
            yield Problem((*place, "env_vars", name), f"must be a string, in quotes; got {wrong}")


def _timeout_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Find deadlines of Serve that expire before ours: Serve responds in plain text instead of the API's errors."""
    serve_timeout = (config.get("http_options") or {}).get("request_timeout_s")
    if serve_timeout is None:
        return
    for index, _, settings in own_applications(config):
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
    for index, application, settings in own_applications(config):
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
    for index, _, settings in own_applications(config):
        problem = folder_problem(settings.model)
        if problem is not None:
            yield Problem(("applications", index, "args", "model"), problem)


def own_applications(config: Mapping[str, Any]) -> Iterator[tuple[int, Mapping[str, Any], Settings]]:
    """Yield position, content and settings of each application of mpt_serve in a configuration without mistakes."""
    for index, application in enumerate(config["applications"]):
        if application["import_path"] == IMPORT_PATH:
            yield index, application, Settings.from_mapping(application.get("args") or {})


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []
