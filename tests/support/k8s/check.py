"""Asks a real kube-apiserver about every overlay, without a cluster: `make k8s-check`.

The server is built once from Kubernetes' Go modules and kept in the cache; etcd comes from the
system. Nothing is scheduled: there are no controllers and no nodes. Every object is applied with a
server-side dry run, under PodSecurity "restricted"; a warning is an error. So is a broken object
that the server takes: each kind of mistake is made once on purpose.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from bytewax_jetstream.testing.process import free_ports
from k8s.rescale.__main__ import manifest
from tests.support.containers import CACHE
from tests.support.k8s.manifests import OVERLAYS, Object, by_name, of_kind, pod_specs, rendered

__all__ = ["main"]

SOURCE = Path(__file__).with_name("apiserver")
OPERATOR = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
CRDS = ("servicemonitors", "prometheusrules")
START_SECONDS = 180
SERVICES = "10.96.0.0/16"
"""The addresses of Services, which this server never gives out."""


class CheckError(Exception):
    """The check cannot be made, or found something; the message says what."""


class Server:
    """A kube-apiserver, as kubectl reaches it."""

    def __init__(self, folder: Path) -> None:
        self._config = folder / "kubeconfig"

    def kubectl(
        self, *arguments: str, objects: Sequence[Object] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl, with objects on its standard input."""
        return subprocess.run(
            ["kubectl", f"--kubeconfig={self._config}", *arguments],
            input=yaml.safe_dump_all(objects),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def must(self, *arguments: str, objects: Sequence[Object] = ()) -> str:
        """As `kubectl`, and it must succeed."""
        done = self.kubectl(*arguments, objects=objects)
        if done.returncode:
            raise CheckError(f"kubectl {' '.join(arguments[:3])}: {done.stderr.strip()}")
        return done.stdout

    def complaint(self, objects: Sequence[Object]) -> str:
        """Why the server does not take these as they are; empty when it does."""
        done = self.kubectl(
            *("apply", "--server-side", "--dry-run=server", "--validate=strict"),
            *("--warnings-as-errors", "-f", "-"),
            objects=objects,
        )
        return done.stderr.strip() if done.returncode else ""


def _needed() -> None:
    missing = [each for each in ("kubectl", "etcd", "go") if not shutil.which(each)]
    if missing:
        raise CheckError(
            f"{', '.join(missing)} not found: kubectl, Go and etcd (Debian: etcd-server) are needed"
        )


def _version() -> str:
    found = [line.split() for line in (SOURCE / "go.mod").read_text().splitlines()]
    return next(words[-1] for words in found if "k8s.io/kubernetes" in words)


def _binary() -> Path:
    """The server, built if it is not in the cache."""
    binary = CACHE / "kubernetes" / f"kube-apiserver-{_version()}"
    if not binary.exists():
        print(f"building kube-apiserver {_version()}: several minutes, once", flush=True)
        binary.parent.mkdir(parents=True, exist_ok=True)
        made = binary.with_suffix(f".{os.getpid()}")
        # A build from modules does not know its version, and kubectl cannot read what it says then.
        said = f"-X k8s.io/component-base/version.gitVersion={_version()}"
        flags = ["-trimpath", f"-ldflags=-s -w {said}", "-o", str(made), "."]
        subprocess.run(["go", "build", *flags], cwd=SOURCE, check=True)
        made.rename(binary)
    return binary


def _custom_resources() -> list[Object]:
    """What the Prometheus operator adds to Kubernetes."""
    done = subprocess.run(
        ["go", "mod", "download", "-json", OPERATOR], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise CheckError(f"{OPERATOR} cannot be had: {done.stdout}{done.stderr}")
    folder = Path(json.loads(done.stdout)["Dir"]) / "example" / "prometheus-operator-crd"
    paths = [folder / f"monitoring.coreos.com_{name}.yaml" for name in CRDS]
    return [yaml.load(path.read_text(), Loader=yaml.CSafeLoader) for path in paths]


@contextmanager
def _started(binary: Path) -> Iterator[Server]:
    """An empty cluster's API on loopback, until the end of `with`."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="k8s-check-")))
        client, peer, port = free_ports(3)
        etcd = f"http://127.0.0.1:{client}"
        _run(
            stack,
            folder / "etcd.log",
            *("etcd", "--data-dir", str(folder / "etcd")),
            *("--listen-client-urls", etcd, "--advertise-client-urls", etcd),
            *("--listen-peer-urls", f"http://127.0.0.1:{peer}"),
        )
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        (folder / "accounts.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        token = secrets.token_hex(16)
        (folder / "tokens.csv").write_text(f"{token},checker,checker,system:masters\n")
        server = _run(
            stack,
            folder / "server.log",
            str(binary),
            f"--etcd-servers={etcd}",
            *("--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"),
            f"--secure-port={port}",
            f"--cert-dir={folder}",
            f"--token-auth-file={folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={folder / 'accounts.key'}",
            f"--service-account-signing-key-file={folder / 'accounts.key'}",
            f"--service-cluster-ip-range={SERVICES}",
            # No controller makes the accounts that it would look for.
            "--disable-admission-plugins=ServiceAccount",
        )
        (folder / "kubeconfig").write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "check",
                    "clusters": [
                        {
                            "name": "check",
                            "cluster": {
                                "server": f"https://127.0.0.1:{port}",
                                "certificate-authority": str(folder / "apiserver.crt"),
                            },
                        }
                    ],
                    "users": [{"name": "check", "user": {"token": token}}],
                    "contexts": [
                        {"name": "check", "context": {"cluster": "check", "user": "check"}}
                    ],
                }
            )
        )
        reached = Server(folder)
        deadline = time.monotonic() + START_SECONDS
        while reached.kubectl("get", "--raw", "/readyz").returncode:
            if server.poll() is not None or time.monotonic() > deadline:
                log = (folder / "server.log").read_text()[-4_000:]
                raise CheckError(f"the server did not start; its log:\n{log}")
            time.sleep(0.5)
        yield reached


def _run(stack: ExitStack, log: Path, *command: str) -> "subprocess.Popen[bytes]":
    running = subprocess.Popen(
        command, stdout=stack.enter_context(log.open("wb")), stderr=subprocess.STDOUT
    )

    def end() -> None:
        running.terminate()
        try:
            running.wait(10)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()

    stack.callback(end)
    return running


def _check_overlay(server: Server, overlay: str) -> list[str]:
    """What the server says of an overlay, of the Pods it makes, and of the Job that rescales it."""
    objects = rendered(overlay)
    (namespace,) = of_kind(objects, "Namespace")
    server.must("apply", "-f", "-", objects=[namespace])
    place = namespace["metadata"]["name"]
    pods = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": owner["metadata"]["name"],
                "namespace": place,
                "labels": template["metadata"]["labels"],
            },
            "spec": _with_claims(owner, template["spec"]),
        }
        for owner, template in pod_specs(objects)
    ]
    stateful_set = by_name(objects, "StatefulSet", "kafka-to-jetstream")
    found = []
    for what, given in (
        ("objects", [each for each in objects if each is not namespace]),
        ("pods, admitted as a controller would make them", pods),
        ("objects to rescale from 3 to 2 processes", manifest(stateful_set, 2)["items"]),
        ("objects to rescale from 3 to 5 processes", manifest(stateful_set, 5)["items"]),
    ):
        complaint = server.complaint(given)
        print(f"{overlay}: {len(given)} {what}: {complaint or 'taken, without a warning'}")
        found += [complaint] if complaint else []
    return found


def _with_claims(owner: Object, spec: Object) -> Object:
    claims = [each["metadata"]["name"] for each in owner["spec"].get("volumeClaimTemplates", ())]
    own = [{"name": each, "persistentVolumeClaim": {"claimName": each}} for each in claims]
    return spec | {"volumes": spec.get("volumes", []) + own}


def _flow_of(objects: Sequence[Object]) -> Object:
    stateful_set = by_name(objects, "StatefulSet", "kafka-to-jetstream")
    spec: Object = stateful_set["spec"]["template"]["spec"]
    return spec


MISTAKES: dict[str, tuple[Callable[[list[Object]], object], str]] = {
    "a field that does not exist": (
        lambda objects: _flow_of(objects).update(hostname_="x"),
        "field not declared in schema",
    ),
    "a container that may become root": (
        lambda objects: _flow_of(objects)["containers"][0].pop("securityContext"),
        "would violate PodSecurity",
    ),
    "a volume that is not there": (
        lambda objects: _flow_of(objects)["containers"][0]["volumeMounts"][1].update(name="x"),
        "Not found",
    ),
    "a Job whose pods are restarted in their place": (
        lambda objects: by_name(objects, "Job", "flights")["spec"]["template"]["spec"].update(
            restartPolicy="OnFailure"
        ),
        "restartPolicy",
    ),
    "a policy for a port that is none": (
        lambda objects: by_name(objects, "NetworkPolicy", "flights")["spec"]["egress"][0]["ports"][
            0
        ].update(port=70_000),
        "must be between 1 and 65535",
    ),
    "an interval that is none": (
        lambda objects: by_name(objects, "ServiceMonitor", "dataflows")["spec"]["endpoints"][
            0
        ].update(interval="15 seconds"),
        "spec.endpoints[0].interval",
    ),
}


def _check_mistakes(server: Server) -> list[str]:
    """Every mistake must be refused, for its own reason."""
    found = []
    for mistake, (make, reason) in MISTAKES.items():
        objects = [each for each in rendered("overlays/prod") if each["kind"] != "Namespace"]
        make(objects)
        complaint = server.complaint(objects)
        if reason in complaint:
            print(f"refused on purpose: {mistake}")
        else:
            found.append(f"{mistake} was not refused as {reason!r}: {complaint or 'taken'}")
            print(found[-1])
    return found


def main() -> int:
    """Check every overlay; returns the exit code."""
    try:
        _needed()
        binary = _binary()
        began = time.monotonic()
        with _started(binary) as server:
            version = json.loads(server.must("version", "-o", "json"))["serverVersion"]
            print(
                f"kube-apiserver {version['gitVersion']} of {_version()}, kubectl apply --dry-run"
            )
            server.must("create", "-f", "-", objects=_custom_resources())
            for name in CRDS:
                server.must(
                    "wait", "--for=condition=Established", f"crd/{name}.monitoring.coreos.com"
                )
            found = [each for overlay in OVERLAYS for each in _check_overlay(server, overlay)]
            found += _check_mistakes(server)
    except CheckError as error:
        print(f"k8s-check: {error}", file=sys.stderr)
        return 1
    print(f"k8s-check: {'FAILED' if found else 'passed'} in {time.monotonic() - began:.0f} s")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
