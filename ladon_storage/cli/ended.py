"""The end of a verb by a signal."""

from __future__ import annotations

import signal


class Ended(BaseException):
    """Raised when a signal ended a verb, after it has written its outcome.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"Ended by {signal.Signals(number).name}.")
        self.number = number
