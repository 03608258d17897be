"""The demo's marks: run it from nothing and compare the artifact with the original's own fp32 export."""

import shutil
import tempfile
import time

from common import brief, keep

import afina
from afina.progress import PlainProgress

if __name__ == "__main__":
    folder = tempfile.mkdtemp()
    start = time.monotonic()
    try:
        result = afina.demo(out=f"{folder}/demo", progress=PlainProgress())
    finally:
        shutil.rmtree(folder)
    keep("demo", brief(result, time.monotonic() - start))
