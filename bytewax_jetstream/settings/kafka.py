"""Settings of Kafka: how to reach it, and which topics must be there."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic.functional_validators import field_validator
from pydantic_settings import SettingsConfigDict

from .pool import PoolSettings
from .sources import PREFIX, Count, Seconds, Settings, StreamStrategy, Words

__all__ = ["KafkaSettings", "KafkaTopicSettings"]

KAFKA_OWN = frozenset(
    {
        "bootstrap.servers",
        "metadata.broker.list",
        "acks",
        "request.required.acks",
        "enable.idempotence",
        "max.in.flight",
        "max.in.flight.requests.per.connection",
        "retries",
        "message.send.max.retries",
        "delivery.timeout.ms",
        "message.timeout.ms",
        "transactional.id",
        "allow.auto.create.topics",
        "queue.buffering.max.messages",
        "queue.buffering.max.kbytes",
        "delivery.report.only.error",
        "enable.gapless.guarantee",
    }
)
"""Properties of librdkafka that are not the user's to set."""


class KafkaTopicSettings(BaseModel):
    """A Kafka topic as this flow needs it; fields left None are the broker's or the topic's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")]
    partitions: Count | None = None
    """At least so many; more of them later move keys to other partitions, so choose well."""
    replicas: Annotated[int, Field(ge=1, le=32_767)] | None = None
    """On how many brokers each partition is kept, at least."""
    min_insync_replicas: Count | None = None
    """How many of them must have a message before it counts as stored."""
    cleanup_policy: Literal["delete", "compact", "compact,delete"] | None = None
    retention: timedelta | None = None
    """How long messages are kept, at least."""
    max_message_bytes: Count | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.replicas is not None and (self.min_insync_replicas or 1) > self.replicas:
            raise ValueError(
                f"min_insync_replicas of topic {self.name} ({self.min_insync_replicas}) is above "
                f"its replicas ({self.replicas}), so it could not store a message: lower the one "
                "or raise the other"
            )
        return self


class KafkaSettings(Settings):
    """How to reach Kafka, and which topics must be there (`BYTEWAX_JETSTREAM_KAFKA_…`)."""

    model_config = SettingsConfigDict(env_prefix=PREFIX + "KAFKA_")

    brokers: Words = ("127.0.0.1:9092",)
    """`host:port` of one cluster's brokers; comma-separated in a variable."""
    name: str = "bytewax_jetstream"
    """Shown in the brokers' logs and quotas (`client.id`)."""
    tls: bool = False
    """Refuse any connection that is not encrypted and verified; implied by the fields below."""
    tls_ca_file: Path | None = None
    tls_cert_file: Path | None = None
    """The client's own certificate, for mutual TLS."""
    tls_key_file: Path | None = None
    tls_key_password: SecretStr | None = None
    sasl: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = None
    """How to authenticate; with `user` and `password`, OAUTHBEARER with the `oauth_…` fields."""
    user: str | None = None
    password: SecretStr | None = None
    oauth_token_url: str | None = None
    """Where an access token is got with the client id and secret (OIDC client credentials)."""
    oauth_client_id: str | None = None
    oauth_client_secret: SecretStr | None = None
    oauth_scope: str | None = None
    connect_timeout: Seconds = 10.0
    """Seconds until a broker must have answered, topics made or checked."""
    linger: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] = 0.005
    """Seconds a message may wait for others to share its request; an epoch's end does not wait for
    it.
    """
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "none"
    batch_bytes: Count = 1_000_000
    """Bytes in one request to a partition; must not exceed the topic's `max.message.bytes`."""
    max_message_bytes: Count = 1_000_000
    """The largest message this flow sends; a larger one is rejected before it is sent."""
    topics: Words = ()
    """Topics known beforehand: the run fails at start unless each is there."""
    topic_settings: tuple[KafkaTopicSettings, ...] = ()
    topic_strategy: StreamStrategy = "create"
    """`create` makes what is missing and checks what is there; `create_or_update` also fixes it;
    `validate` only checks; `skip` asks the brokers nothing (for users without that permission)."""
    add_config: dict[str, str | int | float | bool] = Field(default_factory=dict, repr=False)
    """Any other property of librdkafka, by its own name; those that guarantees depend on are
    refused.
    """
    pool: PoolSettings = Field(default_factory=PoolSettings)

    @field_validator("brokers")
    @classmethod
    def _brokers(cls, brokers: tuple[str, ...]) -> tuple[str, ...]:
        if not brokers:
            raise ValueError("name at least one broker, such as 127.0.0.1:9092")
        for broker in brokers:
            if "@" in broker:
                raise ValueError(
                    "credentials in a broker's address end up in logs: use sasl, user and password"
                )
            try:
                url = urlsplit(f"//{broker}")
                complete = (
                    bool(url.hostname) and bool(url.port) and not url.path and "://" not in broker
                )
            except ValueError:  # whose words may contain what was written
                complete = False
            if not complete:
                raise ValueError(
                    "invalid broker address: write host:port; for TLS set the field tls"
                )
        return brokers

    @field_validator("add_config")
    @classmethod
    def _add_config(
        cls, config: dict[str, str | int | float | bool]
    ) -> dict[str, str | int | float | bool]:
        kept = sorted(name for name in config if name in KAFKA_OWN or name.endswith("_cb"))
        if kept:
            raise ValueError(
                f"{', '.join(kept)} in add_config would break a guarantee of this package: use the "
                "fields of KafkaSettings, or leave it out"
            )
        return config

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file go together: give both or neither")
        oauth = (self.oauth_token_url, self.oauth_client_id, self.oauth_client_secret)
        if self.sasl == "OAUTHBEARER":
            if None in oauth or self.user is not None or self.password is not None:
                raise ValueError(
                    "OAUTHBEARER needs oauth_token_url, oauth_client_id and oauth_client_secret, "
                    "and neither user nor password"
                )
        elif any(oauth) or self.oauth_scope:
            raise ValueError("the oauth_… fields need sasl=OAUTHBEARER")
        elif (self.sasl is None) != (self.user is None) or (self.user is None) != (
            self.password is None
        ):
            raise ValueError("sasl, user and password go together: give all or none")
        if self.linger >= self.pool.delivery_timeout / 2:
            raise ValueError(
                f"linger ({self.linger:g} s) must be below half of the pool's delivery_timeout "
                f"({self.pool.delivery_timeout:g} s), or messages would be given up unsent: "
                "lower it"
            )
        return self

    @property
    def wants_tls(self) -> bool:
        """Whether an unencrypted connection must be refused."""
        return self.tls or any((self.tls_ca_file, self.tls_cert_file))
