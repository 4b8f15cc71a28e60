"""The service in a process of its own, on an engine whose speed is known and whose thread can be killed.

    python -m tests.stress.server SECONDS_PER_IMAGE

It waits in place of computing, so that the load of a test depends little on what else the machine does.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddaebm.service import watchdog
from ddaebm.service.app import create_app
from ddaebm.service.server import serve
from ddaebm.service.settings import Settings
from ddaebm.service.state import Service
from tests.service.conftest import FakeEngine

POISON = 4_815_162_342  # this seed kills the inference thread; no test comes upon it by chance
HOLD = "hold"  # no call ends while there is a file of this name in the working directory
NOTICED_AFTER = (
    1.0  # seconds that the first death stays unnoticed, so that clients can see what readiness says meanwhile
)


class StandIn(FakeEngine):
    """Noise of the seed, and the mean pixel as a score, at `seconds` an image."""

    def __init__(self, seconds: float) -> None:
        super().__init__("stand-in")
        self.seconds = seconds

    def sample(self, seeds: NDArray[np.int64]) -> NDArray[np.uint8]:
        if POISON in seeds:
            raise SystemExit
        return super().sample(seeds)

    def _enter(self, operation: str, rows: int) -> None:
        self.calls = [(operation, rows)]
        time.sleep(rows * self.seconds)
        while Path(HOLD).exists():
            time.sleep(0.01)


def notice_late() -> None:
    """Only the first death: nobody needs to see more of the second than that it ends the process."""
    fault_of = watchdog._fault
    died: list[float] = []

    def fault(service: Service) -> str | None:
        found = fault_of(service)
        if found:
            died.append(time.monotonic())
        late = not died or time.monotonic() - died[0] > NOTICED_AFTER
        return found if late else None

    watchdog._fault = fault


if __name__ == "__main__":
    notice_late()
    settings: Any = Settings()
    sys.exit(serve(create_app(settings, StandIn(float(sys.argv[1]))), settings))
