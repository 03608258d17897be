"""A runtime: files that are the saved network in a compressed archive, run by torch."""

import tempfile
import zipfile
from pathlib import Path

from afina.runtimes import RUNTIMES
from afina.runtimes.base import Runtime

MEMBER = "model.pt2"


class PackedRuntime(Runtime):
    """Smaller than `.pt2` where weights repeat, and otherwise the same."""

    name = "packed"
    extra = None
    format = "packed"
    suffix = ".ptz"
    package = "torch"
    usage = """\
from pathlib import Path
from afina.runtimes import get_runtime
outputs = get_runtime("packed").load(Path("{file}"), threads=1)(x)
"""

    def policy(self):
        """Computed in float between quantizations: nothing saturates."""
        return self.integers

    def _write(self, network, path):
        with tempfile.TemporaryDirectory() as folder:
            network.save(Path(folder) / MEMBER)
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.write(Path(folder) / MEMBER, MEMBER)

    def _open(self, path, threads):
        return _unpacked(path, lambda file: RUNTIMES["pt2"].load(file, threads=threads))

    def _metadata(self, path):
        return _unpacked(path, RUNTIMES["pt2"].metadata)


def _unpacked(path, read):
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
        return read(Path(archive.extract(MEMBER, folder)))
