"""ReFineVLA kit: reasoning-aware fine-tuning of vision-language-action policies, measured.

The package behind the numbered notebooks. Importing it is cheap: neither torch nor SAPIEN is loaded until a
module that needs them is.
"""

import os
import sys

__version__ = "0.1.0"

if sys.platform != "linux":  # every entry passes here, before anything that other systems lack is imported
    from refinevla_kit.errors import KitError

    _error = KitError(
        f"the kit runs on Linux, this is {sys.platform}", "use a Linux machine, WSL 2 or a container"
    )
    if "ipykernel" in sys.modules:
        raise _error  # a notebook shows it as one line
    raise SystemExit(f"refinevla: {_error}")  # a traceback would bury it

# libgomp's threads spin while they wait; beside another busy process torch then falls to a tenth
# (benchmarks/busy_machine.py). Read when torch is
# imported, and inherited by every process that is started from here.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "10000"
