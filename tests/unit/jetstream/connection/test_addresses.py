"""Which servers are tried, in which order, and whose certificate is expected."""

import pytest

from bytewax_jetstream.jetstream.connection.addresses import Address, Addresses


@pytest.mark.parametrize(
    ("told_by", "advertised", "expected"),
    [
        (Address("tls://nats.example:4222"), "10.0.0.2:4222", "nats.example"),
        (Address("tls://nats.example:4222"), "[fd00::2]:4222", "nats.example"),
        (Address("tls://10.0.0.1:4222", "nats.example"), "10.0.0.2:4222", "nats.example"),
        (Address("tls://nats.example:4222"), "other.example:4222", None),
        (Address("tls://10.0.0.1:4222"), "10.0.0.2:4222", None),
    ],
)
def test_certificate_of_a_learnt_ip_address_must_have_the_given_name(
    told_by: Address, advertised: str, expected: str | None
) -> None:
    addresses = Addresses(["tls://nats.example:4222"], tls=True)
    addresses.learn(told_by, [advertised])

    assert addresses.in_order()[1:] == [Address(f"tls://{advertised}", expected)]


def test_only_the_last_servers_word_counts() -> None:
    addresses = Addresses(["nats://a:4222"], tls=False)
    for number in range(14):
        addresses.learn(Address("nats://a:4222"), [f"10.0.0.{number}:4222"])

    assert [each.url for each in addresses.in_order()] == ["nats://a:4222", "nats://10.0.0.13:4222"]


def test_malformed_address_of_a_server_is_passed_over() -> None:
    addresses = Addresses(["a"], tls=True)
    addresses.learn(Address("tls://a:4222"), ["[fd00", "", ":4222", "b:port", "c:4222"])

    assert [each.url for each in addresses.in_order()][:1] == ["tls://a:4222"]
    assert {each.url for each in addresses.in_order()[1:]} == {"tls://b:port", "tls://c:4222"}


def test_configured_servers_come_first_and_the_lost_one_is_the_last_of_them() -> None:
    addresses = Addresses(["a", "b:4223", "tls://c"], tls=True)
    addresses.learn(Address("tls://b:4223"), ["d:4222", "e:4222", "a:4222"])
    orders = [[each.url for each in addresses.in_order()] for _ in range(50)]

    assert {frozenset(order[:2]) for order in orders} == {
        frozenset({"tls://a:4222", "tls://c:4222"})
    }
    assert {order[2] for order in orders} == {"tls://b:4223"}
    assert {frozenset(order[3:]) for order in orders} == {
        frozenset({"tls://d:4222", "tls://e:4222"})
    }
    assert len({tuple(order) for order in orders}) == 4, "many clients must spread over a cluster"
