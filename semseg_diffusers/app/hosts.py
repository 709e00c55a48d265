"""Where the page is served: an address that can be listened on, and the names under which it answers."""

import errno
import ipaddress
import socket
from collections.abc import Iterable
from typing import Any


def without_brackets(host: str) -> str:
    """Return an IPv6 address as sockets take it: "[::1]" is "::1"."""
    return host.removeprefix("[").removesuffix("]")


def name_of(host: str) -> str:
    """Return the name or address of a Host header, or of an option, without its port: "[::1]:7860" is "::1"."""
    if host.startswith("["):
        host = without_brackets(host.partition("]")[0])
    elif host.count(":") == 1:  # more of them are an IPv6 address
        host = host.partition(":")[0]
    return host.lower().rstrip(".")


def check_address(host: str, port: int) -> None:
    """Raise a `ValueError` for an address that cannot be listened on."""
    address = without_brackets(host)
    try:
        with socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET):
            pass
    except OSError as err:
        if err.errno == errno.EADDRINUSE:
            hint = f"Another program uses it. Try --port {port + 1 if port < 65535 else port - 1}."
        elif err.errno == errno.EACCES:
            hint = "Only an administrator may use this port."
        else:
            hint = "The host must be a name or an address of this machine, without a port."
        raise ValueError(f"cannot listen on --host {host} --port {port} ({err.strerror or err}). {hint}") from err


class OwnHosts:
    """ASGI middleware that refuses requests to a name of another machine.

    The name of another site may be pointed at this machine, so that its pages could ask ours (DNS rebinding). IP
    addresses cannot, and are answered.
    """

    def __init__(self, app: Any, names: Iterable[str]):
        self.app = app
        own = ("localhost", socket.gethostname(), f"{socket.gethostname()}.local")
        self.names = {name_of(name) for name in (*own, *names)}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or answer it with 421, Misdirected Request."""
        if scope["type"] not in ("http", "websocket") or self.is_own(dict(scope["headers"]).get(b"host", b"")):
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "http.response.start", "status": 421, "headers": headers})
        text = "This page does not answer to that name. Whoever serves it can allow it: app --allowed_hosts NAME\n"
        await send({"type": "http.response.body", "body": text.encode()})

    def is_own(self, header: bytes) -> bool:
        """Return whether a Host header names this machine, by name or address."""
        name = name_of(header.decode("latin-1"))
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.names
        return True
