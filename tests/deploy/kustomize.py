"""Renders a kustomization where there is no kustomize: just what ours use, and a KeyError for anything else.

A test holds the result against that of `kubectl kustomize`, where there is one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]

_KNOWN = {
    "apiVersion", "kind", "resources", "components", "namespace", "labels", "configMapGenerator", "images", "patches",
}  # fmt: skip
_NAMESPACELESS = {"Namespace"}
# How the elements of a list are told apart when one list is merged into another; others are replaced whole.
_MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
}


def render(folder: Path) -> list[Manifest]:
    """All objects of a kustomization."""
    objects: list[Manifest] = []
    _build(folder.resolve(), objects)
    for each in [each for each in objects if each.get("$hash")]:
        _rename(objects, each)
    for each in objects:
        each.pop("$hash", None)
    return objects


def _build(folder: Path, objects: list[Manifest]) -> None:
    """Add what a folder names to the objects; then change all of them as it says."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unknown = kustomization.keys() - _KNOWN
    if unknown:
        raise KeyError(f"{folder}: {unknown}")
    for name in kustomization.get("resources", ()):
        path = folder / name
        if path.is_dir():
            inner: list[Manifest] = []
            _build(path, inner)
            objects += inner
        else:
            objects += [each for each in yaml.safe_load_all(path.read_text()) if each]
    for name in kustomization.get("components", ()):
        _build(folder / name, objects)
    for generator in kustomization.get("configMapGenerator", ()):
        _generate(folder, objects, **generator)
    for patch in kustomization.get("patches", ()):
        _patch(folder, objects, **patch)
    for each in objects:
        if "namespace" in kustomization and each["kind"] not in _NAMESPACELESS:
            each["metadata"]["namespace"] = kustomization["namespace"]
        for labels in kustomization.get("labels", ()):
            _label(each, **labels)
        for image in kustomization.get("images", ()):
            _name_image(each, **image)


def _generate(
    folder: Path,
    objects: list[Manifest],
    *,
    name: str,
    literals: list[str] = [],  # noqa: B006 - never changed
    files: list[str] = [],  # noqa: B006
    behavior: str = "create",
    options: Mapping[str, Any] = {},
) -> None:
    data = dict(literal.split("=", 1) for literal in literals) | {file: (folder / file).read_text() for file in files}
    if behavior == "merge":
        find(objects, "ConfigMap", name)["data"].update(data)
        return
    if behavior != "create" or options.keys() - {"disableNameSuffixHash", "labels"}:
        raise KeyError(f"{folder}: {behavior}, {options}")
    metadata = {"name": name} | ({"labels": options["labels"]} if "labels" in options else {})
    hashed = not options.get("disableNameSuffixHash", False)
    objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data, "$hash": hashed})


def _rename(objects: list[Manifest], config: Manifest) -> None:
    """Append kustomize's hash of the data (it leaves out the name) to the name, and to whatever refers to it."""
    name = config["metadata"]["name"]
    encoded = json.dumps(
        {"data": config["data"], "kind": "ConfigMap", "name": ""}, sort_keys=True, separators=(",", ":")
    )
    digest = hashlib.sha256(encoded.encode()).hexdigest()[:10]
    config["metadata"]["name"] = f"{name}-{digest.translate(str.maketrans('013ae', 'ghkmt'))}"
    for each in objects:
        for container in containers(each):
            for source in container.get("envFrom", ()):
                if source.get("configMapRef", {}).get("name") == name:
                    source["configMapRef"]["name"] = config["metadata"]["name"]


def _label(each: Manifest, *, pairs: Mapping[str, str], includeTemplates: bool = False) -> None:  # noqa: N803 - kustomize's
    places = [each["metadata"]]
    if includeTemplates and "template" in each.get("spec", {}):
        places.append(each["spec"]["template"]["metadata"])
    for place in places:
        place.setdefault("labels", {}).update(pairs)


def _name_image(each: Manifest, *, name: str, newTag: str) -> None:  # noqa: N803 - kustomize's
    for container in containers(each):
        if container["image"].partition(":")[0] == name:
            container["image"] = f"{name}:{newTag}"


def _patch(
    folder: Path, objects: list[Manifest], *, patch: str = "", path: str = "", target: Mapping[str, str] | None = None
) -> None:
    change = yaml.safe_load(patch or (folder / path).read_text())
    if target is None:
        target = {"kind": change["kind"], "name": change["metadata"]["name"]}
    if target.keys() - {"kind", "name"}:
        raise KeyError(f"{folder}: {target}")
    found = [
        each
        for each in objects
        if each["kind"] == target["kind"] and target.get("name") in {None, each["metadata"]["name"]}
    ]
    if not found:
        raise KeyError(f"{folder}: nothing is {target}")
    for each in found:
        if isinstance(change, list):
            for operation in change:
                _operate(each, **operation)
        elif change.get("$patch") == "delete":
            objects.remove(each)
        else:
            _merge(each, change)


def _operate(each: Any, *, op: str, path: str, value: Any) -> None:
    *parents, last = path.strip("/").split("/")
    for parent in parents:
        each = each[int(parent)] if isinstance(each, list) else each[parent]
    if op != "replace" or last not in each:
        raise KeyError(f"{op} {path}")
    each[last] = value


def _merge(into: Manifest, change: Mapping[str, Any]) -> None:
    for name, value in change.items():
        key = _MERGE_KEYS.get(name)
        if value is None:
            into.pop(name, None)
        elif isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        elif key and isinstance(into.get(name), list) and all(key in element for element in value):
            known = {element[key]: element for element in into[name]}
            for element in value:
                if element[key] in known:
                    _merge(known[element[key]], element)
            into[name][:0] = [deepcopy(element) for element in value if element[key] not in known]
        else:
            into[name] = deepcopy(value)


def find(objects: list[Manifest], kind: str, name: str) -> Manifest:
    """The object of this kind and name. A KeyError if there is none."""
    for each in objects:
        if (each["kind"], each["metadata"]["name"]) == (kind, name):
            return each
    raise KeyError(f"{kind} {name}")


def containers(each: Manifest) -> Iterator[dict[str, Any]]:
    """Those of an object's pods, first those that run before the others."""
    spec = pod(each) or {}
    yield from spec.get("initContainers", ())
    yield from spec.get("containers", ())


def pod(each: Manifest) -> dict[str, Any] | None:
    """The specification of an object's pods."""
    found: dict[str, Any] | None = each.get("spec", {}).get("template", {}).get("spec")
    return found


def mounted(each: Manifest, container: Mapping[str, Any]) -> dict[str, str]:
    """Where a container finds files of Secrets: the Secret's name by path."""
    volumes = (pod(each) or {}).get("volumes", ())
    secrets = {volume["name"]: volume.get("secret", {}).get("secretName") for volume in volumes}
    mounts = {mount["mountPath"]: secrets.get(mount["name"]) for mount in container.get("volumeMounts", ())}
    return {path: secret for path, secret in mounts.items() if secret}
