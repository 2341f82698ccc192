"""The import path as page 2.4 of the specification writes it."""

from sage.llm.sagellm.scheduler_ir import *  # noqa: F403
from sage.llm.sagellm.scheduler_ir import __all__  # noqa: F401
