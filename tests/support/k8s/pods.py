"""A pod template of the rendered manifests, as `podman kube play` takes it.

Podman knows Pods, ConfigMaps and claims, and no probes over HTTP: those are asked by the test. A
Secret becomes a ConfigMap with the same files. Ports are the host's, so each is replaced by a free
one.
"""

import base64
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import yaml

from tests.support.containers import Containers
from tests.support.k8s.manifests import Object, of_kind

__all__ = ["Pod"]

PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


class Pod:
    """A pod that podman plays; removed with its volumes at the end of `with`.

    :arg objects: The rendered manifests.
    :arg owner: The object of them with the pod's template.
    :arg name: The pod's name.
    :arg images: For each image of the manifests, the one to run.
    :arg variables: Variables that get another value, or are added.
    :arg replaced: Texts that are replaced in all variables and files, such as `nats:4222`.
    :arg folder: Gets the manifest that podman reads.
    :arg hosts: Host names with their addresses. Podman leaves out `hostAliases` of a pod that is on
        the machine's network, so these are a file.
    """

    def __init__(
        self,
        containers: Containers,
        objects: Sequence[Object],
        owner: Object,
        name: str,
        *,
        images: Mapping[str, str],
        variables: Mapping[str, str],
        replaced: Mapping[str, str],
        folder: Path,
        hosts: Mapping[str, str] | None = None,
    ) -> None:
        self._containers = containers
        self.name = name
        template = deepcopy(owner["spec"]["template"])
        self.spec: Object = template["spec"]
        (container,) = self.spec["containers"]
        self._more = []
        if hosts:
            path = folder / "hosts"
            lines = [f"{address} {host}\n" for host, address in hosts.items()]
            path.write_text("127.0.0.1 localhost\n" + "".join(lines))
            file = {"path": str(path), "type": "File"}
            self.spec["volumes"].append({"name": "hosts", "hostPath": file})
            mount = {"name": "hosts", "mountPath": "/etc/hosts", "readOnly": True}
            container["volumeMounts"].append(mount)
            self._more.append("--no-hosts")
        self._container = container["name"]
        self.probes = {key: container.pop(key) for key in PROBES if key in container}
        for each in ("ports", "lifecycle"):
            container.pop(each, None)
        container["image"] = images[container["image"]]
        configs = [_config_map(each, replaced) for each in of_kind(objects, "ConfigMap", "Secret")]
        claimed = [
            v.get("persistentVolumeClaim", {}).get("claimName") for v in self.spec["volumes"]
        ]
        claims = [
            each
            for each in of_kind(objects, "PersistentVolumeClaim")
            if each["metadata"]["name"] in claimed
        ]
        for claim in owner["spec"].get("volumeClaimTemplates", ()):
            volume = claim["metadata"]["name"]
            own = {"claimName": f"{volume}-{name}"}
            self.spec["volumes"].append({"name": volume, "persistentVolumeClaim": own})
            made = {"apiVersion": "v1", "kind": "PersistentVolumeClaim"}
            claims.append(made | {"metadata": {"name": own["claimName"]}, "spec": claim["spec"]})
        for volume in self.spec["volumes"]:
            if "secret" in volume:
                volume["configMap"] = {"name": volume.pop("secret")["secretName"]}
        for each in container["env"]:
            if "secretKeyRef" in each.get("valueFrom", {}):
                each["valueFrom"] = {"configMapKeyRef": each["valueFrom"]["secretKeyRef"]}
        container["env"] = [
            *(each for each in container["env"] if each["name"] not in variables),
            *({"name": key, "value": value} for key, value in variables.items()),
        ]
        for each in container["env"]:
            if "value" in each:
                each["value"] = _replace(each["value"], replaced)
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": template["metadata"]["labels"]},
            "spec": self.spec,
        }
        self._documents, self._claims = [*configs, pod], claims
        self._file = folder / f"{name}.yaml"

    @property
    def container(self) -> str:
        """The name that podman gives the container."""
        return f"{self.name}-{self._container}"

    def play(self) -> None:
        """Start it; again with the volumes that it has."""
        # Podman does not take a claim twice.
        claims, self._claims = self._claims, []
        self._file.write_text(yaml.safe_dump_all(claims + self._documents))
        self._containers.call(
            *("podman", "kube", "play", "--network=host", "--replace"),
            *("--log-driver=k8s-file", *self._more, str(self._file)),
        )

    def wait(self, timeout: float = 300) -> int:
        """The exit code of its container; it must end within that time."""
        said = self._containers.call("podman", "wait", self.container, timeout=timeout)
        return int(said.stdout)

    def signal(self, name: str) -> None:
        """Send a signal to its first process."""
        self._containers.call("podman", "kill", f"--signal={name}", self.container)

    def running(self) -> bool:
        """Whether its container runs."""
        state = self._containers.call(
            "podman", "inspect", "--format={{.State.Running}}", self.container, check=False
        )
        return state.stdout.strip() == "true"

    @property
    def log(self) -> str:
        """What its container has printed."""
        done = self._containers.call("podman", "logs", self.container, check=False)
        return done.stdout + done.stderr

    def inspect(self, format: str) -> str:  # noqa: A002  # podman's word
        """What podman says of its container."""
        said = self._containers.call("podman", "inspect", f"--format={format}", self.container)
        return said.stdout.strip()

    def __enter__(self) -> "Pod":
        return self

    def __exit__(self, *_: object) -> None:
        self._containers.call("podman", "kube", "down", str(self._file), check=False)
        for volume in self.spec["volumes"]:
            name = volume.get("persistentVolumeClaim", {}).get("claimName") or volume.get(
                "configMap", {}
            ).get("name")
            if name:
                self._containers.call("podman", "volume", "rm", "--force", name, check=False)


def _config_map(each: Object, replaced: Mapping[str, str]) -> Object:
    data = each["data"]
    if each["kind"] == "Secret":
        data = {key: base64.b64decode(text).decode() for key, text in data.items()}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": each["metadata"]["name"]},
        "data": {key: _replace(text, replaced) for key, text in data.items()},
    }


def _replace(text: str, replaced: Mapping[str, str]) -> str:
    for old, new in replaced.items():
        text = text.replace(old, new)
    return text
