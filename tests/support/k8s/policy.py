"""What every overlay of `k8s/` keeps to, beyond what a schema can say."""

from collections.abc import Iterator, Sequence

from bytewax_jetstream import drain
from bytewax_jetstream.exit_codes import ExitCode
from bytewax_jetstream.settings import PoolSettings
from tests.support.k8s.environment import variables
from tests.support.k8s.manifests import Object, of_kind, pod_specs

__all__ = ["complaints"]

NEEDS_MEMORY = 3
"""Bytes of memory for a byte of the pool's budget, at most."""
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def complaints(objects: Sequence[Object], made_by_hand: Sequence[str] = ()) -> list[str]:
    """What is wrong, each with the name of the object.

    :arg made_by_hand: Secrets that the overlay leaves to be made before.
    """
    found = []
    for owner, template in pod_specs(objects):
        name = f"{owner['kind']} {owner['metadata']['name']}"
        checks = [
            _pod(template),
            _containers(template),
            _references(objects, owner, template, made_by_hand),
        ]
        if template["metadata"]["labels"]["app.kubernetes.io/component"] == "dataflow":
            checks += [_dataflow(objects, owner, template)]
            checks += [_job(owner) if owner["kind"] == "Job" else _stateful_set(objects, owner)]
        found += [f"{name}: {each}" for check in checks for each in check]
    found += _selectors(objects)
    return found


def _pod(template: Object) -> Iterator[str]:
    pod = template["spec"]
    if pod.get("automountServiceAccountToken") is not False:
        yield "gets a token of Kubernetes"
    if pod.get("enableServiceLinks") is not False:
        yield "gets variables of Services"
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            yield f"has {field}"
    security = pod.get("securityContext", {})
    if not security.get("runAsNonRoot") or not security.get("runAsUser"):
        yield "may run as root"
    if not security.get("fsGroup"):
        yield "has volumes that it may not write"
    if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "has no seccomp profile"
    kinds = {kind for volume in pod.get("volumes", ()) for kind in volume if kind != "name"}
    if extra := kinds - {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}:
        yield f"has volumes of kind {', '.join(extra)}"
    for volume in pod.get("volumes", ()):
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
            yield f"volume {volume['name']} has no limit"


def _containers(template: Object) -> Iterator[str]:
    pod = template["spec"]
    for container in pod["containers"] + pod.get("initContainers", []):
        security = container.get("securityContext", {})
        if security.get("allowPrivilegeEscalation") is not False:
            yield "may become root"
        if security.get("readOnlyRootFilesystem") is not True:
            yield "may write into its root"
        if security.get("capabilities") != {"drop": ["ALL"]}:
            yield "has capabilities"
        resources = container.get("resources", {})
        for kind in ("cpu", "memory", "ephemeral-storage"):
            if kind not in resources.get("requests", {}):
                yield f"requests no {kind}"
            if kind != "cpu" and kind not in resources.get("limits", {}):
                yield f"has no limit of {kind}"
        if resources["requests"].get("memory") != resources["limits"].get("memory"):
            yield "may be killed below its limit of memory"
        if container["image"].partition(":")[2] in ("", "latest"):
            yield f"image {container['image']} has no version"
        ports = {port["name"] for port in container.get("ports", ())}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            how = container.get(probe, {})
            port = how.get("httpGet", how.get("tcpSocket", {})).get("port")
            if port not in ports:
                yield f"{probe} asks port {port}"


def _references(
    objects: Sequence[Object], owner: Object, template: Object, made_by_hand: Sequence[str]
) -> Iterator[str]:
    pod = template["spec"]
    there = {(each["kind"], each["metadata"]["name"]) for each in objects}
    there |= {("Secret", name) for name in made_by_hand}
    needed = []
    for volume in pod.get("volumes", ()):
        if "configMap" in volume:
            needed.append(("ConfigMap", volume["configMap"]["name"]))
        if "secret" in volume:
            needed.append(("Secret", volume["secret"]["secretName"]))
        if "persistentVolumeClaim" in volume:
            needed.append(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
    for container in pod["containers"]:
        needed += [("ConfigMap", e["configMapRef"]["name"]) for e in container.get("envFrom", ())]
        for each in container.get("env", ()):
            if "secretKeyRef" in each.get("valueFrom", {}):
                needed.append(("Secret", each["valueFrom"]["secretKeyRef"]["name"]))
    if "serviceAccountName" in pod:
        needed.append(("ServiceAccount", pod["serviceAccountName"]))
    if "serviceName" in owner["spec"]:
        needed.append(("Service", owner["spec"]["serviceName"]))
    for kind, name in sorted(set(needed) - there):
        yield f"{kind} {name} is not there"
    volumes = {volume["name"] for volume in pod.get("volumes", ())} | _claims(owner)
    for container in pod["containers"]:
        for mount in container.get("volumeMounts", ()):
            if mount["name"] not in volumes:
                yield f"volume {mount['name']} is not there"


def _claims(owner: Object) -> set[str]:
    return {each["metadata"]["name"] for each in owner["spec"].get("volumeClaimTemplates", ())}


def _dataflow(objects: Sequence[Object], owner: Object, template: Object) -> Iterator[str]:
    pod = template["spec"]
    (flow,) = pod["containers"]
    given = variables(objects, flow)
    timeout = given.get("BYTEWAX_JETSTREAM_POOL_DRAIN_TIMEOUT")
    drains = float(timeout) if timeout else PoolSettings.model_fields["drain_timeout"].default
    grace = pod.get("terminationGracePeriodSeconds", 30)
    if grace <= drains + 2 * drain.GRACE:
        yield f"is killed {grace} s after the signal, in the midst of its drain"
    for probe, path in (
        ("startupProbe", "/healthz"),
        ("livenessProbe", "/healthz"),
        ("readinessProbe", "/readyz"),
    ):
        if flow.get(probe, {}).get("httpGet") != {"path": path, "port": "health"}:
            yield f"{probe} does not ask {path}"
    ports = {port["name"]: port["containerPort"] for port in flow["ports"]}
    if given.get("BYTEWAX_JETSTREAM_RUN_HEALTH_PORT") != str(ports["health"]):
        yield "serves health on another port"
    if given.get("BYTEWAX_DATAFLOW_API_PORT") != str(ports["metrics"]):
        yield "serves metrics on another port"
    if given.get("BYTEWAX_DATAFLOW_API_ENABLED") != "true":
        yield "serves no metrics"
    if given.get("BYTEWAX_JETSTREAM_RUN_LOG_FORMAT") != "json":
        yield "does not log JSON"
    mounts = {mount["name"]: mount["mountPath"] for mount in flow["volumeMounts"]}
    kept = _claims(owner) | {
        each["name"] for each in pod["volumes"] if "persistentVolumeClaim" in each
    }
    directories = [f"{mounts[name]}/" for name in kept & mounts.keys()]
    for variable in ("BYTEWAX_RECOVERY_DIRECTORY", "FLIGHTS_RUN_DIR"):
        if variable in given and not given[variable].startswith(tuple(directories)):
            yield f"{variable} is not on a volume that stays"
    if "BYTEWAX_RECOVERY_DIRECTORY" not in given:
        yield "has no recovery store"
    if given.get("BYTEWAX_JETSTREAM_SECRETS_DIR") != mounts.get("brokers"):
        yield "does not read its Secret"
    limit = flow["resources"]["limits"]["memory"]
    budget = int(given["BYTEWAX_JETSTREAM_POOL_BUDGET_BYTES"])
    if NEEDS_MEMORY * budget > int(limit[:-2]) * UNITS[limit[-2:]]:
        yield f"a full budget of {budget} bytes is more than {limit}"


def _job(owner: Object) -> Iterator[str]:
    spec = owner["spec"]
    pod = spec["template"]["spec"]
    if "--must-finish" not in pod["containers"][0]["args"]:
        yield "counts a run that was stopped as complete"
    if pod["restartPolicy"] != "Never":
        yield "hides exit codes from its failure policy"
    rules = spec.get("podFailurePolicy", {}).get("rules", [{}])
    ends = {
        "containerName": pod["containers"][0]["name"],
        "operator": "In",
        "values": [int(ExitCode.USAGE), int(ExitCode.REFUSED)],
    }
    if {"action": "FailJob", "onExitCodes": ends} not in rules:
        yield "is tried again where that cannot help"
    evicted = [{"type": "DisruptionTarget", "status": "True"}]
    if {"action": "Ignore", "onPodConditions": evicted} not in rules:
        yield "counts evictions as failures"


def _stateful_set(objects: Sequence[Object], owner: Object) -> Iterator[str]:
    spec, name = owner["spec"], owner["metadata"]["name"]
    (flow,) = spec["template"]["spec"]["containers"]
    given = variables(objects, flow, pod_name=f"{name}-0")
    if (
        given.get("BYTEWAX_STATEFULSET_NAME") != name
        or given.get("BYTEWAX_POD_NAME") != f"{name}-0"
    ):
        yield "does not tell a process its number"
    port = next(each["containerPort"] for each in flow["ports"] if each["name"] == "cluster")
    addresses = [each.strip() for each in given["BYTEWAX_ADDRESSES"].split(";")]
    if addresses != [f"{name}-{i}.{spec['serviceName']}:{port}" for i in range(spec["replicas"])]:
        yield f"has {spec['replicas']} processes at the addresses {addresses}"
    if int(given["BYTEWAX_JETSTREAM_RUN_PARTS"]) < spec["replicas"]:
        yield "has fewer parts than processes"
    if spec.get("podManagementPolicy") != "Parallel":
        yield "starts one process after the other, and each waits for all"
    if spec.get("updateStrategy") != {"type": "OnDelete"}:
        yield "may run with two images"
    if spec.get("persistentVolumeClaimRetentionPolicy") != {
        "whenDeleted": "Retain",
        "whenScaled": "Retain",
    }:
        yield "may lose its recovery store"
    services = [
        each
        for each in of_kind(objects, "Service")
        if each["metadata"]["name"] == spec["serviceName"]
    ]
    for each in services:
        if each["spec"].get("clusterIP") != "None":
            yield "its processes have no names"
        if each["spec"].get("publishNotReadyAddresses") is not True:
            yield "its processes have no names before they are ready"


def _selectors(objects: Sequence[Object]) -> Iterator[str]:
    """What selects pods or Services by their labels selects some."""
    templates = [template for _, template in pod_specs(objects)]

    def selected(selector: Object) -> list[Object]:
        return [
            each for each in templates if selector.items() <= each["metadata"]["labels"].items()
        ]

    for owner, template in pod_specs(objects):
        name = f"{owner['kind']} {owner['metadata']['name']}"
        if owner["kind"] == "Job":
            continue
        labels = owner["spec"]["selector"]["matchLabels"]
        if selected(labels) != [template]:
            yield f"{name}: does not select its own pods alone"
        budgets = [
            each
            for each in of_kind(objects, "PodDisruptionBudget")
            if each["spec"]["selector"]["matchLabels"] == labels
        ]
        if owner["spec"]["replicas"] > 1 and [b["spec"].get("maxUnavailable") for b in budgets] != [
            1
        ]:
            yield f"{name}: nodes may be drained at the same time"
    for service in of_kind(objects, "Service"):
        name = f"Service {service['metadata']['name']}"
        pods = selected(service["spec"]["selector"])
        if len(pods) != 1:
            yield f"{name}: selects the pods of {len(pods)} objects"
        for pod in pods:
            ports = {port["name"] for each in pod["spec"]["containers"] for port in each["ports"]}
            for port in service["spec"]["ports"]:
                if port["targetPort"] not in ports:
                    yield f"{name}: its pods have no port {port['targetPort']}"
    for monitor in of_kind(objects, "ServiceMonitor"):
        name = f"ServiceMonitor {monitor['metadata']['name']}"
        labels = monitor["spec"]["selector"]["matchLabels"]
        services = [
            each
            for each in of_kind(objects, "Service")
            if labels.items() <= each["metadata"]["labels"].items()
        ]
        if len(services) < 2:
            yield f"{name}: does not select the Service of each dataflow"
        for service in services:
            ports = {port["name"] for port in service["spec"]["ports"]}
            if not {each["port"] for each in monitor["spec"]["endpoints"]} <= ports:
                yield f"{name}: {service['metadata']['name']} has no such port"
