"""The Serve application, built from its settings.

serve run serve_config.yaml            runs the configuration in the file
serve run mpt_serve.app:build          runs the defaults
serve build mpt_serve.app:app          prints the defaults as a Serve configuration
"""

from typing import Any

from ray import serve
from ray.serve.deployment import Application
from ray.serve.exceptions import RayServeException

from mpt_serve.configuration.problems import ConfigurationError
from mpt_serve.deployments.generator import Generator
from mpt_serve.deployments.ingress import Ingress
from mpt_serve.deployments.same_model_router import ROUTER
from mpt_serve.deployments.tokenizer import Tokenizer
from mpt_serve.driver import end_serve_run, first_serve_run
from mpt_serve.one_loop import replica_runtime_env
from mpt_serve.rollout import generator_surge_percent

__all__ = ["app", "build"]

app: Application  # the application with its defaults, for `serve build`, which does not call builders

# For every deployment. Serve's defaults notice a dead replica after 10 s and a frozen one after 2 minutes, and end what
# still runs after 20 s.
_HEALTH_CHECK_PERIOD_S = 1.0
_GRACEFUL_SHUTDOWN_TIMEOUT_S = 60.0

# Requests that a replica of the Ingress or of the Tokenizer has at once, by Serve's count. Those above our own bounds
# are refused at once, and bodies that do not arrive have separate places, so Serve's bound must never be reached:
# behind it even /health would wait.
_UNBOUNDED = 1_000_000


def build(args: dict[str, Any]) -> Application:
    """Return the application: an Ingress with handles of a Tokenizer and a Generator.

    args: the `Settings`; `{}` takes the defaults. Replicas, resources and autoscaling are Serve's own keys, in the
    file's `deployments`.
    Serve calls this before it touches the replicas of a running application, so what is found here does not harm it.
    Raises RayServeException for invalid settings and for a model that cannot be loaded: Serve then shows the message
    unchanged and does not retry.
    """
    # JAX takes a second to import, and replicas of the edge, which import this module, do not need it.
    from mpt_serve.preflight import check_deployment

    run = first_serve_run()
    try:
        settings, report = check_deployment(args, None if run is None else run.file)
    except ConfigurationError as error:
        if run is not None:
            end_serve_run(run, error)
        raise RayServeException(str(error)) from error
    # Serve refuses requests in plain text, so its limits are above ours, which refuse with the API's errors. Only the
    # Generator reserves a CPU, so that the three deployments fit on a machine with two.
    runtime_env = replica_runtime_env()
    life: dict[str, Any] = {
        "health_check_period_s": _HEALTH_CHECK_PERIOD_S,
        "health_check_timeout_s": settings.engine.reply_timeout_s,
        "graceful_shutdown_timeout_s": _GRACEFUL_SHUTDOWN_TIMEOUT_S,
    }
    edge: dict[str, Any] = {
        "max_ongoing_requests": _UNBOUNDED,
        "ray_actor_options": {"num_cpus": 0, **runtime_env},
        "max_surge_percent": 100,  # a new replica starts before the old one stops
        **life,
    }
    # A Generator holds twice the requests that it can run, so that no slot is ever idle; the rest wait in the Ingress
    # (`DispatchQueue`) for the first free replica.
    to_same_model = {"request_router_class": ROUTER}
    generator = serve.deployment(
        Generator,
        max_ongoing_requests=2 * settings.engine.max_num_seqs,
        ray_actor_options={"num_cpus": 1, **runtime_env},
        **life,
        max_surge_percent=generator_surge_percent(args, report.need.least),
        request_router_config=to_same_model,
    ).bind(settings)
    tokenizer = serve.deployment(Tokenizer, request_router_config=to_same_model, **edge).bind(settings)
    application: Application = serve.deployment(Ingress, **edge).bind(settings, tokenizer, generator)
    return application


def __getattr__(name: str) -> Application:
    if name == "app":  # lazily: most importers of this module need `build` alone
        return build({})
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
