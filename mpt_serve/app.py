"""`build`: settings to a Serve application.

serve run serve_config.yaml            what the file says
serve run mpt_serve.app:build          every default
serve build mpt_serve.app:app          Serve's configuration of that, as YAML
"""

from typing import Any

from ray import serve
from ray.serve.deployment import Application
from ray.serve.exceptions import RayServeException

from mpt_serve.configuration.problems import ConfigurationError
from mpt_serve.configuration.settings import Settings
from mpt_serve.deployments.generator import Generator
from mpt_serve.deployments.ingress import Ingress
from mpt_serve.deployments.tokenizer import Tokenizer
from mpt_serve.driver import check_driver_config
from mpt_serve.one_loop import replica_runtime_env

__all__ = ["app", "build"]

app: Application  # the application with every default, for `serve build`, which takes no builder

_OTHER_REQUESTS = 256  # that an Ingress serves beside generating ones: /ready, /v1/models, refusals


def build(args: dict[str, Any]) -> Application:
    """Return the application Ingress -> Tokenizer, Generator. `args` are `Settings`; `{}` takes every default.

    Numbers of replicas, resources and autoscaling are Serve's own keys, in the YAML file's `deployments`.
    Raises RayServeException for settings that cannot be used: Serve shows its message as it is, and does not try again.
    """
    try:
        check_driver_config()
        settings = Settings.from_mapping(args)
    except ConfigurationError as error:
        raise RayServeException(str(error)) from error
    # Serve refuses in plain text, so its limits stand above ours, which refuse in the API's own form. And no CPU is
    # reserved beside the Generator's, or a machine with two could not hold the three of them.
    runtime_env = replica_runtime_env()
    places = settings.limits.max_waiting_requests + _OTHER_REQUESTS
    edge = {"max_ongoing_requests": places, "ray_actor_options": {"num_cpus": 0, **runtime_env}}
    # A Generator takes as many again as it can run, so that none of its places is ever empty; the rest wait in the
    # Ingress (`DispatchQueue`), for whichever replica is free first.
    generator = serve.deployment(
        Generator,
        max_ongoing_requests=2 * settings.engine.max_num_seqs,
        ray_actor_options={"num_cpus": 1, **runtime_env},
    ).bind(settings)
    tokenizer = serve.deployment(Tokenizer, **edge).bind(settings)
    application: Application = serve.deployment(Ingress, **edge).bind(settings, tokenizer, generator)
    return application


def __getattr__(name: str) -> Application:
    if name == "app":  # made when asked for: most who import this module want `build`
        return build({})
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
