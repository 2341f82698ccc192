"""The commands: ``sage llm lifetime …``, and ``sagellm-lifetime …`` where there is no ``sage``."""
