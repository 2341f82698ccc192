"""Recent traffic around a request: conversations, and the last completions of session and client.

It is updated by every completion, on the engine's thread, in a few microseconds. It therefore
belongs to the predictor and not to the model, and stays as it is when the model is swapped.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

from sagellm_lifetime.core.arrays import Arrays, part
from sagellm_lifetime.core.errors import RequestError
from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.features.context import RecentCompletions
from sagellm_lifetime.features.conversations import Conversations
from sagellm_lifetime.features.name_keys import NameKeys
from sagellm_lifetime.features.request import RequestFeatures, read_request

CONVERSATIONS: Final = "conversations"
"""Part that infers sessions from shared prompt blocks, for requests that name none."""
RECENT: Final = "recent"
"""Part that holds the last completions of each session and client."""


class ObservedRequest(NamedTuple):
    """Request at its first prediction, with its context.

    Attributes:
        request: the request of the engine. It may change later, so keep no reference to it.
        features: its features, checked and in plain types.
        session: key of its session or conversation, 0 for none.
        recent: the last completions of all sessions and clients; empty if the model does not need
            them (``LengthModel.context``). It may change later, too.
    """

    request: PredictionRequest
    features: RequestFeatures
    session: int
    recent: RecentCompletions


class Context:
    """Conversations and recent completions, as far as a model needs them.

    Args:
        parts: any of :data:`CONVERSATIONS` and :data:`RECENT`.
        keys: keys of names; those of the seed 0 if ``None``.

    Raises:
        RequestError: an unknown part.
    """

    def __init__(self, parts: Collection[str] = (), keys: NameKeys | None = None) -> None:
        unknown = sorted(set(parts) - {CONVERSATIONS, RECENT})
        if unknown:
            raise RequestError(
                f"no such context: {unknown[0]!r}, only {CONVERSATIONS!r} and {RECENT!r}"
            )
        self.parts = tuple(parts)
        self.keys = NameKeys.seeded(0) if keys is None else keys
        self._has_recent = RECENT in parts
        self._conversations = Conversations(self.keys) if CONVERSATIONS in parts else None
        self.recent = RecentCompletions()

    def observe(self, request: PredictionRequest) -> ObservedRequest:
        """Return a request with its features and context; change nothing.

        Raises:
            RequestError: its features cannot be read.
        """
        features = read_request(request, self.keys)
        conversations = self._conversations
        session = features.session_key if conversations is None else conversations.key(features)
        return ObservedRequest(request, features, session, self.recent)

    def learn(
        self, features: RequestFeatures, session: int, length: int, *, censored: bool
    ) -> None:
        """Record a completion.

        Args:
            features: features of its request.
            session: key of its session or conversation, 0 for none.
            length: generated tokens; a lower bound if censored.
            censored: True if the length is only a lower bound.
        """
        if self._conversations is not None:
            self._conversations.learn(features)
        if self._has_recent:
            self.recent.learn(features, session, length, censored=censored)

    def state(self) -> Arrays:
        """Return conversations and recent completions as arrays for :meth:`restore`."""
        arrays: Arrays = {}
        if self._conversations is not None:
            state = self._conversations.state()
            arrays |= {f"{CONVERSATIONS}.{key}": value for key, value in state.items()}
        if self._has_recent:
            arrays |= {f"{RECENT}.{key}": value for key, value in self.recent.state().items()}
        return arrays

    def restore(self, state: Arrays) -> None:
        """Replace conversations and recent completions with a :meth:`state`; ignore other arrays.

        Raises:
            ValueError: an array is missing, of another type or shape, or holds impossible values.
        """
        if self._conversations is not None:
            self._conversations.restore(part(state, f"{CONVERSATIONS}."))
        if self._has_recent:
            self.recent.restore(part(state, f"{RECENT}."))

    def without(self, state: Arrays) -> Arrays:
        """Return the arrays of ``state`` that are not of this context."""
        prefixes = tuple(f"{name}." for name in self.parts)
        if not prefixes:
            return state
        return {key: value for key, value in state.items() if not key.startswith(prefixes)}
