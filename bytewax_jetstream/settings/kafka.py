"""`KafkaSettings`, `KafkaTopicSettings`: how to reach Kafka, and which topics must exist."""

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
"""Properties of librdkafka that a guarantee depends on, so users may not set them."""

FIELD_OF = {
    "ssl.ca.location": "tls_ca_file",
    "ssl.ca.pem": "tls_ca_file",
    "ssl.certificate.location": "tls_cert_file",
    "ssl.certificate.pem": "tls_cert_file",
    "ssl.key.location": "tls_key_file",
    "ssl.key.pem": "tls_key_file",
    "ssl.keystore.location": "tls_cert_file",
    "ssl.key.password": "tls_key_password",
    "sasl.mechanism": "sasl",
    "sasl.mechanisms": "sasl",
    "sasl.username": "user",
    "sasl.password": "password",
    "sasl.oauthbearer.method": "oauth_token_url",
    "sasl.oauthbearer.token.endpoint.url": "oauth_token_url",
    "sasl.oauthbearer.client.id": "oauth_client_id",
    "sasl.oauthbearer.client.secret": "oauth_client_secret",
    "sasl.oauthbearer.scope": "oauth_scope",
}
"""Properties of security that a field sets; with both, librdkafka would use one in silence."""
VERIFIES_NAMES = "ssl.endpoint.identification.algorithm"
NO = frozenset({"false", "f", "0", "none"})
"""How librdkafka writes that a verification is off."""
PARTITIONERS = (
    "consistent",
    "consistent_random",
    "fnv1a",
    "fnv1a_random",
    "murmur2",
    "murmur2_random",
)
"""Those of librdkafka that look at the key, so that an aggregate stays in one partition."""


class KafkaTopicSettings(BaseModel):
    """A Kafka topic as this flow needs it; for None, the broker or the topic decides."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")]
    partitions: Count | None = None
    """At least this many. Choose well: partitions added later move keys to other partitions."""
    replicas: Annotated[int, Field(ge=1, le=32_767)] | None = None
    """On how many brokers each partition is stored, at least."""
    min_insync_replicas: Count | None = None
    """How many replicas must have a message before it counts as stored."""
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
    """How to reach Kafka, and which topics must exist (`BYTEWAX_JETSTREAM_KAFKA_…`)."""

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
    """How to authenticate: OAUTHBEARER with the `oauth_…` fields, the others with `user` and
    `password`.
    """
    user: str | None = None
    password: SecretStr | None = None
    oauth_token_url: str | None = None
    """Where to get an access token with the client id and secret (OIDC client credentials)."""
    oauth_client_id: str | None = None
    oauth_client_secret: SecretStr | None = None
    oauth_scope: str | None = None
    connect_timeout: Seconds = 10.0
    """Seconds for a broker's first answer, including making or checking the topics."""
    linger: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] = 0.005
    """Seconds that a message may wait for others to share its request; at an epoch's end it is sent
    at once.
    """
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "none"
    batch_bytes: Count = 1_000_000
    """Bytes in one request to a partition. Set it to at most the topic's `max.message.bytes`: a
    topic that takes less is refused at the start if it is named here, and gets each message in a
    request of its own otherwise.
    """
    max_message_bytes: Count = 1_000_000
    """Size of the largest message this flow sends; a larger one is rejected before it is sent."""
    topics: Words = ()
    """Topics known in advance: the run fails at start unless each of them exists."""
    topic_settings: tuple[KafkaTopicSettings, ...] = ()
    topic_strategy: StreamStrategy = "create"
    """`create` makes missing topics and checks existing ones; `create_or_update` also updates them;
    `validate` only checks; `skip` sends no requests, for users without permission for them.
    """
    add_config: dict[str, str | int | float | bool] = Field(default_factory=dict, repr=False)
    """Other properties of librdkafka by name. Those that a guarantee depends on are refused, and so
    are those that contradict the fields for TLS and authentication.

    An aggregate id goes to the partition where Kafka's Java client puts that key (`partitioner`
    `murmur2_random`). Where other producers of a topic use librdkafka's own default, set
    `consistent_random`. A partitioner that ignores the key is refused.
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
            except ValueError:  # not shown: its text may contain a password
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
        partitioner = config.get("partitioner", PARTITIONERS[0])
        if partitioner not in PARTITIONERS:
            raise ValueError(
                f"partitioner {partitioner!r} in add_config would break the order of an aggregate, "
                f"because it ignores the key: use one of {', '.join(PARTITIONERS)}"
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
        self._check_security()
        if self.linger >= self.pool.delivery_timeout / 2:
            raise ValueError(
                f"linger ({self.linger:g} s) must be below half of the pool's delivery_timeout "
                f"({self.pool.delivery_timeout:g} s), or messages would be given up unsent: "
                "lower it"
            )
        return self

    def _check_security(self) -> None:
        """Check that `add_config` does not undo what the fields promise.

        No value is shown, because it may be a secret.
        """
        twice = sorted(
            name
            for name in self.add_config
            if name in FIELD_OF and getattr(self, FIELD_OF[name]) is not None
        )
        if twice:
            fields = ", ".join(dict.fromkeys(FIELD_OF[name] for name in twice))
            raise ValueError(
                f"{', '.join(twice)} in add_config would replace {fields}: leave one of them out"
            )
        given = str(self.add_config.get("security.protocol", self.protocol)).strip().upper()
        if self.wants_tls and not given.endswith("SSL"):
            raise ValueError(
                "security.protocol in add_config would turn off TLS, which the settings require: "
                "leave it out, or leave out tls and the tls_… files"
            )
        if self.sasl is not None and not given.startswith("SASL_"):
            raise ValueError(
                "security.protocol in add_config would turn off authentication, which the settings "
                "require: leave it out, or leave out sasl"
            )
        unverified = [
            name
            for name in ("enable.ssl.certificate.verification", VERIFIES_NAMES)
            if str(self.add_config.get(name, True)).strip().lower() in NO
        ]
        if self.wants_tls and unverified:
            raise ValueError(
                f"{', '.join(unverified)} in add_config would turn off the verification that tls "
                "stands for: leave it out and give tls_ca_file, or leave out tls and the tls_… "
                "files and set security.protocol in add_config, too"
            )

    @property
    def partitioner(self) -> str:
        """How a key is mapped to a partition, in librdkafka's words."""
        return str(self.add_config.get("partitioner", "murmur2_random"))

    @property
    def wants_tls(self) -> bool:
        """Whether an unencrypted connection must be refused."""
        return self.tls or any((self.tls_ca_file, self.tls_cert_file))

    @property
    def protocol(self) -> str:
        """What the fields for TLS and authentication ask for, as librdkafka calls it."""
        return ("SASL_" if self.sasl else "") + ("SSL" if self.wants_tls else "PLAINTEXT")
