"""Messages on a pipe arrive whole, in order, however the bytes come."""

import os
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagellm_lifetime.learning.frames import Frame, frames, packed

FRAMES = st.lists(
    st.builds(Frame, st.sampled_from([b"L", b"S"]), st.integers(0, 2**64 - 1), st.binary()),
    max_size=8,
)


@settings(max_examples=40, deadline=None)
@given(FRAMES, st.integers(1, 50), st.integers(0, 20))
def test_what_is_sent_arrives(sent, piece, cut):
    """In pieces of any size; of a last message cut short nothing is heard."""
    data = b"".join(packed(frame) for frame in sent)
    broken = packed(Frame(b"L", 1, b"never whole"))[:cut]
    inbox, outbox = os.pipe()
    try:
        for at in range(0, len(data), piece):
            os.write(outbox, data[at : at + piece])
        os.write(outbox, broken)
        os.close(outbox)
        assert list(frames(inbox, lambda: 5.0)) == sent
    finally:
        os.close(inbox)


def test_more_than_a_pipe_holds():
    inbox, outbox = os.pipe()
    big = Frame(b"L", 7, os.urandom(1 << 20))

    def send():
        with open(outbox, "wb") as file:
            file.write(packed(big))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        assert list(frames(inbox, lambda: 5.0)) == [big]
    finally:
        thread.join()
        os.close(inbox)


@pytest.mark.parametrize("patience", [0.0, 0.01])
def test_silence_is_said(patience):
    inbox, outbox = os.pipe()
    try:
        heard = frames(inbox, lambda: patience)
        assert next(heard) is None
        os.write(outbox, packed(Frame(b"S", 3, b"")))
        assert next(heard) == Frame(b"S", 3, b"")
        assert next(heard) is None
    finally:
        os.close(inbox)
        os.close(outbox)
