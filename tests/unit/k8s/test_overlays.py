"""Every overlay is valid, and keeps to the policy; each rule of the policy can be broken."""

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest

from bytewax_jetstream.settings import JetStreamSettings, KafkaSettings, PoolSettings, RunSettings
from flows.flights.settings import FlightsSettings
from flows.kafka_to_jetstream import BridgeSettings
from tests.support.k8s.environment import secret_files, variables
from tests.support.k8s.manifests import OVERLAYS, Object, by_name, of_kind, rendered
from tests.support.k8s.policy import complaints
from tests.support.required import missing

KUBERNETES = "1.35"
MADE_BY_HAND = {"overlays/prod": ("brokers", "nats-tls")}
FLOWS = [("Job", "flights"), ("StatefulSet", "kafka-to-jetstream")]


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_overlay_is_valid_for_kubernetes(overlay: str) -> None:
    if find_spec("kubernetes_validate") is None:
        missing("kubernetes-validate is not installed: uv sync --group k8s, as make check does")
    kubernetes_validate = import_module("kubernetes_validate")  # has no annotations

    for each in rendered(overlay):
        if each["apiVersion"] != "monitoring.coreos.com/v1":
            kubernetes_validate.validate(each, KUBERNETES, strict=True)


def test_overlay_keeps_to_the_policy(overlay: str) -> None:
    assert complaints(rendered(overlay), MADE_BY_HAND.get(overlay, ())) == []


def test_pods_of_a_namespace_are_restricted(overlay: str) -> None:
    (namespace,) = of_kind(rendered(overlay), "Namespace")

    labels = namespace["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    others = [each for each in rendered(overlay) if each["kind"] != "Namespace"]
    assert {each["metadata"].get("namespace") for each in others} == {namespace["metadata"]["name"]}


@pytest.mark.parametrize(("kind", "name"), FLOWS)
def test_variables_of_a_pod_are_settings(
    overlay: str, kind: str, name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = rendered(overlay)
    (flow,) = by_name(objects, kind, name)["spec"]["template"]["spec"]["containers"]
    given = variables(objects, flow, pod_name=f"{name}-0")
    for file, text in secret_files(objects).items():
        (tmp_path / file).write_text(text)
    given["BYTEWAX_JETSTREAM_SECRETS_DIR"] = str(tmp_path)
    if overlay == "overlays/prod":  # what k8s/README.md tells to put into the Secret
        for field in ("USER", "PASSWORD", "KAFKA_USER", "KAFKA_PASSWORD"):
            (tmp_path / f"BYTEWAX_JETSTREAM_{field}").write_text("x")
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)

    run = RunSettings()
    assert (run.health_port, run.log_format) == (8081, "json")
    assert PoolSettings().budget_bytes == 64 * 1024 * 1024
    jetstream = JetStreamSettings()
    assert jetstream.model_fields_set >= {"servers", "user", "password"}
    assert jetstream.wants_tls == (overlay == "overlays/prod")
    replicas = 3 if overlay == "overlays/prod" else 1
    if name == "flights":
        assert FlightsSettings().replicas == replicas
    else:
        assert [stream.replicas for stream in jetstream.streams] == [replicas]
        assert BridgeSettings().subject.startswith("orders.")
        assert "brokers" in KafkaSettings().model_fields_set


def test_two_environments_have_the_same_dataflows() -> None:
    """Only the image, the brokers and the policy's peers differ."""
    dev, prod = (rendered(each) for each in OVERLAYS)
    for kind, name in FLOWS:
        one, other = (by_name(each, kind, name)["spec"] for each in (dev, prod))
        for spec in (one, other):
            pod = spec["template"]["spec"]
            pod["containers"][0]["image"] = ""
            pod["containers"][0]["envFrom"] = []
            pod["volumes"] = [each for each in pod["volumes"] if each["name"] != "brokers"]
        assert one == other


def _set(path: str, value: object) -> Callable[[Object], None]:
    """A change of an object: `a.0.b` is set, or removed where the value is None."""

    def change(at: Any) -> None:
        *parents, last = [int(word) if word.isdecimal() else word for word in path.split("/")]
        for word in parents:
            at = at[word]
        if value is None:
            del at[last]
        else:
            at[last] = value

    return change


SPEC = "spec/template/spec"
FLOW = f"{SPEC}/containers/0"
BREAKS: Sequence[tuple[str, str, str, object, str]] = [
    ("Job", "flights", f"{SPEC}/automountServiceAccountToken", None, "gets a token"),
    ("Job", "flights", f"{SPEC}/enableServiceLinks", True, "gets variables of Services"),
    ("Job", "flights", f"{SPEC}/hostNetwork", True, "has hostNetwork"),
    ("Job", "flights", f"{SPEC}/securityContext/runAsUser", 0, "may run as root"),
    ("Job", "flights", f"{SPEC}/securityContext/fsGroup", None, "may not write"),
    ("Job", "flights", f"{SPEC}/securityContext/seccompProfile", None, "no seccomp profile"),
    ("Job", "flights", f"{SPEC}/volumes/1/emptyDir", {}, "volume tmp has no limit"),
    ("Job", "flights", f"{SPEC}/volumes/1/hostPath", {"path": "/"}, "of kind hostPath"),
    ("Job", "flights", f"{SPEC}/volumes/2/secret/secretName", "x", "Secret x is not there"),
    ("Job", "flights", f"{SPEC}/volumes/0/name", "x", "volume data is not there"),
    ("Job", "flights", f"{FLOW}/securityContext/readOnlyRootFilesystem", None, "into its root"),
    ("Job", "flights", f"{FLOW}/securityContext/capabilities", None, "has capabilities"),
    ("Job", "flights", f"{FLOW}/securityContext/allowPrivilegeEscalation", None, "become root"),
    ("Job", "flights", f"{FLOW}/resources/requests/cpu", None, "requests no cpu"),
    ("Job", "flights", f"{FLOW}/resources/limits/memory", "1Gi", "below its limit"),
    ("Job", "flights", f"{FLOW}/image", "bytewax-jetstream", "has no version"),
    ("Job", "flights", f"{FLOW}/image", "bytewax-jetstream:latest", "has no version"),
    ("Job", "flights", f"{FLOW}/livenessProbe/httpGet/port", "x", "livenessProbe asks port x"),
    ("Job", "flights", f"{FLOW}/livenessProbe/httpGet/path", "/readyz", "does not ask /healthz"),
    ("Job", "flights", f"{SPEC}/terminationGracePeriodSeconds", 30, "is killed 30 s after"),
    ("Job", "flights", f"{FLOW}/ports/1/containerPort", 8082, "health on another port"),
    ("Job", "flights", f"{FLOW}/ports/0/containerPort", 3031, "metrics on another port"),
    ("Job", "flights", f"{FLOW}/volumeMounts/0/mountPath", "/d", "on a volume that stays"),
    ("Job", "flights", f"{FLOW}/volumeMounts/2/mountPath", "/d", "does not read its Secret"),
    ("Job", "flights", f"{FLOW}/args", ["run", "x"], "stopped as complete"),
    ("Job", "flights", f"{SPEC}/restartPolicy", "OnFailure", "hides exit codes"),
    ("Job", "flights", "spec/podFailurePolicy/rules/0/onExitCodes/values", [2], "tried again"),
    ("Job", "flights", "spec/podFailurePolicy/rules/1", {}, "counts evictions"),
    ("ConfigMap", "flights", "data/FLIGHTS_RUN_DIR", "/tmp/x", "FLIGHTS_RUN_DIR is not on"),
    ("ConfigMap", "flights", "data/BYTEWAX_JETSTREAM_POOL_BUDGET_BYTES", "268435456", "budget"),
    ("ConfigMap", "flights", "data/BYTEWAX_JETSTREAM_POOL_DRAIN_TIMEOUT", "40", "is killed 45 s"),
    ("StatefulSet", "kafka-to-jetstream", "spec/replicas", 2, "has 2 processes at"),
    ("StatefulSet", "kafka-to-jetstream", "spec/podManagementPolicy", None, "one process after"),
    ("StatefulSet", "kafka-to-jetstream", "spec/updateStrategy/type", "RollingUpdate", "images"),
    (
        "StatefulSet",
        "kafka-to-jetstream",
        "spec/persistentVolumeClaimRetentionPolicy/whenScaled",
        "Delete",
        "may lose its recovery store",
    ),
    ("StatefulSet", "kafka-to-jetstream", f"{FLOW}/env/0", {"name": "X", "value": ""}, "number"),
    ("StatefulSet", "kafka-to-jetstream", f"{FLOW}/env/4/value", "2", "fewer parts"),
    ("StatefulSet", "kafka-to-jetstream", "spec/serviceName", "x", "Service x is not there"),
    ("Service", "kafka-to-jetstream", "spec/clusterIP", None, "have no names"),
    ("Service", "kafka-to-jetstream", "spec/publishNotReadyAddresses", None, "before they are"),
    ("Service", "kafka-to-jetstream", "spec/ports/0/targetPort", "x", "have no port x"),
    ("Service", "flights", "spec/selector", {"a": "b"}, "the pods of 0 objects"),
    ("PodDisruptionBudget", "kafka-to-jetstream", "spec/maxUnavailable", 2, "at the same time"),
    ("ServiceMonitor", "dataflows", "spec/endpoints/0/port", "x", "has no such port"),
    ("ServiceMonitor", "dataflows", "spec/selector/matchLabels/a", "b", "does not select"),
    ("StatefulSet", "nats", f"{FLOW}/securityContext/readOnlyRootFilesystem", False, "its root"),
]


@pytest.mark.parametrize(
    ("kind", "name", "path", "value", "says"),
    BREAKS,
    ids=lambda value: value.rpartition("/")[2] if isinstance(value, str) and "/" in value else "",
)
def test_policy_finds_what_is_broken(
    kind: str, name: str, path: str, value: object, says: str
) -> None:
    objects = rendered("overlays/prod")
    _set(path, value)(by_name(objects, kind, name))

    found = complaints(objects, MADE_BY_HAND["overlays/prod"])

    assert any(says in each for each in found), found


def test_names_of_configuration_change_with_its_contents() -> None:
    objects = rendered("overlays/dev")
    for kind, name in FLOWS:
        config = by_name(objects, "ConfigMap", name)["metadata"]["name"]
        (flow,) = by_name(objects, kind, name)["spec"]["template"]["spec"]["containers"]
        assert config != name
        assert flow["envFrom"] == [{"configMapRef": {"name": config}}]
