"""Who is looking at the page: a session for each visitor, of whom nothing stays when the tab is closed."""

import secrets
import threading
from pathlib import Path

from .session import DemoSession


class Visitors:
    """The visitors, each in a folder of their own below one that is private.

    Args:
        root: an empty folder that is private.
        most: scans of so many visitors are kept in memory; the one that was idle longest goes first.
    """

    def __init__(self, root: Path, *, most: int = 8) -> None:
        self._root, self._most = root, most
        self._sessions: dict[str, DemoSession] = {}
        self._lock = threading.Lock()

    def of(self, visitor: str) -> DemoSession:
        """The visitor's session, made at the first call."""
        with self._lock:
            session = self._sessions.pop(visitor, None) or DemoSession(self._root / secrets.token_hex(16))
            self._sessions[visitor] = session  # the dictionary's last is who came last
            idle = list(self._sessions)[: -self._most]
        for other in idle:
            self.close(other)
        return session

    def close(self, visitor: str) -> None:
        """Ends a session, if there is one."""
        with self._lock:
            session = self._sessions.pop(visitor, None)
        if session is not None:
            session.close()

    def close_all(self) -> None:
        """Ends all."""
        for visitor in list(self._sessions):
            self.close(visitor)
