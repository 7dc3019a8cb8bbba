"""The protocol of Golem's runtimes in Google's library, described once more and by other means than the codec's own."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from posemesh.wire import golem as wire

FRAMES = Path(__file__).parent / "unit" / "wire" / "golem_frames.json"

# A message a line: its fields as type, name and number. "*" repeats, and "a|" makes a member of the oneof a.
SCHEMA = """
Hello: string version 1
Output: type|uint32 at_end 2
RunProcess: string bin 1, *string args 2, string work_dir 3, Output stdout 4, Output stderr 5
KillProcess: uint64 pid 1, int32 signal 2
Shutdown:
Network: string addr 1, string gateway 2, string mask 3, string if_addr 4
HostsEntry: string key 1, string value 2
CreateNetwork: *Network networks 1, *HostsEntry hosts 2, NetworkInterface interface 3
Request: uint64 id 1, command|Hello hello 2, command|RunProcess run 10, command|KillProcess kill 11, \
command|Shutdown shutdown 12, command|CreateNetwork network 30
HelloReply: string version 1
ContextEntry: string key 1, string value 2
Error: ErrorCode code 1, string message 2, *ContextEntry context 3
RunReply: uint64 pid 1
KillReply:
ShutdownReply:
ProcessStatus: uint64 pid 1, bool running 2, int32 return_code 3, bytes stdout 4, bytes stderr 5
State: string name 1, bytes value 2
Counter: string name 1, double value 2
RuntimeStatus: kind|State state 1, kind|Counter counter 2
NetworkReply: endpoint|string unix_stream 1, endpoint|string unix_datagram 2, endpoint|string udp_datagram 3, \
endpoint|string tcp_listener 4, endpoint|string tcp_stream 5
Response: bool event 1, uint64 id 2, command|Error error 3, command|HelloReply hello 4, command|RunReply run 10, \
command|KillReply kill 11, command|ShutdownReply shutdown 12, command|ProcessStatus status 20, \
command|RuntimeStatus rt_status 21, command|NetworkReply network 30
"""
ENUMS = {"NetworkInterface": ("VPN", "INET"), "ErrorCode": ("INTERNAL", "NOT_FOUND", "BAD_REQUEST")}
FIELD = re.compile(r"(?:(\w+)\||(\*))?(\w+) (\w+) (\d+)")


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="golem.proto", package="golem", syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    entries = {}
    for line in SCHEMA.strip().splitlines():
        name, _, fields = line.partition(":")
        message = descriptor_pb2.DescriptorProto(name=name)
        oneofs: list[str] = []
        for oneof, star, kind, field_name, number in FIELD.findall(fields):
            field = message.field.add(name=field_name, number=int(number), label=3 if star else 1)
            if kind in ENUMS:
                field.type, field.type_name = field.TYPE_ENUM, f".golem.{kind}"
            elif kind in entries:
                field.type, field.type_name = field.TYPE_MESSAGE, f".golem.{name}.{kind}"
                message.nested_type.append(entries[kind])
            elif kind[0].isupper():
                field.type, field.type_name = field.TYPE_MESSAGE, f".golem.{kind}"
            else:
                field.type = getattr(field, f"TYPE_{kind.upper()}")
            if oneof:
                if oneof not in oneofs:
                    oneofs.append(oneof)
                    message.oneof_decl.add(name=oneof)
                field.oneof_index = oneofs.index(oneof)
        if name.endswith("Entry"):
            message.options.map_entry = True
            entries[name] = message
        else:
            file.message_type.append(message)
    return file


_POOL = descriptor_pool.DescriptorPool()
_POOL.Add(_file())


def google_class(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"golem.{name}"))


# Where a value of a oneof goes, by its class; "status" and the like are names only where classes cannot tell.
MEMBERS = {
    wire.Hello: "hello",
    wire.RunProcess: "run",
    wire.KillProcess: "kill",
    wire.Shutdown: "shutdown",
    wire.CreateNetwork: "network",
    wire.Error: "error",
    wire.HelloReply: "hello",
    wire.RunReply: "run",
    wire.KillReply: "kill",
    wire.ShutdownReply: "shutdown",
    wire.ProcessStatus: "status",
    wire.RuntimeStatus: "rt_status",
    wire.NetworkReply: "network",
    wire.State: "state",
    wire.Counter: "counter",
}


def to_google(message: wire.Message) -> Any:
    """``message`` as Google's library has it."""
    made = google_class(type(message).__name__)()
    made.SetInParent()
    for name in type(message).__match_args__:
        value = getattr(message, name)
        if value is None:
            continue
        if isinstance(value, wire.Endpoint):
            setattr(made, value.kind, value.address)
        elif name in ("command", "kind"):
            getattr(made, MEMBERS[type(value)]).CopyFrom(to_google(value))
        elif isinstance(value, wire.Message):
            getattr(made, name).CopyFrom(to_google(value))
        elif isinstance(value, dict):
            getattr(made, name).update(value)
        elif isinstance(value, tuple):
            getattr(made, name).extend(to_google(item) if isinstance(item, wire.Message) else item for item in value)
        else:
            setattr(made, name, value)
    return made


def google_bytes(message: Any) -> bytes:
    return bytes(message.SerializeToString(deterministic=True))


# -- The golden frames ----------------------------------------------------------------------------------------------

COMMANDS: dict[str, dict[str, type[wire.Message]]] = {
    kind: {MEMBERS[member]: member for member in members}
    for kind, members in {
        "requests": (wire.Hello, wire.RunProcess, wire.KillProcess, wire.Shutdown, wire.CreateNetwork),
        "responses": (
            wire.Error,
            wire.HelloReply,
            wire.RunReply,
            wire.KillReply,
            wire.ShutdownReply,
            wire.ProcessStatus,
            wire.RuntimeStatus,
            wire.NetworkReply,
        ),
    }.items()
}


def golden() -> Any:
    return json.loads(FRAMES.read_text(encoding="utf-8"))


def unhex(text: str) -> bytes:
    return bytes.fromhex(re.sub(r"\((\w\w)\*(\d+)\)", lambda run: run[1] * int(run[2]), text))


def golden_messages() -> Iterator[tuple[str, bytes, wire.Request | wire.Response]]:
    """Every frame that is written: its name, its bytes and its message."""
    for kind, made_of in (("requests", wire.Request), ("responses", wire.Response)):
        for one in golden()[kind]:
            said = dict(one["message"])
            ours = {name: said.pop(name) for name in ("id", "event") if name in said}
            for name, value in said.items():
                ours["command"] = _command(COMMANDS[kind][name], value)
            yield one["name"], unhex(one["hex"]), made_of(**ours)


def _command(kind: type[wire.Message], said: dict[str, Any]) -> wire.Message:
    if kind is wire.NetworkReply:
        return wire.NetworkReply(*(wire.Endpoint(*item) for item in said.items()))
    if kind is wire.RuntimeStatus:
        parts = {"state": wire.State, "counter": wire.Counter}
        return wire.RuntimeStatus(*(_command(parts[name], value) for name, value in said.items()))
    values: dict[str, Any] = {}
    for name, value in said.items():
        if name == "value_bits":
            values["value"] = struct.unpack(">d", bytes.fromhex(value))[0]
        elif name.endswith("_hex"):
            values[name.removesuffix("_hex")] = unhex(value)
        elif name in ("stdout", "stderr"):
            values[name] = wire.Output(**value)
        elif name == "networks":
            values[name] = [wire.Network(**network) for network in value]
        else:
            values.setdefault(name, value)
    return kind(**values)
