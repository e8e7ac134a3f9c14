"""Which process of a dataflow this is, from options and from a StatefulSet's variables."""

from pathlib import Path

import pytest

from bytewax_jetstream.errors import RunError
from bytewax_jetstream.exit_codes import ExitCode
from bytewax_jetstream.runner import Cluster

POD = {"BYTEWAX_POD_NAME": "orders-2", "BYTEWAX_STATEFULSET_NAME": "orders"}
THREE = "orders-0.orders:2101;orders-1.orders:2101;orders-2.orders:2101"


def test_a_run_without_addresses_is_the_only_process() -> None:
    assert Cluster.of(None, None, {}) == Cluster(0, ())
    assert Cluster.of(None, " ; ", {}).size == 1


def test_options_name_the_process_and_all_addresses() -> None:
    cluster = Cluster.of(1, " a:1 ; b:2 ;", {})

    assert cluster == Cluster(1, ("a:1", "b:2"))
    assert cluster.size == 2
    assert cluster.hosts == ["a", "b"]


def test_a_pod_of_a_stateful_set_knows_its_number() -> None:
    assert Cluster.of(None, THREE, POD).process == 2


def test_a_stateful_set_with_a_dash_in_its_name_is_understood() -> None:
    pod = {"BYTEWAX_POD_NAME": "my-orders-1-0", "BYTEWAX_STATEFULSET_NAME": "my-orders-1"}

    assert Cluster.of(None, THREE, pod).process == 0


def test_addresses_may_come_from_a_file(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("a:1\n\nb:2\nc:3\n")

    assert Cluster.of(None, None, {**POD, "BYTEWAX_HOSTFILE_PATH": str(hosts)}).size == 3


def test_an_ipv6_address_is_kept_whole() -> None:
    assert Cluster.of(0, "[::1]:2101", {}).hosts == ["[::1]"]


@pytest.mark.parametrize(
    ("process", "addresses", "environment", "said"),
    [
        (1, None, {}, "set BYTEWAX_ADDRESSES"),
        (None, "a:1;b:2", {}, "which of them this is"),
        (2, "a:1;b:2", {}, "this is process 2, and there are addresses of 2 processes"),
        (0, "a:1;b", {}, "'b' is not an address"),
        (0, "a:1;b:99999", {}, "'b:99999' is not an address"),
        (0, "a:1;b:0", {}, "'b:0' is not an address"),
        (None, THREE, {**POD, "BYTEWAX_POD_NAME": "payments-0"}, "not a pod of the StatefulSet"),
        (None, None, {**POD, "BYTEWAX_HOSTFILE_PATH": "/nowhere"}, "/nowhere cannot be read"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    process: int | None, addresses: str | None, environment: dict[str, str], said: str
) -> None:
    with pytest.raises(RunError, match=said) as raised:
        Cluster.of(process, addresses, environment)
    assert raised.value.exit_code is ExitCode.USAGE
