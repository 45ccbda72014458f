"""A record of answers and faults as JSON lines, without tokens or secrets."""

import json
import threading
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


class Record:
    """A file of lines {"at", "what", …}. Any thread may write; each line is flushed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file = path.open("w", buffering=1)
        self.counts: Counter[str] = Counter()
        """The number of lines by their `what`."""
        self._lines_of: dict[str, list[str]] = {}

    def write(self, what: str, *, expense: str | None = None, **fields: Any) -> None:
        """Write a line. `expense` is the id of the expense that the line is about, if any."""
        about = {"expense": expense} if expense else {}
        line = json.dumps({"at": datetime.now(UTC).isoformat(), "what": what, **about, **fields})
        with self._lock:
            self._file.write(line + "\n")
            self.counts[what] += 1
            if expense:
                self._lines_of.setdefault(expense, []).append(line)

    def lines_of(self, expense: str) -> list[str]:
        return self._lines_of.get(expense, [])

    def close(self) -> None:
        self._file.close()
