import random

from bytewax_jetstream.jetstream.source.ledger import REMEMBER_SECONDS, Ledger


def take(ledger: Ledger, *sequences: int, time: int = 1) -> list[int]:
    """The sequences that are to be emitted."""
    return [sequence for sequence in sequences if ledger.take(sequence, time, b"ack.%d" % sequence)]


def test_no_ack_is_due_before_the_epoch_of_its_snapshot_is_committed() -> None:
    ledger = Ledger()
    assert take(ledger, 1, 2) == [1, 2]
    ledger.commit()
    assert not ledger.has_due

    ledger.close_epoch()
    assert take(ledger, 3) == [3]
    assert not ledger.has_due

    ledger.commit()
    assert ledger.send(0.0) == (1, [b"ack.1", b"ack.2"])
    assert ledger.waiting == 1
    assert ledger.unsettled == 3


def test_two_snapshots_before_a_commit_are_committed_together() -> None:
    ledger = Ledger()
    take(ledger, 1)
    ledger.close_epoch()
    take(ledger, 2)
    ledger.close_epoch()

    ledger.commit()

    assert ledger.send(0.0)[1] == [b"ack.1", b"ack.2"]


def test_redelivered_message_is_not_emitted_again_at_any_stage() -> None:
    ledger = Ledger()
    take(ledger, 1)
    assert not take(ledger, 1)  # open
    ledger.close_epoch()
    assert not take(ledger, 1)  # closed
    ledger.commit()
    assert not take(ledger, 1)  # due
    number, _ = ledger.send(0.0)
    assert not take(ledger, 1)  # sent
    assert ledger.send(0.0)[1] == [b"ack.1"]
    ledger.confirm(number + 1, 0.0)
    assert not take(ledger, 1)  # confirmed, and the server has forgotten it
    assert ledger.send(0.0)[1] == [b"ack.1"]
    assert ledger.redelivered == 5


def test_newest_delivery_is_the_one_that_is_acknowledged() -> None:
    ledger = Ledger()
    ledger.take(1, 1, b"old")
    ledger.take(1, 1, b"new")
    ledger.close_epoch()
    ledger.commit()

    assert ledger.send(0.0)[1] == [b"new"]


def test_acks_are_sent_again_until_they_are_confirmed() -> None:
    ledger = Ledger()
    take(ledger, 1, 2)
    ledger.close_epoch()
    ledger.commit()
    ledger.send(5.0)
    ledger.lost()
    assert ledger.sent_since(9.0) == 5.0

    number, replies = ledger.send(6.0)
    assert replies == [b"ack.1", b"ack.2"]
    assert ledger.sent_since(9.0) == 5.0
    ledger.confirm(number, 9.0)

    ledger.lost()
    assert not ledger.has_due
    assert ledger.unsettled == 0
    assert ledger.sent_since(9.0) == 9.0


def test_a_confirmed_ack_is_forgotten_after_a_while() -> None:
    ledger = Ledger()
    take(ledger, 1)
    ledger.close_epoch()
    ledger.commit()
    ledger.confirm(ledger.send(0.0)[0], 0.0)

    ledger.confirm(0, REMEMBER_SECONDS)
    assert not take(ledger, 1)
    ledger.confirm(0, REMEMBER_SECONDS + 0.1)
    assert not take(ledger, 1)  # its second ack is due
    ledger.confirm(ledger.send(3.0)[0], 3.0)
    ledger.confirm(0, 3.1 + REMEMBER_SECONDS)
    assert take(ledger, 1) == [1]


def test_committed_messages_are_acknowledged_and_not_emitted_by_the_next_run() -> None:
    ledger = Ledger()
    take(ledger, 1, 2, 3, 5, time=7)
    state = ledger.close_epoch()
    assert state == ((1, 3, 7), (5, 5, 7))

    resumed = Ledger(state, ack_floor=1)

    assert take(resumed, 2, 4, 5, time=7) == [4]
    assert resumed.send(0.0)[1] == [b"ack.2", b"ack.5"]
    assert take(resumed, 1, time=7) == [
        1
    ]  # the server acknowledged it and delivers it all the same: a new message


def test_messages_of_a_recreated_stream_are_emitted() -> None:
    resumed = Ledger(((1, 3, 7),))

    assert take(resumed, 1, 2, time=8) == [1, 2]


def test_committed_message_stays_in_the_state_until_it_is_redelivered() -> None:
    ledger = Ledger(((1, 3, 7),))
    take(ledger, 2, time=7)
    take(ledger, 4, time=9)

    assert ledger.close_epoch() == ((1, 1, 7), (3, 3, 7), (2, 2, 9), (4, 4, 9))


def test_uncommitted_messages_are_given_back() -> None:
    ledger = Ledger()
    take(ledger, 1)
    ledger.close_epoch()
    ledger.commit()
    take(ledger, 2)
    ledger.close_epoch()
    take(ledger, 3)

    assert ledger.uncommitted() == [b"ack.2", b"ack.3"]
    assert repr(ledger) == "<Ledger 2 wait for a commit, 1 for the server>"


def test_a_simulated_consumer_loses_and_repeats_nothing() -> None:
    """A server that delivers again at random, and runs that end at random between any two steps."""
    for seed in range(200):
        chance = random.Random(seed)
        unacknowledged = dict.fromkeys(range(1, 60))
        emitted: list[int] = []
        committed: list[int] = []
        state: tuple[tuple[int, int, int], ...] = ()
        ledger = Ledger()
        snapshot: tuple[tuple[tuple[int, int, int], ...], list[int]] | None = None
        while unacknowledged:
            step = chance.random()
            if step < 0.6:
                sequence = chance.choice(list(unacknowledged))
                if ledger.take(sequence, sequence, b"%d" % sequence):
                    emitted.append(sequence)
            elif step < 0.7:
                snapshot = (ledger.close_epoch(), list(emitted))
            elif step < 0.8 and snapshot is not None:
                # The engine commits, and the source may or may not get to know it.
                state, committed = snapshot
                if chance.random() < 0.5:
                    ledger.commit()
                    snapshot = None
            elif step < 0.9 and ledger.has_due:
                number, replies = ledger.send(0.0)
                if chance.random() < 0.5:
                    for reply in replies:
                        unacknowledged.pop(int(reply), None)
                    ledger.confirm(number, 0.0)
                else:
                    ledger.lost()
            elif step > 0.97:
                ledger, emitted, snapshot = Ledger(state), list(committed), None
        assert sorted(emitted) == list(range(1, 60)), f"seed {seed}"
