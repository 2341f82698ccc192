"""Messages on a pipe arrive whole, in order, however the bytes come."""

import fcntl
import os
import resource
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagellm_lifetime.predictor.frames import Frame, frames, packed, ready

FRAMES = st.lists(
    st.builds(Frame, st.sampled_from([b"L", b"S"]), st.integers(0, 2**64 - 1), st.binary()),
    max_size=8,
)


@settings(max_examples=40, deadline=None, derandomize=True)
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


def test_file_descriptors_beyond_a_thousand():
    """A server has many connections, and ``select`` only knows 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    inbox, outbox = os.pipe()
    high = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 1500) for each in (inbox, outbox)]
    try:
        assert min(high) >= 1500
        assert ready(*high, 0.0) == (False, True)
        os.write(high[1], b"x")
        assert ready(*high, 5.0) == (True, True)
        assert ready(high[0], None, 5.0) == (True, False)
    finally:
        for each in (inbox, outbox, *high):
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
