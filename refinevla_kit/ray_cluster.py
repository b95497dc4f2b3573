"""Ray, for what is spread over machines: annotation and evaluation."""

from __future__ import annotations

import logging
from typing import Any

from refinevla_kit.errors import as_kit_error, install


def cluster() -> Any:
    """Ray, connected to the cluster that `ray.init` or RAY_ADDRESS names, else to one started here.

    Raises:
        KitError: it is not installed, or no cluster answers.
    """
    with as_kit_error(
        "executor ray: Ray is not installed", f"{install('ray')}; or choose another executor", (ImportError,)
    ):
        import ray
    if not ray.is_initialized():
        remedy = "look at RAY_ADDRESS, or unset it to start one here"
        with as_kit_error("executor ray: no cluster answers", remedy, (ConnectionError, RuntimeError)):
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    return ray
