"""The run folder: what a job has finished, kept so that it survives a kill at any moment and a full disk.

`run` has the folder with its lock and its stages, `files` writes files whole or not at all, `result` turns
our records into JSON and back. `python -m afina.store` prints the JSON schema of `result.json`, which is
published in `docs/`.
"""

from afina.store.files import storing
from afina.store.result import from_plain, read_result, result_schema, to_plain
from afina.store.run import Run, read_config

__all__ = ["Run", "from_plain", "read_config", "read_result", "result_schema", "storing", "to_plain"]
