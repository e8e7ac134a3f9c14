"""Settings, from arguments, the environment, `.env` and a secrets directory, in this order.

One prefix: `BYTEWAX_JETSTREAM_`; the pool's are `BYTEWAX_JETSTREAM_POOL_…`, Kafka's `BYTEWAX_JETSTREAM_KAFKA_…`.
A variable with that prefix which no settings class knows is an error: a misspelt deadline must not fall
back to a default in silence. Other people's keys in `.env` are not our business. Secrets are `SecretStr` and
never printed.
"""

import os
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator
from pydantic.functional_validators import field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

__all__ = [
    "BrokerSettings",
    "JetStreamSettings",
    "KafkaSettings",
    "KafkaTopicSettings",
    "PoolSettings",
    "StreamSettings",
    "StreamStrategy",
]

PREFIX = "BYTEWAX_JETSTREAM_"
SECRETS_DIR = PREFIX + "SECRETS_DIR"


def _split(value: object) -> object:
    """Let `a,b` in a variable stand for two words, as `nats` servers are commonly written."""
    return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value


def _scheme(server: str) -> str:
    return server.split("://")[0].lower() if "://" in server else "nats"


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]
StreamStrategy = Literal["create", "create_or_update", "validate", "skip"]


class _Settings(BaseSettings):
    """What all settings of this package share: their sources, and the check for misspelt variables."""

    model_config = SettingsConfigDict(
        env_file=".env", extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        secrets = _checked_secrets_dir(cls.model_config.get("env_file"))
        if secrets is not None:
            file_secret_settings = SecretsSettingsSource(settings_cls, secrets_dir=secrets)
        # Other classes' and other people's keys in `.env` would be "extra" to this class: only its own count.
        own = _OwnKeys(settings_cls, dotenv_settings)
        return init_settings, env_settings, own, file_secret_settings


class _OwnKeys(PydanticBaseSettingsSource):
    """The fields of one class out of a `.env` file that many share."""

    def __init__(self, settings_cls: type[BaseSettings], source: PydanticBaseSettingsSource) -> None:
        super().__init__(settings_cls)
        self._source = source

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return self._source.get_field_value(field, field_name)

    def __call__(self) -> dict[str, Any]:
        fields = self.settings_cls.model_fields
        return {name: value for name, value in self._source().items() if name in fields}


def _checked_secrets_dir(env_file: Any) -> Path | None:
    """Look at every name with our prefix, wherever it is written; returns the secrets directory, if one is named."""
    known = {SECRETS_DIR} | {
        (str(cls.model_config.get("env_prefix")) + field).upper()
        for cls in _Settings.__subclasses__()
        for field in cls.model_fields
    }
    written = {**(dotenv_values(env_file) if env_file else {}), **os.environ}
    named = next((value for name, value in written.items() if name.upper() == SECRETS_DIR and value), None)
    secrets = Path(named).expanduser() if named else None
    if secrets is not None and not secrets.is_dir():
        raise ValueError(f"{SECRETS_DIR} is {secrets}, which is no directory: make it, or correct the path")
    names = [*written, *(file.name for file in secrets.iterdir())] if secrets is not None else list(written)
    unknown = sorted(name for name in names if name.upper().startswith(PREFIX) and name.upper() not in known)
    if unknown:
        raise ValueError(
            f"unknown setting {', '.join(unknown)}: correct the name or remove it; known are {', '.join(sorted(known))}"
        )
    return secrets


class PoolSettings(_Settings):
    """Sizes and deadlines of the process's one ACK pool (`BYTEWAX_JETSTREAM_POOL_…`)."""

    model_config = SettingsConfigDict(env_prefix=PREFIX + "POOL_")

    ack_workers: Count = Field(default_factory=lambda: 2 * (os.cpu_count() or 1))
    """How many ACK workers settle answered tasks; default twice the CPUs."""
    budget_messages: Count = 16_000
    """How many messages may be unsettled at once, over all lanes and brokers.

    Two windows full: enough that a broker never waits for us, and little enough that the garbage collector, which
    looks at all that is unsettled, does not take from the dataflow what a larger one would win (`bench --max-pending`).
    """
    budget_bytes: Count = 256 * 1024 * 1024
    """How many payload bytes may be unsettled at once, over all lanes and brokers."""
    ack_timeout: Seconds = 5.0
    """Seconds one attempt may wait for its ack before it is sent again with the same event id."""
    delivery_timeout: Seconds = 60.0
    """Seconds an envelope may take with all its attempts; then its outcome is unknown."""
    drain_timeout: Seconds = 20.0
    """Seconds for settling what is in flight after SIGTERM or SIGINT; then the run ends non-zero."""


class StreamSettings(BaseModel):
    """A JetStream stream as this flow needs it; fields left None are the server's or the stream's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[^\s.*>/\\]{1,255}$")]
    subjects: Annotated[Words, Field(min_length=1)]
    storage: Literal["file", "memory"] = "file"
    replicas: Annotated[int, Field(ge=1, le=5)] = 1
    retention: Literal["limits", "interest", "workqueue"] = "limits"
    discard: Literal["old", "new"] | None = None
    max_messages: Count | None = None
    max_bytes: Count | None = None
    max_message_size: Count | None = None
    max_age: timedelta | None = None
    duplicate_window: timedelta = timedelta(minutes=2)
    """How long the server knows an event id; must not be below the delivery timeout."""
    allow_message_ttl: bool = False
    """Needed for envelopes with `PublishOptions(ttl=…)`."""
    allow_atomic: bool = False
    """Needed for `JetStreamSettings(atomic=True)`; nats-server 2.12 and later."""
    allow_batched: bool = True
    """Let the stream take whole flights with one ack, where the server can (2.14 and later)."""


class JetStreamSettings(_Settings):
    """How to reach JetStream, and which streams must be there (`BYTEWAX_JETSTREAM_…`)."""

    model_config = SettingsConfigDict(env_prefix=PREFIX)

    servers: Words = ("nats://127.0.0.1:4222",)
    """URLs of one cluster, without credentials; comma-separated in a variable."""
    name: str = "bytewax_jetstream"
    """Shown in the server's monitoring."""
    user: str | None = None
    password: SecretStr | None = None
    token: SecretStr | None = None
    nkey_seed: SecretStr | None = None
    credentials_file: Path | None = None
    """A `.creds` file (JWT and seed)."""
    tls: bool = False
    """Refuse any connection that is not encrypted and verified; implied by the fields below."""
    tls_ca_file: Path | None = None
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    tls_hostname: str | None = None
    tls_handshake_first: bool = False
    """For servers that are configured with `handshake_first`."""
    domain: str | None = None
    """JetStream domain: the API prefix becomes `$JS.<domain>.API`."""
    api_prefix: str | None = None
    """Prefix of the JetStream API where an account imports it under another name."""
    connect_timeout: Seconds = 10.0
    """Seconds until the first connection must stand, streams made or checked."""
    topics: Words = ()
    """Topics known beforehand: the run fails at start unless a stream covers each."""
    streams: tuple[StreamSettings, ...] = ()
    stream_strategy: StreamStrategy = "create"
    """`create` makes what is missing and checks what is there; `create_or_update` also mends it;
    `validate` only checks; `skip` asks the server nothing (for users without that permission)."""
    dedupe: bool = True
    """Whether the server is to know event ids (`Nats-Msg-Id`) and drop what it has already. Without, the id travels
    in `Event-Id` only: that is faster, and a retry after an unanswered attempt, or a replay, may be stored twice."""
    atomic: bool = False
    """Whether the envelopes of one aggregate that come in one batch are stored all or none: at most 1,000, on one
    stream, which must have `allow_atomic`; they share one outcome. Slower than whole flights."""
    pool: PoolSettings = Field(default_factory=PoolSettings)

    @field_validator("servers")
    @classmethod
    def _servers(cls, servers: tuple[str, ...]) -> tuple[str, ...]:
        if not servers:
            raise ValueError("name at least one server, such as nats://127.0.0.1:4222")
        for server in servers:
            if "@" in server:
                raise ValueError("credentials in a server's URL end up in logs: use user and password, or token")
            scheme = _scheme(server)
            if scheme in ("ws", "wss"):
                raise ValueError("WebSocket servers are not supported: use the server's nats:// or tls:// address")
            try:
                url = urlsplit(f"//{server.split('://', 1)[-1]}")
                complete = bool(url.hostname) and url.port != 0
            except ValueError:  # whose words may contain what was written
                complete = False
            if not complete or scheme not in ("nats", "tls"):
                raise ValueError("a server is written nats://host:port or tls://host:port")
        return servers

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        ways = [self.user, self.token, self.nkey_seed, self.credentials_file]
        if sum(way is not None for way in ways) > 1:
            raise ValueError("give one way to authenticate: user and password, token, nkey_seed or credentials_file")
        if (self.user is None) != (self.password is None):
            raise ValueError("user and password go together")
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file go together")
        if self.domain is not None and self.api_prefix is not None:
            raise ValueError("give domain or api_prefix, not both")
        lacking = [stream.name for stream in self.streams if self.atomic and not stream.allow_atomic]
        if lacking:
            raise ValueError(f"atomic needs allow_atomic of stream {', '.join(lacking)}: set it there, too")
        window = timedelta(seconds=self.pool.delivery_timeout)
        for stream in self.streams:
            if stream.duplicate_window < window:
                raise ValueError(
                    f"duplicate_window of stream {stream.name} ({stream.duplicate_window}) is below the delivery "
                    f"timeout ({window}), so a late retry could be stored twice: raise the one or lower the other"
                )
        return self

    @property
    def wants_tls(self) -> bool:
        """Whether an unencrypted connection must be refused."""
        files = (self.tls_ca_file, self.tls_cert_file, self.tls_hostname)
        return self.tls or self.tls_handshake_first or any(files) or any(_scheme(s) == "tls" for s in self.servers)

    @property
    def js_prefix(self) -> str:
        """Where the JetStream API listens, without a trailing dot."""
        return self.api_prefix or (f"$JS.{self.domain}.API" if self.domain else "$JS.API")


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
                f"min_insync_replicas of topic {self.name} is above its replicas, so it could not take a message"
            )
        return self


class KafkaSettings(_Settings):
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
    """Seconds a message may wait for others to share its request; an epoch's end does not wait for it."""
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "none"
    batch_bytes: Count = 1_000_000
    """Bytes in one request to a partition; must not exceed the topic's `max.message.bytes`."""
    max_message_bytes: Count = 1_000_000
    """The largest message this flow sends; a larger one is rejected before it is sent."""
    topics: Words = ()
    """Topics known beforehand: the run fails at start unless each is there."""
    topic_settings: tuple[KafkaTopicSettings, ...] = ()
    topic_strategy: StreamStrategy = "create"
    """`create` makes what is missing and checks what is there; `create_or_update` also mends it;
    `validate` only checks; `skip` asks the brokers nothing (for users without that permission)."""
    add_config: dict[str, str | int | float | bool] = Field(default_factory=dict, repr=False)
    """Any other property of librdkafka, by its own name; those that promises stand on are refused."""
    pool: PoolSettings = Field(default_factory=PoolSettings)

    @field_validator("brokers")
    @classmethod
    def _brokers(cls, brokers: tuple[str, ...]) -> tuple[str, ...]:
        if not brokers:
            raise ValueError("name at least one broker, such as 127.0.0.1:9092")
        for broker in brokers:
            if "@" in broker:
                raise ValueError("credentials in a broker's address end up in logs: use sasl, user and password")
            try:
                url = urlsplit(f"//{broker}")
                complete = bool(url.hostname) and bool(url.port) and not url.path and "://" not in broker
            except ValueError:  # whose words may contain what was written
                complete = False
            if not complete:
                raise ValueError("a broker is written host:port; whether it speaks TLS is the field tls")
        return brokers

    @field_validator("add_config")
    @classmethod
    def _add_config(cls, config: dict[str, str | int | float | bool]) -> dict[str, str | int | float | bool]:
        kept = sorted(name for name in config if name in KAFKA_OWN or name.endswith("_cb"))
        if kept:
            raise ValueError(
                f"{', '.join(kept)} in add_config would break a promise of this package: use its fields, or leave it"
            )
        return config

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file go together")
        oauth = (self.oauth_token_url, self.oauth_client_id, self.oauth_client_secret)
        if self.sasl == "OAUTHBEARER":
            if None in oauth or self.user is not None or self.password is not None:
                raise ValueError("OAUTHBEARER takes oauth_token_url, oauth_client_id and oauth_client_secret only")
        elif any(oauth) or self.oauth_scope:
            raise ValueError("the oauth_… fields need sasl=OAUTHBEARER")
        elif (self.sasl is None) != (self.user is None) or (self.user is None) != (self.password is None):
            raise ValueError("sasl, user and password go together")
        if self.linger >= self.pool.delivery_timeout / 2:
            raise ValueError("linger is not below half the pool's delivery_timeout: messages would be given up unsent")
        return self

    @property
    def wants_tls(self) -> bool:
        """Whether an unencrypted connection must be refused."""
        return self.tls or any((self.tls_ca_file, self.tls_cert_file))


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

BrokerSettings = JetStreamSettings | KafkaSettings
"""Which broker, and everything that differs between brokers."""
