"""`load_policy` is one import away, and costs torch only those who ask for it."""

import subprocess
import sys

import pytest

from refinevla_kit import policies
from refinevla_kit.policies import vla_policy

PROGRAM = """
import sys, refinevla_kit.policies, refinevla_kit.policies.remote
print("torch" in sys.modules)
from refinevla_kit.policies import load_policy
print("torch" in sys.modules)
"""


def test_torch_is_loaded_by_who_asks_for_load_policy() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_it_is_the_function_of_its_module_and_nothing_else_is_made_up() -> None:
    assert policies.load_policy is vla_policy.load_policy
    with pytest.raises(AttributeError, match="has no attribute 'load_polcy'"):
        policies.load_polcy  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError):
        from refinevla_kit.policies import save_policy  # noqa: F401
