"""Each dataflow may reach its brokers, its own pods and DNS, and nothing else."""

from typing import Literal

import pytest

from tests.support.k8s.manifests import OVERLAYS, rendered
from tests.support.k8s.network import DNS, Peer, allows

COMPONENT = {"app.kubernetes.io/component": "dataflow"}
BRIDGE = COMPONENT | {"app.kubernetes.io/name": "kafka-to-jetstream"}
FLIGHTS = COMPONENT | {"app.kubernetes.io/name": "flights"}
NATS = {"app.kubernetes.io/name": "nats", "app.kubernetes.io/component": "broker"}
KAFKA = {"app.kubernetes.io/name": "kafka", "app.kubernetes.io/component": "broker"}
OTHER = {"app.kubernetes.io/name": "web"}
OUTSIDE: Peer = None
Way = Literal["ingress", "egress"]

SAME: list[tuple[Way, dict[str, str], Peer, int, str, bool]] = [
    ("egress", BRIDGE, NATS, 4222, "TCP", True),
    ("egress", BRIDGE, KAFKA, 9092, "TCP", True),
    ("egress", BRIDGE, BRIDGE, 2101, "TCP", True),
    ("egress", BRIDGE, BRIDGE, 8081, "TCP", True),
    ("egress", BRIDGE, DNS, 53, "UDP", True),
    ("egress", BRIDGE, DNS, 53, "TCP", True),
    ("egress", BRIDGE, BRIDGE, 3030, "TCP", False),
    ("egress", BRIDGE, NATS, 8222, "TCP", False),
    ("egress", BRIDGE, FLIGHTS, 2101, "TCP", False),
    ("egress", BRIDGE, OUTSIDE, 4222, "TCP", False),
    ("egress", BRIDGE, OUTSIDE, 443, "TCP", False),
    ("egress", BRIDGE, OUTSIDE, 53, "UDP", False),
    ("ingress", BRIDGE, BRIDGE, 2101, "TCP", True),
    ("ingress", BRIDGE, BRIDGE, 8081, "TCP", True),
    ("ingress", BRIDGE, OUTSIDE, 3030, "TCP", True),
    ("ingress", BRIDGE, OUTSIDE, 8081, "TCP", True),
    ("ingress", BRIDGE, OUTSIDE, 2101, "TCP", False),
    ("ingress", BRIDGE, FLIGHTS, 2101, "TCP", False),
    ("ingress", BRIDGE, OTHER, 22, "TCP", False),
    ("egress", FLIGHTS, NATS, 4222, "TCP", True),
    ("egress", FLIGHTS, DNS, 53, "UDP", True),
    ("egress", FLIGHTS, KAFKA, 9092, "TCP", False),
    ("egress", FLIGHTS, FLIGHTS, 2101, "TCP", False),
    ("egress", FLIGHTS, OUTSIDE, 4222, "TCP", False),
    ("ingress", FLIGHTS, OUTSIDE, 3030, "TCP", True),
    ("ingress", FLIGHTS, OUTSIDE, 8081, "TCP", True),
    ("ingress", FLIGHTS, OTHER, 2101, "TCP", False),
    ("ingress", NATS, BRIDGE, 4222, "TCP", True),
    ("ingress", NATS, FLIGHTS, 4222, "TCP", True),
    ("ingress", NATS, OTHER, 4222, "TCP", False),
    ("ingress", NATS, OUTSIDE, 4222, "TCP", False),
    ("egress", NATS, OUTSIDE, 443, "TCP", False),
]
ONLY: dict[str, list[tuple[Way, dict[str, str], Peer, int, str, bool]]] = {
    "overlays/dev": [
        ("egress", BRIDGE, OUTSIDE, 9092, "TCP", False),
        ("ingress", KAFKA, BRIDGE, 9092, "TCP", True),
        ("ingress", KAFKA, OTHER, 9092, "TCP", False),
        ("ingress", KAFKA, BRIDGE, 9093, "TCP", False),
        ("egress", NATS, NATS, 6222, "TCP", False),
    ],
    "overlays/prod": [
        ("egress", BRIDGE, OUTSIDE, 9092, "TCP", True),  # Kafka is outside of the cluster
        ("ingress", NATS, NATS, 6222, "TCP", True),
        ("ingress", NATS, BRIDGE, 6222, "TCP", False),
        ("egress", NATS, NATS, 6222, "TCP", True),
    ],
}


def test_only_what_is_needed_is_let_through() -> None:
    wrong = [
        (overlay, *row)
        for overlay in OVERLAYS
        for row in SAME + ONLY[overlay]
        for way, pod, peer, port, protocol, expected in [row]
        if allows(rendered(overlay), way, pod, peer, port, protocol) is not expected
    ]

    assert wrong == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_without_a_policy_is_found(overlay: str) -> None:
    with pytest.raises(AssertionError, match="no NetworkPolicy"):
        allows(rendered(overlay), "egress", OTHER, OUTSIDE, 443)
