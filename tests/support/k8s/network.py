"""What a NetworkPolicy lets through, by the rules of Kubernetes."""

from collections.abc import Mapping, Sequence
from typing import Literal

from tests.support.k8s.manifests import Object, of_kind

__all__ = ["DNS", "Peer", "allows"]

Peer = Mapping[str, str] | None
"""The labels of a pod of the same namespace; None is any other address."""

DNS: Peer = {"k8s-app": "kube-dns"}
"""A pod of another namespace, which a rule must name with a `namespaceSelector`."""


def allows(
    objects: Sequence[Object],
    direction: Literal["ingress", "egress"],
    pod: Mapping[str, str],
    peer: Peer,
    port: int,
    protocol: str = "TCP",
) -> bool:
    """Whether a pod with these labels may be reached from the peer, or may reach it.

    A pod that no policy selects for a direction is open, so that is an error here.
    """
    policies = [
        each["spec"]
        for each in of_kind(objects, "NetworkPolicy")
        if _selects(each["spec"]["podSelector"], pod)
        and direction.capitalize() in each["spec"]["policyTypes"]
    ]
    assert policies, f"no NetworkPolicy says what is {direction} of {dict(pod)}"
    return any(
        _matches(rule.get("from" if direction == "ingress" else "to"), peer)
        and _has_port(rule.get("ports"), port, protocol)
        for spec in policies
        for rule in spec.get(direction) or ()
    )


def _matches(peers: Sequence[Object] | None, peer: Peer) -> bool:
    if not peers:
        return True
    return any(_is_named(each, peer) for each in peers)


def _is_named(by: Object, peer: Peer) -> bool:
    elsewhere, pods = "namespaceSelector" in by, by.get("podSelector")
    if peer is None or pods is None:
        return False
    return elsewhere is (peer is DNS) and _selects(pods, peer)


def _has_port(ports: Sequence[Object] | None, port: int, protocol: str) -> bool:
    if not ports:
        return True
    return any(
        each.get("port", port) == port and each.get("protocol", "TCP") == protocol for each in ports
    )


def _selects(selector: Object, labels: Mapping[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}, selector
    wanted: Mapping[str, str] = selector.get("matchLabels", {})
    return wanted.items() <= labels.items()
