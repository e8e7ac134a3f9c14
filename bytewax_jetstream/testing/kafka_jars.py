"""Kafka's jars from Maven Central, cached; the Java command, ports, properties of a broker."""

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import JetStreamPipelineError
from .process import Run, dead, free_ports, log_tail, spawn

__all__ = [
    "KafkaServerError",
    "KafkaUnavailableError",
    "Ports",
    "await_ready",
    "format_log",
    "java",
    "prepared",
    "properties",
]

VERSION = "4.3.1"
START_TIMEOUT = 120.0  # seconds: a JVM starts, and may have to recover a log
FETCH_TIMEOUT = 600.0
READY = b"Kafka Server started"

JVM = (
    "-Xms128m",
    "-Xmx384m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xshare:auto",
    "-XX:-UsePerfData",
    "-Djava.awt.headless=true",
    "-Dlog4j2.disable.jmx=true",
)

POM = """\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>local</groupId><artifactId>kafka-broker</artifactId><version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>
      <version>{version}</version>
    </dependency>
    <!-- kafka_2.13 names no logging back end; its own distribution adds these. -->
    <dependency>
      <groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId>
      <version>2.24.3</version>
      <scope>runtime</scope>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId><artifactId>log4j-core</artifactId>
      <version>2.24.3</version>
      <scope>runtime</scope>
    </dependency>
  </dependencies>
</project>
"""

LOG4J = """\
<Configuration status="WARN" shutdownHook="disable">
  <Appenders>
    <Console name="C" target="SYSTEM_OUT"><PatternLayout pattern="[%d] %p %m (%c)%n"/></Console>
  </Appenders>
  <Loggers>
    <Logger name="kafka.server.KafkaRaftServer" level="INFO"/>
    <Logger name="kafka.server.BrokerServer" level="INFO"/>
    <Root level="WARN"><AppenderRef ref="C"/></Root>
  </Loggers>
</Configuration>
"""

# Small, quick to start and to notice a broker's return; it listens on loopback only.
PROPERTIES = """\
process.roles={roles}
node.id={node}
controller.quorum.voters=1@127.0.0.1:{controller}
listeners={listeners}
advertised.listeners={advertised}
inter.broker.listener.name=INTERNAL
controller.listener.names=CONTROLLER
listener.security.protocol.map=INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT,CLIENT:{protocol}
log.dirs={data}
num.partitions=1
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
replica.lag.time.max.ms=3000
num.network.threads=1
num.io.threads=2
background.threads=2
num.replica.fetchers=1
log.cleaner.dedupe.buffer.size=4194304
log.index.size.max.bytes=1048576
log.segment.bytes=67108864
"""


@dataclass(eq=False, repr=False, kw_only=True)
class KafkaServerError(JetStreamPipelineError):
    """No Kafka broker is running where one is needed; what was stored before is untouched.

    :ivar seconds: How long a step of its start was waited for.
    :ivar log: The end of the broker's log, or of the failed command's output.

    Do what the message says, then start the broker again: it keeps its ports and its data.
    """

    seconds: float | None = None
    log: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class KafkaUnavailableError(KafkaServerError):
    """A program that a Kafka broker needs is not on this machine; nothing was started.

    :ivar program: The program that is missing, `java` or `mvn`.

    Install it, or use a broker that is running already; tests may skip.
    """

    program: str | None = None


class Ports(NamedTuple):
    """The ports that a broker listens on."""

    client: int
    internal: int
    proxied: int
    controller: int

    @classmethod
    def chosen(cls) -> "Ports":
        """Four free ports."""
        return cls(*free_ports(4))


def properties(
    ports: Ports,
    data: Path,
    *,
    protocol: str = "PLAINTEXT",
    proxied_as: int | None = None,
    controller: int | None = None,
) -> str:
    """A broker's configuration; given the port of another's controller, it joins that cluster."""
    listeners = {"CLIENT": ports.client, "INTERNAL": ports.internal, "PROXIED": ports.proxied}
    advertised = {**listeners, "PROXIED": proxied_as or ports.proxied}
    if controller is None:
        listeners["CONTROLLER"] = ports.controller
    return PROPERTIES.format(
        roles="broker,controller" if controller is None else "broker",
        node=1 if controller is None else 2,
        controller=controller or ports.controller,
        listeners=_addresses(listeners),
        advertised=_addresses(advertised),
        protocol=protocol,
        data=data,
    )


def _addresses(listeners: dict[str, int]) -> str:
    return ",".join(f"{name}://127.0.0.1:{port}" for name, port in listeners.items())


def await_ready(run: Run, scratch: Path, start: int = 0) -> None:
    """Wait until a broker's log says that it has started.

    :arg start: Where its part of the log begins.
    :raises KafkaServerError: when it ended or took too long.
    """
    deadline = time.monotonic() + START_TIMEOUT
    while READY not in _log_from(scratch, start):
        if dead(run, within=0.02):
            log = log_tail(scratch)
            raise KafkaServerError(
                f"the Kafka broker ended before it was ready; its log:\n{log}", log=log
            )
        if time.monotonic() > deadline:
            log = log_tail(scratch)
            raise KafkaServerError(
                f"the Kafka broker was not ready within {START_TIMEOUT:g} s; its log:\n{log}",
                seconds=START_TIMEOUT,
                log=log,
            )


def _log_from(scratch: Path, start: int) -> bytes:
    try:
        with (scratch / "log").open("rb") as file:
            file.seek(start)
            return file.read()
    except FileNotFoundError:
        return b""


def java(cache: Path, *command: str) -> list[str]:
    """The command line of a JVM that runs one of Kafka's programs."""
    # Always in the same order, or the JVM ignores the class archive.
    jars = sorted(map(str, (cache / "lib").glob("*.jar")))
    archive = cache / "classes.jsa"
    sharing = [f"-XX:SharedArchiveFile={archive}"] if archive.exists() else []
    log4j = f"-Dlog4j2.configurationFile={cache / 'log4j2.xml'}"
    return [_find("java"), *JVM, *sharing, log4j, "-cp", ":".join(jars), *command]


def _find(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise KafkaUnavailableError(
            f"{program} is not installed: to run a Kafka broker here, install Java 17 or later "
            "and, for the first start, Maven; or use a broker that is running already",
            program=program,
        )
    return found


def prepared() -> Path:
    """The folder with the jars, made ready the first time while other processes wait for it."""
    _find("java")
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bytewax_jetstream"
    cache = root / f"kafka-{VERSION}"
    if (cache / "complete").exists():
        return cache
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(root / f"kafka-{VERSION}.lock"):
        if not (cache / "complete").exists():
            (cache / "pom.xml").write_text(POM.format(version=VERSION))
            (cache / "log4j2.xml").write_text(LOG4J)
            _fetch(cache)
            _format_template(cache)
            (cache / "complete").touch()
            _archive_classes(cache)
    return cache


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(cache: Path) -> None:
    command = [
        _find("mvn"),
        "-q",
        "-B",
        "-f",
        str(cache / "pom.xml"),
        "dependency:copy-dependencies",
    ]
    _checked(
        [*command, "-DincludeScope=runtime", f"-DoutputDirectory={cache / 'lib'}"],
        "fetching Kafka with Maven",
    )


def _format_template(cache: Path) -> None:
    """Format a log directory once; a copy for each new broker saves it the start of a JVM."""
    template, configuration = cache / "formatted", cache / "format.properties"
    shutil.rmtree(template, ignore_errors=True)
    configuration.write_text(properties(Ports.chosen(), template))
    command = java(
        cache, "kafka.tools.StorageTool", "format", "-t", _uuid(), "-c", str(configuration)
    )
    _checked(command, "formatting a Kafka log directory")


def format_log(cache: Path, data: Path, node: int) -> None:
    """Make an empty log directory for one broker; one that has data is not changed."""
    if (data / "meta.properties").exists():
        return
    shutil.copytree(cache / "formatted", data, dirs_exist_ok=True)
    own = {"node.id": str(node), "directory.id": _uuid()}
    lines = (data / "meta.properties").read_text().splitlines()
    words = (line.partition("=") for line in lines if not line.startswith("#"))
    (data / "meta.properties").write_text(
        "".join(f"{key}={own.get(key, value)}\n" for key, _, value in words)
    )


def _archive_classes(cache: Path) -> None:
    """Start and end a broker that archives its loaded classes, which halves every later start."""
    with tempfile.TemporaryDirectory(prefix="kafka-classes-") as folder:
        scratch, data = Path(folder), Path(folder, "data")
        configuration = scratch / "server.properties"
        configuration.write_text(properties(Ports.chosen(), data))
        format_log(cache, data, 1)
        program, *rest = java(cache, "kafka.Kafka", str(configuration))
        run = spawn(
            [program, f"-XX:ArchiveClassesAtExit={cache / 'classes.jsa.new'}", *rest], scratch
        )
        with run.supervisor:  # leaving the block closes the lifeline
            await_ready(run, scratch)
            os.kill(run.pid, signal.SIGTERM)
            dead(run, within=START_TIMEOUT)
    with contextlib.suppress(FileNotFoundError):  # without the archive, starts are only slower
        (cache / "classes.jsa.new").rename(cache / "classes.jsa")


def _checked(command: list[str], what: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=FETCH_TIMEOUT)
    except subprocess.CalledProcessError as error:
        log = (error.stdout + error.stderr).strip()[-1000:]
        raise KafkaServerError(f"{what} failed: {log}", log=log) from None
    except subprocess.TimeoutExpired:
        raise KafkaServerError(
            f"{what} took longer than {FETCH_TIMEOUT:g} s: check the network",
            seconds=FETCH_TIMEOUT,
        ) from None


def _uuid() -> str:
    while (word := urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")).startswith("-"):
        pass
    return word
