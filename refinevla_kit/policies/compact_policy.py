"""Where `load_policy` was in version 1; scripts written then still find it."""

from refinevla_kit.policies.vla_policy import VLAPolicy as CompactPolicy
from refinevla_kit.policies.vla_policy import load_policy

__all__ = ["CompactPolicy", "load_policy"]
