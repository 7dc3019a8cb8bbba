"""A whole posemesh network on one machine, for development and tests.

Discovery service, task service and domain server in one process, as strict as the real ones: what those refuse
is refused here, and written down in ``Devnet.violations``.
"""

from __future__ import annotations

from posemesh.devnet.config import DevnetConfig
from posemesh.devnet.server import Devnet, Faults, Replies, SeenRequest, cut

__all__ = ("Devnet", "DevnetConfig", "Faults", "Replies", "SeenRequest", "cut")
