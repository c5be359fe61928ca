"""Record of each step of a run, as lines of JSON and as curves for TensorBoard."""

import importlib.util
import json
import warnings
from pathlib import Path

from ..files import naming, replace_file

FILE = "metrics.jsonl"


class MetricsLog:
    """Writer of metrics.jsonl: the records of the checkpoint first, then one JSON record a step. No path, no file.

    With `board`, the same numbers go to TensorBoard, where that is installed.
    """

    def __init__(self, path: Path | None, records: list[dict], board: bool):
        self.file = self.board = None
        if path is not None and board and importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            try:
                self.board = SummaryWriter(path.parent / "tensorboard", purge_step=len(records))
            except UnicodeEncodeError:
                warnings.warn(f"{path.parent}: no curves, as TensorBoard takes names of UTF-8 alone", stacklevel=2)
        if path is not None:
            replace_file(path, "".join(json.dumps(record) + "\n" for record in records))
            self.file = open(path, "a", buffering=1)  # noqa: SIM115, `close` closes it

    def add(self, record: dict) -> None:
        if self.file:
            with naming(self.file.name):
                self.file.write(json.dumps(record) + "\n")
        if self.board:
            for name in record.keys() - {"step", "seconds"}:
                self.board.add_scalar(name, record[name], record["step"])

    def close(self) -> None:
        for one in filter(None, (self.file, self.board)):
            one.close()
