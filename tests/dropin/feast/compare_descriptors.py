"""Compares our Feast contracts with those of the installed Feast SDK.

Runs inside the SDK's own environment, because a process can hold only one file of each
name in protobuf's default pool, and the SDK puts its own there. Ours go into a private one.

    .venv-feast/bin/python compare_descriptors.py DESCRIPTOR_SET

DESCRIPTOR_SET is a serialized google.protobuf.FileDescriptorSet with all imports. Prints
one JSON object: what was counted in the SDK (`files`, `messages`, `fields` and `rpcs` of the
registry server with all it imports, the same of the other files under `serving`), the
SDK's version as `feast`, and `differences`, one line each; none means wire-compatible.
"""

import importlib
import importlib.metadata
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool

REGISTRY = ("feast/registry/RegistryServer.proto",)
SERVING = (
    "feast/serving/Connector.proto",
    "feast/serving/GrpcServer.proto",
    "feast/serving/ServingService.proto",
    "feast/serving/TransformationService.proto",
    "feast/types/Field.proto",
)

# A fact is one thing that two contracts can disagree on: what it is about, and what it says.
Facts = dict[str, dict[str, Any]]
# Descriptors have no common stub for both implementations of protobuf.
Descriptor = Any


def installed(name: str) -> Descriptor:
    module = "feast.protos." + name.removesuffix(".proto").replace("/", ".") + "_pb2"
    return importlib.import_module(module).DESCRIPTOR


def closure(roots: list[Descriptor]) -> dict[str, Descriptor]:
    """The files and all that they import, without protobuf's own, by name."""
    found: dict[str, Descriptor] = {}
    pending = list(roots)
    while pending:
        file = pending.pop()
        if file.name.startswith("feast/") and file.name not in found:
            found[file.name] = file
            pending.extend(file.dependencies)
    return found


def messages_of(parent: Descriptor) -> Iterator[Descriptor]:
    """All messages of a file or a message, at any depth; map entries are part of their field."""
    is_file = hasattr(parent, "package")
    children = parent.message_types_by_name if is_file else parent.nested_types_by_name
    for message in children.values():
        if not message.GetOptions().map_entry:
            yield message
            yield from messages_of(message)


def type_of(field: Descriptor) -> str:
    """A field's type as one would write it: "int32", "map<string, feast.types.Value>"."""
    if field.message_type is not None:
        if field.message_type.GetOptions().map_entry:
            key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
            return f"map<{type_of(key)}, {type_of(value)}>"
        return str(field.message_type.full_name)
    if field.enum_type is not None:
        return str(field.enum_type.full_name)
    return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def field_fact(field: Descriptor) -> dict[str, Any]:
    return {
        "number": field.number,
        "type": type_of(field),
        "repeated": field.is_repeated,
        "packed": field.is_packed,
        "presence": field.has_presence,
        "oneof": field.containing_oneof.name if field.containing_oneof else None,
        "json name": field.json_name,
        "default": repr(field.default_value) if field.message_type is None else None,
    }


def enum_facts(enums: Any) -> Facts:
    return {f"enum {enum.full_name}": {value.name: value.number for value in enum.values} for enum in enums.values()}


def service_facts(service: Descriptor) -> Facts:
    return {
        f"rpc {method.full_name}": {
            "request": method.input_type.full_name,
            "response": method.output_type.full_name,
            "client streaming": method.client_streaming,
            "server streaming": method.server_streaming,
        }
        for method in service.methods
    }


def facts_of(file: Descriptor) -> Facts:
    """Everything that callers of a file can notice. Comments, order and options are not."""
    facts: Facts = {f"file {file.name}": {"package": file.package}}
    facts |= enum_facts(file.enum_types_by_name)
    for message in messages_of(file):
        facts[f"message {message.full_name}"] = {
            "file": file.name,
            "oneofs": sorted(oneof.name for oneof in message.oneofs),
        }
        facts |= enum_facts(message.enum_types_by_name)
        facts |= {f"field {field.full_name}": field_fact(field) for field in message.fields}
    for service in file.services_by_name.values():
        facts[f"service {service.full_name}"] = {"file": file.name}
        facts |= service_facts(service)
    return facts


def differences(theirs: Facts, ours: Facts) -> list[str]:
    lines = [f"{name}: missing in ours" for name in sorted(theirs.keys() - ours.keys())]
    lines += [f"{name}: only in ours" for name in sorted(ours.keys() - theirs.keys())]
    for name in sorted(theirs.keys() & ours.keys()):
        for aspect in sorted(theirs[name].keys() | ours[name].keys()):
            expected, found = theirs[name].get(aspect), ours[name].get(aspect)
            if expected != found:
                lines.append(f"{name}: {aspect} is {found!r}, Feast has {expected!r}")
    return lines


def count(facts: Facts) -> dict[str, int]:
    kinds = {"files": "file ", "messages": "message ", "fields": "field ", "rpcs": "rpc "}
    return {plural: sum(name.startswith(kind) for name in facts) for plural, kind in kinds.items()}


def merged(files: dict[str, Descriptor]) -> Facts:
    facts: Facts = {}
    for file in files.values():
        facts |= facts_of(file)
    return facts


def our_files(descriptor_set: Path) -> dict[str, Descriptor]:
    pool = DescriptorPool()
    protos = FileDescriptorSet.FromString(descriptor_set.read_bytes()).file
    for proto in protos:
        pool.Add(proto)
    return closure([pool.FindFileByName(proto.name) for proto in protos])


def main(descriptor_set: Path) -> None:
    registry = closure([installed(name) for name in REGISTRY])
    everything = closure([installed(name) for name in REGISTRY + SERVING])
    serving = {name: file for name, file in everything.items() if name not in registry}
    report = {
        "feast": importlib.metadata.version("feast"),
        **count(merged(registry)),
        "serving": count(merged(serving)),
        "differences": differences(merged(everything), merged(our_files(descriptor_set))),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: compare_descriptors.py DESCRIPTOR_SET")
    main(Path(sys.argv[1]))
