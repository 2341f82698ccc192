"""The import path as the specification's page 2.4 writes it: another name of ``sage.llm.sagellm.scheduler_ir``."""

from sage.llm.sagellm.scheduler_ir import *  # noqa: F403
from sage.llm.sagellm.scheduler_ir import __all__ as __all__
