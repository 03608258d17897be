"""The run folder: what a job has finished, kept so that it survives a kill at any moment and a full disk.

`run` has the folder with its lock and its stages, `files` writes files whole or not at all, `result` turns
our records into JSON and back. `python -m afina.store` prints the JSON schema of `result.json`, which is
published in `docs/`. Importing this package imports none of them: what measures needs `files` alone, at once.
"""
