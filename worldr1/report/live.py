"""The page of a run while it trains: written again now and then, at a cost that is bounded."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from worldr1.report.page import write_report

MAX_SHARE = 0.02
"""Of the time of a run that may go into pages while it trains."""


class LivePage:
    """Writes RUN/report.html on rank 0 while the run goes on.

    Args:
      folder: Output folder of the run.
      enabled: Whether this rank writes.
      say: Takes one line where the page could not be written: that does not stop the run.
    """

    def __init__(self, folder: Path, *, enabled: bool, say: Callable[[str], None]) -> None:
        self.folder, self.enabled, self.say = folder, enabled, say
        self._next = 0.0  # of time.perf_counter

    def refresh(self, *, due: bool = False) -> bool:
        """Write the page, unless the last one is so young that pages would take more than MAX_SHARE of the time.

        Args:
          due: Write it in any case.
        Returns:
          Whether it was written.
        """
        start = time.perf_counter()
        if not self.enabled or (start < self._next and not due):
            return False
        try:
            write_report(self.folder, live=True)
        except (RuntimeError, OSError, ValueError) as error:  # a full disk, files that someone took away
            self.say(str(error))
        end = time.perf_counter()
        self._next = end + (end - start) * (1 / MAX_SHARE - 1)
        return True
