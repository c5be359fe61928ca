"""Record of each step of a run, as lines of JSON."""

import json
from pathlib import Path

from ..files import naming, replace_file

FILE = "metrics.jsonl"


class MetricsLog:
    """Writer of metrics.jsonl: the records of the checkpoint first, then one JSON record a step. No path, no file."""

    def __init__(self, path: Path | None, records: list[dict]):
        self.file = None
        if path is not None:
            replace_file(path, "".join(json.dumps(record) + "\n" for record in records))
            self.file = open(path, "a", buffering=1)  # noqa: SIM115, `close` closes it

    def add(self, record: dict) -> None:
        if self.file:
            with naming(self.file.name):
                self.file.write(json.dumps(record) + "\n")

    def close(self) -> None:
        if self.file:
            self.file.close()
