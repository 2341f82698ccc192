"""vLLM's own scheduler with the accounts of ``benchmarks/live``, as the replay can take one."""

import io
import time

from live.accounts import Accounts
from live.watched import Logged as Mixin
from live.watched import Scheduler


class Logged(Mixin, Scheduler):
    """Writes into memory."""

    def __init__(self, *args, **options):
        Scheduler.__init__(self, *args, **options)
        self.file = io.StringIO()
        self.accounts = Accounts(self.requests, self.file, clock=time.time)
