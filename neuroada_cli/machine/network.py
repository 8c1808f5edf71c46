"""Whether there is a way to the hub."""

from __future__ import annotations

import socket
import threading
import urllib.parse
import urllib.request

PROBE_SECONDS = 1.5


def hub_answers(endpoint: str) -> bool:
    """Whether the hub, or the proxy on the way to it, accepts a connection within PROBE_SECONDS.

    The probe runs in its own thread because a name look-up without a network cannot be given a timeout.
    """
    host = urllib.parse.urlsplit(endpoint).hostname or ""
    proxy = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get("https")
    address = urllib.parse.urlsplit(proxy or endpoint)
    port = address.port or (443 if address.scheme == "https" else 80)
    answered = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((address.hostname or "", port), timeout=PROBE_SECONDS).close()
        except OSError:
            return
        answered.set()

    probe = threading.Thread(target=connect, daemon=True)
    probe.start()
    probe.join(PROBE_SECONDS)
    return answered.is_set()
