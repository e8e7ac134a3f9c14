"""One pool a process: borrowed, given back, and never taken into a fork."""

import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from bytewax_jetstream.envelope import Outcome
from bytewax_jetstream.errors import PoolClosedError
from bytewax_jetstream.pool import PoolState, borrow_pool, give_back_pool
from bytewax_jetstream.settings import PoolSettings
from tests.support.fake_publisher import FakePublisher, silent
from tests.support.pooling import envelopes, pool_threads, pooled

ROOT = Path(__file__).parents[3]


def test_pool_cannot_be_pickled() -> None:
    with (
        pooled() as pool,
        pytest.raises(TypeError, match="belongs to its process and cannot be pickled"),
    ):
        pickle.dumps(pool)


def test_borrowed_pool_is_shared_until_the_last_borrower_gives_it_back() -> None:
    settings = PoolSettings(ack_workers=2)
    first, second = borrow_pool(settings), borrow_pool(PoolSettings(ack_workers=2))
    lane = first.lane(FakePublisher(), name="lane")
    assert first is second
    give_back_pool()
    lane.submit(envelopes(5))
    assert len(lane.flush()) == 5
    give_back_pool()
    assert first.state is PoolState.CLOSED
    assert pool_threads() == []

    again = borrow_pool(settings)
    try:
        assert again is not first
        assert again.state is PoolState.NEW
    finally:
        give_back_pool()


def test_giving_back_does_not_wait_for_unsettled_envelopes() -> None:
    pool = borrow_pool(PoolSettings(drain_timeout=1000))
    lane = pool.lane(FakePublisher(silent), name="lane")
    lane.submit(envelopes(5))
    give_back_pool()

    assert pool.state is PoolState.CLOSED
    assert {result.outcome for result in lane.collect()} == {Outcome.UNKNOWN}


def test_borrowing_with_other_settings_is_refused_while_the_pool_runs() -> None:
    borrow_pool(PoolSettings(ack_workers=2))
    try:
        with pytest.raises(
            PoolClosedError, match="already runs with other settings: give all steps the same"
        ):
            borrow_pool(PoolSettings(ack_workers=3))
    finally:
        give_back_pool()
    borrow_pool(PoolSettings(ack_workers=3))
    give_back_pool()


def test_forked_child_cannot_use_the_pool_and_borrows_its_own() -> None:
    program = """
        import os, sys, traceback
        from bytewax_jetstream.errors import PoolClosedError
        from bytewax_jetstream.pool import borrow_pool, give_back_pool
        from bytewax_jetstream.settings import PoolSettings
        from tests.support.fake_publisher import FakePublisher
        from tests.support.pooling import envelopes

        def refused(use):
            try:
                use()
            except PoolClosedError as error:
                reason = f"belongs to process {os.getppid()}: make a new one after a fork"
                assert reason in str(error), error
            else:
                raise AssertionError("a parent's pool was used")

        def in_child():
            refused(lambda: lane.submit(envelopes(1)))
            refused(lambda: parents.lane(FakePublisher(), name="lane"))
            lane.close()
            give_back_pool()
            parents.close()
            own = borrow_pool(PoolSettings())
            assert own is not parents
            own_lane = own.lane(FakePublisher(), name="lane")
            own_lane.submit(envelopes(100))
            assert len(own_lane.flush()) == 100
            give_back_pool()
            assert "closed" in repr(own)

        parents = borrow_pool(PoolSettings())
        lane = parents.lane(FakePublisher(), name="lane")
        lane.submit(envelopes(100))
        assert len(lane.flush()) == 100
        child = os.fork()
        if not child:
            try:
                in_child()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, "the child failed"
        lane.submit(envelopes(100))
        assert len(lane.flush()) == 100
        give_back_pool()
        print("both went on")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == "both went on\n"
