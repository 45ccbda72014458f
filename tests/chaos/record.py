"""What was acknowledged and what was broken, as JSON lines; never a token or a secret."""

import json
import threading
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


class Record:
    """A file of lines {"at", "what", …}, each written out at once, by any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file = path.open("w", buffering=1)
        self.counts: Counter[str] = Counter()
        """Lines by what they say."""
        self._lines_of: dict[str, list[str]] = {}

    def write(self, what: str, *, expense: str | None = None, **fields: Any) -> None:
        """`expense` is the expense's id, where the line is about one."""
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
