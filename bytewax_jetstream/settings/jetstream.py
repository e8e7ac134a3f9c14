"""`JetStreamSettings`, `StreamSettings`: how to reach JetStream, and which streams must exist."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic.functional_validators import field_validator
from pydantic_settings import SettingsConfigDict

from .pool import PoolSettings
from .sources import PREFIX, Count, Seconds, Settings, StreamStrategy, Words

__all__ = ["JetStreamSettings", "StreamSettings"]

INBOX_PREFIX = re.compile(r"(?=.{1,255}\Z)(?!\$)[!-)+,\-/-=?-~]+(\.[!-)+,\-/-=?-~]+)*").fullmatch


DUPLICATE_WINDOW = timedelta(minutes=2)


class StreamSettings(BaseModel):
    """A JetStream stream as this flow needs it; for None, the server or the stream decides."""

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
    duplicate_window: timedelta = Field(
        default_factory=lambda fields: min(
            DUPLICATE_WINDOW, fields.get("max_age") or DUPLICATE_WINDOW
        )
    )
    """How long the server remembers an event id: by default 2 minutes, or `max_age` if that is
    shorter. A stream that is there may have a shorter one unless this is set. At least twice the
    `ack_timeout`, unless `dedupe` is False.
    """
    allow_message_ttl: bool = False
    """Required by envelopes with `PublishOptions(ttl=…)`."""
    allow_message_schedules: bool = False
    """Required by envelopes with `PublishOptions(schedule=…)`; needs nats-server 2.12 or later."""
    allow_atomic: bool = False
    """Required by `JetStreamSettings(atomic=True)`; needs nats-server 2.12 or later."""
    allow_batched: bool = True
    """Let the stream take batches, if the server can (nats-server 2.14 or later)."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.max_age and self.duplicate_window > self.max_age:
            raise ValueError(
                f"duplicate_window of stream {self.name} ({self.duplicate_window}) is above its "
                f"max_age ({self.max_age}), which the server refuses: raise max_age, or leave "
                "duplicate_window out"
            )
        return self


class JetStreamSettings(Settings):
    """How to reach JetStream, and which streams must exist (`BYTEWAX_JETSTREAM_…`)."""

    model_config = SettingsConfigDict(env_prefix=PREFIX)

    servers: Words = ("nats://127.0.0.1:4222",)
    """URLs of one cluster's servers, without credentials; comma-separated in a variable."""
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
    """Set it for servers that are configured with `handshake_first`."""
    domain: str | None = None
    """JetStream domain: the API prefix becomes `$JS.<domain>.API`."""
    inbox_prefix: str = "_INBOX"
    """What the subjects for answers begin with, for users who may not subscribe to `_INBOX.>`."""
    api_prefix: str | None = None
    """Prefix of the JetStream API, if an account imports it under another name."""
    connect_timeout: Seconds = 10.0
    """Seconds for the first connection, including making or checking the streams."""
    topics: Words = ()
    """Topics known in advance: the run fails at start unless a stream covers each of them."""
    streams: tuple[StreamSettings, ...] = ()
    stream_strategy: StreamStrategy = "create"
    """`create` makes missing streams and checks existing ones; `create_or_update` also updates
    them; `validate` only checks; `skip` sends no requests, for users without permission for them.
    """
    dedupe: bool = True
    """Whether the server remembers event ids (`Nats-Msg-Id`) and drops duplicates. If False, the id
    is in the header `Event-Id` only. That is faster, but a retry after an unanswered attempt, or a
    replay, may be stored twice.
    """
    atomic: bool = False
    """Whether the envelopes of one aggregate that are submitted together are stored all or none,
    and share one outcome: at most 1,000, on one stream, which must have `allow_atomic`. Slower than
    batches.
    """
    pool: PoolSettings = Field(default_factory=PoolSettings)

    @field_validator("servers")
    @classmethod
    def _servers(cls, servers: tuple[str, ...]) -> tuple[str, ...]:
        if not servers:
            raise ValueError("name at least one server, such as nats://127.0.0.1:4222")
        for server in servers:
            if "@" in server:
                raise ValueError(
                    "credentials in a server's URL end up in logs: use user and password, or token"
                )
            scheme = _scheme(server)
            if scheme in ("ws", "wss"):
                raise ValueError(
                    "WebSocket servers are not supported: use the server's nats:// or tls:// "
                    "address"
                )
            try:
                url = urlsplit(f"//{server.split('://', 1)[-1]}")
                complete = bool(url.hostname) and url.port != 0
            except ValueError:  # not shown: its text may contain a password
                complete = False
            if not complete or scheme not in ("nats", "tls"):
                raise ValueError(
                    "invalid server address: write nats://host:port or tls://host:port"
                )
        return servers

    @field_validator("inbox_prefix")
    @classmethod
    def _inbox_prefix(cls, prefix: str) -> str:
        if not INBOX_PREFIX(prefix):
            raise ValueError(
                "invalid inbox_prefix: write a subject of at most 255 characters, without "
                "wildcards, such as _INBOX_orders"
            )
        return prefix

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        ways = [self.user, self.token, self.nkey_seed, self.credentials_file]
        if sum(way is not None for way in ways) > 1:
            raise ValueError(
                "give only one way to authenticate: user and password, token, nkey_seed or "
                "credentials_file"
            )
        if (self.user is None) != (self.password is None):
            raise ValueError("user and password go together: give both or neither")
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file go together: give both or neither")
        if self.domain is not None and self.api_prefix is not None:
            raise ValueError("give domain or api_prefix, not both")
        lacking = [
            stream.name for stream in self.streams if self.atomic and not stream.allow_atomic
        ]
        if lacking:
            raise ValueError(
                f"atomic needs allow_atomic on stream {', '.join(lacking)}: set it there too"
            )
        least = self.least_duplicate_window
        for stream in self.streams:
            if least is not None and stream.duplicate_window < timedelta(seconds=least):
                raise ValueError(
                    f"duplicate_window of stream {stream.name} ({stream.duplicate_window}) is "
                    f"below twice the ack timeout ({timedelta(seconds=least)}), so a retry could "
                    "be stored twice: raise it (and max_age), lower ack_timeout, or set "
                    "dedupe=False"
                )
        return self

    @property
    def wants_tls(self) -> bool:
        """Whether an unencrypted connection must be refused."""
        files = (self.tls_ca_file, self.tls_cert_file, self.tls_hostname)
        return (
            self.tls
            or self.tls_handshake_first
            or any(files)
            or any(_scheme(s) == "tls" for s in self.servers)
        )

    @property
    def least_duplicate_window(self) -> float | None:
        """Seconds for which every stream must remember event ids: a retry comes one ack timeout
        after the first attempt, and may be an ack timeout on its way. None without `dedupe`.
        """
        return 2 * self.pool.ack_timeout if self.dedupe else None

    @property
    def js_prefix(self) -> str:
        """Where the JetStream API listens, without a trailing dot."""
        return self.api_prefix or (f"$JS.{self.domain}.API" if self.domain else "$JS.API")


def _scheme(server: str) -> str:
    return server.split("://")[0].lower() if "://" in server else "nats"
