"""Turn Ctrl-C and SIGTERM into a flag, so that training can stop between two steps."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Context manager that is true once SIGINT or SIGTERM has arrived. A second signal has its usual effect.

    It does nothing outside the main thread.

    Args:
        enabled: False leaves signals alone. Use it with several processes, which would have to agree on the step at
            which they stop.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.asked = False
        self.enabled = enabled and threading.current_thread() is threading.main_thread()
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.asked

    def __enter__(self) -> Self:
        if self.enabled:
            self._before = {number: signal.signal(number, self._ask) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
