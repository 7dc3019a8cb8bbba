"""How a local network behaves: lifetimes, limits and rules, each with a default that resembles the real one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ("DevnetConfig",)


@dataclass(frozen=True, slots=True, kw_only=True)
class DevnetConfig:
    """Settings of one :class:`~posemesh.devnet.Devnet`. Times are in seconds, sizes in bytes."""

    host: str = "127.0.0.1"
    #: 0 takes any free port.
    port: int = 0
    #: Where metadata and bytes are kept; None keeps them in memory and in a directory removed at the end.
    data_dir: Path | None = None

    #: A challenge that was not answered by then is void.
    nonce_ttl: float = 300.0
    node_token_ttl: float = 3600.0
    app_token_ttl: float = 30 * 86400.0
    #: Lifetime of the token a lease carries for the domain server.
    domain_token_ttl: float = 600.0
    #: True: every heartbeat brings a new domain token. False: only when half of its lifetime is gone.
    rotate_domain_token: bool = False

    lease_ttl: float = 30.0
    #: How often leases that ran out are taken back.
    sweep_interval: float = 1.0
    #: How many leases a node may hold: what it registered as ``max_concurrency`` (1 without), one, or any number.
    active_leases: Literal["max_concurrency", "one", "unlimited"] = "max_concurrency"
    #: Added to every ``lease_expires_at`` that is told, not to the one that counts: a service with a wrong clock.
    told_expiry_shift: float = 0.0

    #: A registration timestamp further off than this is refused (callback flow).
    timestamp_tolerance: float = 300.0
    #: True: call back while the registration request is still open. False: after it was answered.
    callback_inside: bool = False
    #: How often nodes registered with a URL are asked for ``/health``; None never.
    health_probe_interval: float | None = 30.0

    #: Largest single upload request; 0 is unlimited.
    request_max_bytes: int = 0
    multipart_enabled: bool = True
    part_size_bytes: int = 8 * 1024 * 1024
