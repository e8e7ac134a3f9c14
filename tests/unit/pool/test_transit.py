"""`Transit`: a slow link that moves renews what was written on it."""

from bytewax_jetstream.pool.transit import Transit


def test_what_the_peer_takes_renews_its_send_and_all_behind_it() -> None:
    transit = Transit()

    assert transit.look(0, written=1000, unsent=1000) is None
    assert transit.look(10, written=2000, unsent=2000) is None
    assert transit.look(20, written=2000, unsent=1700) == 0
    assert transit.look(20, written=2000, unsent=1700) is None
    assert transit.look(20, written=2000, unsent=800) == 0
    assert transit.look(20, written=2000, unsent=700) == 10
    assert transit.look(20, written=2000, unsent=0) == 10
    assert transit.look(20, written=2000, unsent=0) is None


def test_lost_connection_takes_its_unsent_bytes_along() -> None:
    transit = Transit()
    transit.look(0, written=1000, unsent=900)
    transit.clear()

    assert transit.look(10, written=1000, unsent=0) is None
    assert transit.look(10, written=1500, unsent=500) is None
    assert transit.look(15, written=1500, unsent=100) == 10
