"""A compute node for the posemesh: it leases tasks, runs them and reports what came of them.

>>> import posemesh
>>> node = posemesh.Node()

Public names load when first used, so that importing this package stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from posemesh import telemetry as telemetry
    from posemesh.config import NodeConfig as NodeConfig
    from posemesh.control.driver import RuntimeDriver as RuntimeDriver
    from posemesh.control.errors import RuntimeControlPlaneError as RuntimeControlPlaneError
    from posemesh.control.errors import RuntimeDriverError as RuntimeDriverError
    from posemesh.control.plane import RuntimeControlPlane as RuntimeControlPlane
    from posemesh.errors import BadInput as BadInput
    from posemesh.errors import CallbackRefused as CallbackRefused
    from posemesh.errors import ChallengeRefused as ChallengeRefused
    from posemesh.errors import ConfigError as ConfigError
    from posemesh.errors import DiskFull as DiskFull
    from posemesh.errors import DuplicateRunner as DuplicateRunner
    from posemesh.errors import IllegalTransition as IllegalTransition
    from posemesh.errors import InvalidCid as InvalidCid
    from posemesh.errors import InvalidSpec as InvalidSpec
    from posemesh.errors import MissingField as MissingField
    from posemesh.errors import NodeStartError as NodeStartError
    from posemesh.errors import NodeStopped as NodeStopped
    from posemesh.errors import NoRunner as NoRunner
    from posemesh.errors import OperationRefused as OperationRefused
    from posemesh.errors import PosemeshError as PosemeshError
    from posemesh.errors import RegistrationRefused as RegistrationRefused
    from posemesh.errors import RunnerError as RunnerError
    from posemesh.errors import RunnerInternal as RunnerInternal
    from posemesh.errors import RunnerIo as RunnerIo
    from posemesh.errors import SignInRefused as SignInRefused
    from posemesh.errors import StorageError as StorageError
    from posemesh.errors import TargetError as TargetError
    from posemesh.errors import TaskStopped as TaskStopped
    from posemesh.errors import UndecodableLease as UndecodableLease
    from posemesh.errors import UnsupportedKind as UnsupportedKind
    from posemesh.errors import UploadFailed as UploadFailed
    from posemesh.errors import WireError as WireError
    from posemesh.hosting import Host as Host
    from posemesh.node import Node as Node
    from posemesh.runners.api import AccessTokenProvider as AccessTokenProvider
    from posemesh.runners.api import ArtifactSink as ArtifactSink
    from posemesh.runners.api import ControlPlane as ControlPlane
    from posemesh.runners.api import InputSource as InputSource
    from posemesh.runners.api import MaterializedInput as MaterializedInput
    from posemesh.runners.api import MultipartUpload as MultipartUpload
    from posemesh.runners.api import Runner as Runner
    from posemesh.runners.api import SyncRunner as SyncRunner
    from posemesh.runners.api import SyncTaskContext as SyncTaskContext
    from posemesh.runners.api import TaskContext as TaskContext
    from posemesh.runners.api import TaskCtx as TaskCtx
    from posemesh.secret import Secret as Secret
    from posemesh.types import Artifact as Artifact
    from posemesh.types import LeaseEnvelope as LeaseEnvelope
    from posemesh.types import TaskSpec as TaskSpec

__all__ = (
    "AccessTokenProvider",
    "Artifact",
    "ArtifactSink",
    "BadInput",
    "CallbackRefused",
    "ChallengeRefused",
    "ConfigError",
    "ControlPlane",
    "DiskFull",
    "DuplicateRunner",
    "Host",
    "IllegalTransition",
    "InputSource",
    "InvalidCid",
    "InvalidSpec",
    "LeaseEnvelope",
    "MaterializedInput",
    "MissingField",
    "MultipartUpload",
    "NoRunner",
    "Node",
    "NodeConfig",
    "NodeStartError",
    "NodeStopped",
    "OperationRefused",
    "PosemeshError",
    "RegistrationRefused",
    "Runner",
    "RunnerError",
    "RunnerInternal",
    "RunnerIo",
    "RuntimeControlPlane",
    "RuntimeControlPlaneError",
    "RuntimeDriver",
    "RuntimeDriverError",
    "Secret",
    "SignInRefused",
    "StorageError",
    "SyncRunner",
    "SyncTaskContext",
    "TargetError",
    "TaskContext",
    "TaskCtx",
    "TaskSpec",
    "TaskStopped",
    "UndecodableLease",
    "UnsupportedKind",
    "UploadFailed",
    "WireError",
    "telemetry",
)

__version__ = "0.1.0"

# Where each public name lives; the errors are all in one module.
_HOMES: Final = {
    "AccessTokenProvider": "posemesh.runners.api",
    "Artifact": "posemesh.types",
    "ArtifactSink": "posemesh.runners.api",
    "ControlPlane": "posemesh.runners.api",
    "Host": "posemesh.hosting",
    "InputSource": "posemesh.runners.api",
    "LeaseEnvelope": "posemesh.types",
    "MaterializedInput": "posemesh.runners.api",
    "MultipartUpload": "posemesh.runners.api",
    "Node": "posemesh.node",
    "NodeConfig": "posemesh.config",
    "Runner": "posemesh.runners.api",
    "RuntimeControlPlane": "posemesh.control.plane",
    "RuntimeControlPlaneError": "posemesh.control.errors",
    "RuntimeDriver": "posemesh.control.driver",
    "RuntimeDriverError": "posemesh.control.errors",
    "Secret": "posemesh.secret",
    "SyncRunner": "posemesh.runners.api",
    "SyncTaskContext": "posemesh.runners.api",
    "TaskContext": "posemesh.runners.api",
    "TaskCtx": "posemesh.runners.api",
    "TaskSpec": "posemesh.types",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'posemesh' has no attribute {name!r}")
    if name == "telemetry":
        return import_module("posemesh.telemetry")
    return getattr(import_module(_HOMES.get(name, "posemesh.errors")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
