"""A Kafka broker that asks for passwords, and the rights of its users."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from bytewax_jetstream.settings import KafkaSettings
from bytewax_jetstream.testing import KafkaServer
from tests.support.kafka import SECONDS
from tests.support.lanes import kafka
from tests.support.waiting import until

__all__ = ["DESCRIBE", "WRITE", "acting_as", "allow", "asking_for_passwords", "forbid"]

WRITE, DESCRIBE = AclOperation.WRITE, AclOperation.DESCRIBE
USERS = (
    "org.apache.kafka.common.security.plain.PlainLoginModule required "
    'user_amy="amy" user_bob="bob";'
)


@contextmanager
def asking_for_passwords() -> Iterator[KafkaServer]:
    """Amy may do everything, bob nothing at first; `internal` asks for no password."""
    config = "\n".join(
        [
            "listener.name.client.sasl.enabled.mechanisms=PLAIN",
            f"listener.name.client.plain.sasl.jaas.config={USERS}",
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users=User:ANONYMOUS;User:amy",
        ]
    )
    with KafkaServer(protocol="SASL_PLAINTEXT", config=config + "\n") as server:
        yield server


def acting_as(user: str, server: KafkaServer, password: str = "", **settings: Any) -> KafkaSettings:
    return kafka(server.bootstrap, sasl="PLAIN", user=user, password=password or user, **settings)


def allow(server: KafkaServer, topic: str, *operations: AclOperation) -> None:
    """Let bob do these on a topic."""
    admin = AdminClient({"bootstrap.servers": server.internal})
    for made in admin.create_acls([_acl(topic, each) for each in operations]).values():
        made.result(SECONDS)
    _await(admin, topic, *operations, allowed=True)


def forbid(server: KafkaServer, topic: str, operation: AclOperation) -> None:
    """Take a right of bob's away."""
    admin = AdminClient({"bootstrap.servers": server.internal})
    acl = _filter(topic, operation)
    admin.delete_acls([acl])[acl].result(SECONDS)
    _await(admin, topic, operation, allowed=False)


def _await(admin: AdminClient, topic: str, *operations: AclOperation, allowed: bool) -> None:
    def done() -> bool:
        found = [
            len(admin.describe_acls(_filter(topic, each)).result(SECONDS)) for each in operations
        ]
        return all(found) if allowed else not any(found)

    until(done)


def _acl(topic: str, operation: AclOperation) -> AclBinding:
    return AclBinding(
        ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, "User:bob", "*", operation,
        AclPermissionType.ALLOW,
    )  # fmt: skip


def _filter(topic: str, operation: AclOperation) -> AclBindingFilter:
    return AclBindingFilter(
        ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, "User:bob", "*", operation,
        AclPermissionType.ALLOW,
    )  # fmt: skip
