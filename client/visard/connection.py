"""Where a server is and how to reach it: address, encryption, credentials, limits.

It opens channels; what goes through them is in `wire`.
"""

from __future__ import annotations

import ipaddress
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEFAULT_URL = "127.0.0.1:8001"

_RECONNECT_MS = 5_000  # gRPC's own pause before it looks for a lost server again grows to two minutes
_KEEPALIVE_MS = 30_000  # below the idle time after which load balancers commonly drop a connection


@dataclass(frozen=True, kw_only=True)
class Connection:
    """How to reach a server.

    Attributes:
        url: ``host:port`` of the gRPC endpoint.
        tls: encrypt. Implied by `root_certificates` and `client_certificate`.
        root_certificates: PEM file of the authorities to trust instead of the system's.
        client_certificate: PEM file of this caller's own certificate, where the server asks for one.
        client_key: PEM file of its private key.
        token: sent as ``authorization: Bearer …``. Never over an unencrypted connection to another machine.
        api_key: sent as ``x-api-key``, under the same rule.
        deadline_s: seconds for one face, from the first attempt to the answer.
        max_attempts: how often one face is sent at most to a server that cannot be reached or is lost. Inference
            changes nothing on the server, so that sending it again is safe. A server whose queue is full says so at
            once and is asked again, with growing pauses, until the deadline; with 1 nothing is ever sent twice.
        max_in_flight: faces under way at once; fewer as long as the server says that its queue is full, unless
            `max_attempts` is 1.
        shared_memory: hand faces over in memory instead of through the connection, to a server on this machine that
            allows it (``visard serve --shared-memory``).
        encoded: let faces travel as JPEG files (quality 95), a tenth of the bytes: for a slow line to a server whose
            repository was exported with ``--encoded``.
    """

    url: str = DEFAULT_URL
    tls: bool = False
    root_certificates: str | os.PathLike[str] | None = None
    client_certificate: str | os.PathLike[str] | None = None
    client_key: str | os.PathLike[str] | None = None
    token: str | None = field(default=None, repr=False)
    api_key: str | None = field(default=None, repr=False)
    deadline_s: float = 30.0
    max_attempts: int = 4
    max_in_flight: int = 16
    shared_memory: bool = False
    encoded: bool = False

    def __post_init__(self) -> None:
        """Refuse values that cannot work or would leak the credentials."""
        host, separator, port = self.url.rpartition(":")
        if not (host and separator and port.isdigit()) or "/" in self.url:
            raise ValueError(f"the server's address is host:port without a scheme, not {self.url!r}")
        if (self.client_certificate is None) != (self.client_key is None):
            raise ValueError("client_certificate and client_key belong together")
        if (self.token or self.api_key) and not (self.encrypted or self.local):
            raise ValueError(f"a token for {self.url} would travel unencrypted: use tls=True")
        if self.shared_memory and not self.local:
            raise ValueError(f"{self.url} is another machine: shared memory reaches a server on this one only")
        if self.shared_memory and self.encoded:
            raise ValueError("shared_memory and encoded exclude each other: what is not sent need not be made smaller")
        if self.deadline_s <= 0 or self.max_attempts < 1 or self.max_in_flight < 1:
            raise ValueError("deadline_s, max_attempts and max_in_flight must be positive")

    @property
    def encrypted(self) -> bool:
        """Whether the connection uses TLS."""
        return self.tls or self.root_certificates is not None or self.client_certificate is not None

    @property
    def local(self) -> bool:
        """Whether the server is on this machine."""
        host = self.url.rpartition(":")[0].strip("[]")
        with suppress(ValueError):  # a name, which only "localhost" promises to be here
            address = ipaddress.ip_address(host)
            return address.is_loopback or address.is_unspecified  # what listens on every address is reached by that
        return host == "localhost"

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Credentials as gRPC metadata."""
        pairs = []
        if self.token:
            pairs.append(("authorization", f"Bearer {self.token}"))
        if self.api_key:
            pairs.append(("x-api-key", self.api_key))
        return tuple(pairs)

    def open_channel(self) -> Any:
        """Open a `grpc.aio` channel; it connects at the first call."""
        import grpc

        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
            ("grpc.keepalive_permit_without_calls", 0),
            ("grpc.max_reconnect_backoff_ms", _RECONNECT_MS),
            ("grpc.enable_retries", 0),  # retries are ours: they know which errors are worth one
            ("grpc.enable_http_proxy", 0 if self.local else 1),
        ]
        if not self.encrypted:
            return grpc.aio.insecure_channel(self.url, options=options)
        files = [
            None if path is None else Path(path).read_bytes()
            for path in (self.root_certificates, self.client_key, self.client_certificate)
        ]
        return grpc.aio.secure_channel(self.url, grpc.ssl_channel_credentials(*files), options=options)
