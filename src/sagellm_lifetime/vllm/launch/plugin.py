"""vLLM's plug-in (``vllm.general_plugins``): prediction in a vLLM that something else starts.

vLLM calls :func:`register` in each of its processes. Unless the environment variable
``SAGELLM_LIFETIME`` or the key ``lifetime`` in ``--additional-config`` is given, engine arguments
stay as they are, and no further module of this package is imported.
"""

from __future__ import annotations

import sys
from functools import wraps
from typing import Any, Final

from sagellm_lifetime.vllm.launch.variable import variable

_KEY: Final = "lifetime"
"""``settings.KEY``, which is not imported so that an inactive plug-in costs nothing."""
_ARGUMENTS: Final = "vllm.engine.arg_utils"


def register() -> None:
    """Let vLLM's engine arguments switch prediction on; further calls have no effect."""
    module = sys.modules.get(_ARGUMENTS)
    if module is None:  # an engine core or a worker, whose configuration is made already
        return
    arguments = module.EngineArgs
    if getattr(arguments.create_engine_config, "reads_lifetime", False):
        return
    parsed, create = arguments.from_cli_args.__func__, arguments.create_engine_config

    @wraps(parsed)
    def from_cli_args(cls: Any, args: Any) -> Any:
        if is_asked(args):
            from sagellm_lifetime.vllm.launch.engine_arguments import switch_on_server

            switch_on_server(args)
        return parsed(cls, args)

    @wraps(create)
    def create_engine_config(self: Any, *args: Any, **options: Any) -> Any:
        if is_asked(self):
            from sagellm_lifetime.vllm.launch.engine_arguments import switch_on

            switch_on(self)
        return create(self, *args, **options)

    create_engine_config.reads_lifetime = True  # type: ignore[attr-defined]
    arguments.from_cli_args = classmethod(from_cli_args)
    arguments.create_engine_config = create_engine_config


def is_asked(arguments: Any) -> bool:
    """Return True if the environment or the engine arguments ask for prediction.

    >>> from types import SimpleNamespace
    >>> is_asked(SimpleNamespace(additional_config={"lifetime": "shadow"}))
    True
    """
    if variable():
        return True
    additional = getattr(arguments, "additional_config", None)
    return isinstance(additional, dict) and _KEY in additional
