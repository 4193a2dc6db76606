"""Ray's own modules warn while they are imported; everything after that counts as an error here, as elsewhere."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ray.serve.schema  # noqa: F401
