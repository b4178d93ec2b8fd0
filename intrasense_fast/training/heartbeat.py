"""Whether the other processes of a run still live: each counts up in a store, and looks at the
others."""

import os
import sys
import threading
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import PrefixStore, Store, TCPStore

from intrasense_fast.console import show

_BEAT_SECONDS = 2.0
# Looks without a new beat, not seconds: a machine that slept sees old beats once.
_LOOKS = 10
_GRACE_SECONDS = 5.0
SILENCE_SECONDS = round(_BEAT_SECONDS * _LOOKS)


class Heartbeat:
    """Ends this process where another one is silent, if nothing else does.

    A process that waits for a lost one inside a library cannot raise an error: after a message it
    exits with 2. A process whose connections broke has its own error, and stops this first.

    Args:
        host, port: of the store that all processes reach.
        rank, world: this process, and how many there are.
        advice: what the message ends with: what is saved, and how to go on.
        is_known: whether this process found out by itself, and ends as it should.
        end: ends the process, in place of os._exit.
    """

    def __init__(
        self,
        host: str,
        port: int,
        rank: int,
        world: int,
        advice: Callable[[], str],
        is_known: Callable[[], bool],
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self.rank, self.world, self._advice, self._end = rank, world, advice, end
        self._is_known = is_known
        # A connection of its own: a call that waits blocks all others on its connection.
        plain = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=SILENCE_SECONDS))
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store: Store = PrefixStore(f"intrasense-fast/beats/{restart}", plain)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Beat and look no more."""
        self._over.set()
        if self._thread is not threading.current_thread():
            self._thread.join(_GRACE_SECONDS)

    def _run(self) -> None:
        counts, silent = [-1] * self.world, [0] * self.world
        while not self._over.wait(_BEAT_SECONDS):
            try:
                self._store.add(str(self.rank), 1)
                now = [self._store.add(str(rank), 0) for rank in range(self.world)]
            except RuntimeError:
                # The store lies in the launcher, or in the first process.
                self._lost("the store of the launcher does not answer")
                return
            for rank, count in enumerate(now):
                silent[rank] = silent[rank] + 1 if count == counts[rank] else 0
            counts = now
            lost = [rank for rank, looks in enumerate(silent) if looks >= _LOOKS]
            if lost:
                self._lost(f"process {lost[0]} has not answered for {SILENCE_SECONDS} s")
                return

    def _lost(self, reason: str) -> None:
        if not self._over.wait(_GRACE_SECONDS) and not self._is_known():
            show(f"train: process {self.rank}: {reason}. {self._advice()}", sys.stderr)
            sys.stderr.flush()
            self._end(2)
