"""The variables that a container gets, as a kubelet would make them."""

from collections.abc import Sequence

from tests.support.k8s.manifests import Object, of_kind

__all__ = ["secret_files", "variables"]


def variables(
    objects: Sequence[Object], container: Object, pod_name: str = "pod"
) -> dict[str, str]:
    """All variables of a container."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        name = source["configMapRef"]["name"]
        (config,) = [
            each for each in of_kind(objects, "ConfigMap") if each["metadata"]["name"] == name
        ]
        found |= config["data"]
    for each in container["env"]:
        if "value" in each:
            found[each["name"]] = each["value"]
        else:
            assert each["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}, each
            found[each["name"]] = pod_name
    return found


def secret_files(objects: Sequence[Object]) -> dict[str, str]:
    """The files of the Secret `brokers`; empty if the overlay leaves it to be made by hand."""
    import base64

    for each in of_kind(objects, "Secret"):
        if each["metadata"]["name"].startswith("brokers"):
            return {key: base64.b64decode(text).decode() for key, text in each["data"].items()}
    return {}
