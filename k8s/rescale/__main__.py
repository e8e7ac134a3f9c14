"""Prints the Job that moves the recovery store to another number of processes.

    kubectl get statefulset NAME -o json | python3 k8s/rescale PROCESSES | kubectl apply -f -

Image, volumes and security are those of the StatefulSet, and the number of its processes is that of
its addresses. Volumes that do not exist yet are in the output, too. The runbook is in
k8s/README.md.
"""

import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["manifest"]

Object = dict[str, Any]

SCRIPT = Path(__file__).with_name("move_parts.py")


def manifest(stateful_set: Object, after: int) -> Object:
    """What moves the parts of a StatefulSet's recovery store.

    :arg after: How many processes there are going to be.
    """
    name = stateful_set["metadata"]["name"]
    namespace = stateful_set["metadata"].get("namespace", "default")
    pod = stateful_set["spec"]["template"]["spec"]
    container = pod["containers"][0]
    variables = {each["name"]: each.get("value", "") for each in container["env"]}
    before = len([each for each in variables["BYTEWAX_ADDRESSES"].split(";") if each.strip()])
    recovery = Path(variables["BYTEWAX_RECOVERY_DIRECTORY"])
    (claim,) = stateful_set["spec"]["volumeClaimTemplates"]
    volume = claim["metadata"]["name"]
    mount = next(m["mountPath"] for m in container["volumeMounts"] if m["name"] == volume)
    numbers = range(max(before, after))
    claims = [f"{volume}-{name}-{number}" for number in numbers]
    job = f"{name}-{before}-to-{after}"
    labels = {"app.kubernetes.io/name": job, "app.kubernetes.io/component": "rescale"}

    def meta(own_name: str) -> Object:
        return {"name": own_name, "namespace": namespace, "labels": labels}

    new_claims = [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {
                "name": claims[number],
                "namespace": namespace,
                "labels": stateful_set["spec"]["selector"]["matchLabels"],
            },
            "spec": {key: value for key, value in claim["spec"].items() if key != "volumeName"},
        }
        for number in range(before, after)
    ]
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": meta(job),
        "data": {SCRIPT.name: SCRIPT.read_text(encoding="utf-8")},
    }
    directories = [f"/volumes/{number}/{recovery.relative_to(mount)}" for number in numbers]
    mounts = [{"name": f"volume-{number}", "mountPath": f"/volumes/{number}"} for number in numbers]
    volumes = [
        {"name": f"volume-{number}", "persistentVolumeClaim": {"claimName": claims[number]}}
        for number in numbers
    ]
    mover = {
        "name": "move-parts",
        "image": container["image"],
        "imagePullPolicy": container.get("imagePullPolicy", "IfNotPresent"),
        "command": ["python", f"/rescale/{SCRIPT.name}", str(after), *directories],
        "resources": {
            "requests": {"cpu": "100m", "memory": "128Mi"},
            "limits": {"memory": "128Mi"},
        },
        "securityContext": container["securityContext"],
        "volumeMounts": [*mounts, {"name": "script", "mountPath": "/rescale", "readOnly": True}],
    }
    kept = ("serviceAccountName", "securityContext", "imagePullSecrets", "tolerations")
    template = {
        "metadata": {"labels": labels},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            **{key: pod[key] for key in kept if key in pod},
            "containers": [mover],
            "volumes": [*volumes, {"name": "script", "configMap": {"name": job}}],
        },
    }
    moving = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": meta(job),
        "spec": {"backoffLimit": 2, "ttlSecondsAfterFinished": 3600, "template": template},
    }
    return {"apiVersion": "v1", "kind": "List", "items": [*new_claims, config, moving]}


def main() -> int:
    """Read the StatefulSet, print the manifest; returns the exit code."""
    if len(sys.argv) != 2 or not sys.argv[1].isdecimal() or sys.argv[1] == "0":
        print(__doc__, file=sys.stderr)
        return 2
    try:
        stateful_set = json.load(sys.stdin)
    except ValueError as error:
        print(f"the input is not JSON ({error}): pipe in kubectl get … -o json", file=sys.stderr)
        return 2
    json.dump(manifest(stateful_set, int(sys.argv[1])), sys.stdout, indent=2)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
