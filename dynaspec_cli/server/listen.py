"""The socket, and the loop of uvicorn around the application."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.server.app import Service, create_app

GRACE_S = 5
"""Seconds that open connections have when the server ends."""


def is_loopback(host: str) -> bool:
    """Can only this machine reach ``host``?"""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet: what cannot be had is told before a model is
    loaded."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise UsageError(f"--host {host}: no such address ({error.strerror})") from error
    family, kind, protocol, _, address = found[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise DynaSpecError(
            f"--host {host} --port {port}: cannot listen there ({error.strerror}); choose another "
            "--port"
        ) from error
    return bound


def url(bound: socket.socket) -> str:
    """Where clients find the server."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """Stops what is generated when it is told to end, and says when it listens."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]):
        super().__init__(config)
        self._service, self._ready = service, ready

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: Any = None) -> None:
        self._service.jobs.end()
        await super().shutdown(sockets)


def serve(
    service: Service, bound: socket.socket, log: Callable[[str], None], ready: Callable[[], None]
) -> None:
    """Serve until SIGINT or SIGTERM, which are raised again when all is closed."""
    config = uvicorn.Config(
        create_app(service, log),
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=GRACE_S,
    )
    service.jobs.start()
    try:
        _Server(config, service, ready).run(sockets=[bound])
    finally:
        service.jobs.end()
        bound.close()
