"""Recent traffic: what a model may know of a request beside the request itself.

It moves with every completion, on the engine's thread, in a few microseconds. It therefore belongs
to the predictor, not to the model: a model that is swapped in finds it as it is.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

from sagellm_lifetime.core.arrays import Arrays, part
from sagellm_lifetime.core.errors import RequestError
from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.features.context import RecentCompletions
from sagellm_lifetime.features.conversations import Conversations
from sagellm_lifetime.features.request import RequestFeatures, read_request

CONVERSATIONS: Final = "conversations"
"""Tell sessions from shared prompt blocks, where a request names none."""
RECENT: Final = "recent"
"""Remember the last completions of each session and client."""


class ObservedRequest(NamedTuple):
    """A request that is asked about for the first time, and what is known around it.

    Attributes:
        request: as the engine gave it. It may change later, so keep no reference to it.
        features: what it says, checked and in plain types.
        session: key of its session or conversation, 0 for none.
        recent: the last completions of its session and client; nothing for a model that does not
            ask for them (``LengthModel.context``). It may change later, too.
    """

    request: PredictionRequest
    features: RequestFeatures
    session: int
    recent: RecentCompletions


class Context:
    """Conversations and recent completions, as far as a model asks for them.

    Args:
        parts: any of :data:`CONVERSATIONS` and :data:`RECENT`.

    Raises:
        RequestError: another part.
    """

    def __init__(self, parts: Collection[str] = ()) -> None:
        odd = sorted(set(parts) - {CONVERSATIONS, RECENT})
        if odd:
            raise RequestError(
                f"no such context: {odd[0]!r}, only {CONVERSATIONS!r} and {RECENT!r}"
            )
        self.parts = tuple(parts)
        self._has_recent = RECENT in parts
        self._conversations = Conversations() if CONVERSATIONS in parts else None
        self.recent = RecentCompletions()

    def observe(self, request: PredictionRequest) -> ObservedRequest:
        """Return a request with what is known around it; changes nothing.

        Raises:
            RequestError: its features cannot be read.
        """
        features = read_request(request)
        key = self._conversations
        session = features.session_key if key is None else key.key(features)
        return ObservedRequest(request, features, session, self.recent)

    def learn(
        self, features: RequestFeatures, session: int, length: int, *, censored: bool
    ) -> None:
        """Note a completion of ``length`` tokens (at least so many if censored)."""
        if self._conversations is not None:
            self._conversations.learn(features)
        if self._has_recent:
            self.recent.learn(features, session, length, censored=censored)

    def state(self) -> Arrays:
        """Return what is remembered, as arrays that :meth:`restore` takes."""
        found: Arrays = {}
        if self._conversations is not None:
            state = self._conversations.state()
            found |= {f"{CONVERSATIONS}.{key}": value for key, value in state.items()}
        if self._has_recent:
            found |= {f"{RECENT}.{key}": value for key, value in self.recent.state().items()}
        return found

    def restore(self, state: Arrays) -> None:
        """Replace what is remembered with a :meth:`state`; other arrays are passed over.

        Raises:
            ValueError: arrays that do not fit, or hold what cannot be.
        """
        if self._conversations is not None:
            self._conversations.restore(part(state, f"{CONVERSATIONS}."))
        if self._has_recent:
            self.recent.restore(part(state, f"{RECENT}."))

    def without(self, state: Arrays) -> Arrays:
        """Return those of ``state`` that are not of this context."""
        prefixes = tuple(f"{name}." for name in self.parts)
        if not prefixes:
            return state
        return {key: value for key, value in state.items() if not key.startswith(prefixes)}
