"""What Kustomize makes of `k8s/`, as objects."""

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.support.required import missing

__all__ = ["K8S", "OVERLAYS", "Object", "by_name", "of_kind", "pod_specs", "render", "rendered"]

Object = dict[str, Any]

K8S = Path(__file__).parents[3] / "k8s"
OVERLAYS = tuple(sorted(f"overlays/{each.name}" for each in (K8S / "overlays").iterdir()))


@cache
def render(folder: str) -> str:
    """The manifests of a folder of `k8s/`, as YAML. Without Kustomize the test is skipped."""
    if kubectl := shutil.which("kubectl"):
        command = [kubectl, "kustomize"]
    elif kustomize := shutil.which("kustomize"):
        command = [kustomize, "build"]
    else:
        missing("neither kubectl nor kustomize is on PATH: install one of them")
    done = subprocess.run(
        [*command, str(K8S / folder)], capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    return done.stdout


def rendered(folder: str) -> list[Object]:
    """The objects of a folder of `k8s/`; the caller may change them."""
    return deepcopy(_objects(folder))


@cache
def _objects(folder: str) -> list[Object]:
    return list(yaml.load_all(render(folder), Loader=yaml.CSafeLoader))


def of_kind(objects: Sequence[Object], *kinds: str) -> list[Object]:
    """Those of some kinds."""
    return [each for each in objects if each["kind"] in kinds]


def by_name(objects: Sequence[Object], kind: str, name: str) -> Object:
    """The object of this name; a ConfigMap or Secret may have a hash behind it."""
    found = [
        each
        for each in of_kind(objects, kind)
        if each["metadata"]["name"] == name
        or (kind in ("ConfigMap", "Secret") and each["metadata"]["name"][:-11] == name)
    ]
    assert len(found) == 1, f"{kind} {name}: {[each['metadata']['name'] for each in found]}"
    return found[0]


def pod_specs(objects: Sequence[Object]) -> Iterator[tuple[Object, Object]]:
    """Each object that makes pods, with the template of them."""
    for each in of_kind(objects, "Job", "StatefulSet", "Deployment", "DaemonSet"):
        yield each, each["spec"]["template"]
