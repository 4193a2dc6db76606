"""Ray's own modules warn while they are imported; everything after that counts as an error here, as elsewhere."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ray.serve.schema  # noqa: F401
    from ray._private import auto_init_hook

# A call of Ray's API would start a Ray whose end, a minute later, ends the process of the tests.
auto_init_hook.enable_auto_connect = False
