"""Trained weights from the libraries' own hubs, without long waits where there is no network.

The libraries try again and again for the best part of a minute when a host cannot be reached. One short check
before decides: where the hub is out of reach, only the cache is looked at.
"""

import contextlib
import os
import queue
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

_PATIENCE = 5.0
_READ_TIMEOUT = 20.0


def is_reachable(url: str, patience: float = _PATIENCE) -> bool:
    """Whether a connection to the host of `url` (or to the proxy that leads to it) opens in `patience` seconds."""
    host, port = _endpoint(url)
    answers: queue.Queue[bool] = queue.Queue()
    # In a thread of its own, since looking a name up has no timeout and may take a minute.
    threading.Thread(target=lambda: answers.put(_connects(host, port, patience)), daemon=True).start()
    try:
        return answers.get(timeout=patience)
    except queue.Empty:
        return False


def hub_url() -> str:
    """The address of the Hugging Face hub, which the environment may set."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


@contextlib.contextmanager
def hub_access(online: bool) -> Iterator[None]:
    """Downloads inside the block give up on a silent host; with `online=False` only the cache is used."""
    from huggingface_hub import constants

    was_offline, timeout = constants.HF_HUB_OFFLINE, socket.getdefaulttimeout()
    constants.HF_HUB_OFFLINE = was_offline or not online
    socket.setdefaulttimeout(_READ_TIMEOUT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was_offline
        socket.setdefaulttimeout(timeout)


def is_cached(url: str) -> bool:
    """Whether torch's own cache has the file of `url`."""
    import torch

    name = os.path.basename(urlsplit(url).path)
    return os.path.isfile(os.path.join(torch.hub.get_dir(), "checkpoints", name))


def _endpoint(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    return parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)


def _connects(host: str, port: int, patience: float) -> bool:
    try:
        socket.create_connection((host, port), timeout=patience).close()
    except OSError:
        return False
    return True
