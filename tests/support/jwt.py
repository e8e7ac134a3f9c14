"""Accounts and users by JWT (ADR-14), made for one test."""

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import nkeys

__all__ = ["operator_mode", "public_key"]


def public_key(seed: str) -> str:
    """The public key of a seed."""
    return bytes(nkeys.from_seed(bytearray(seed.encode())).public_key).decode()


def operator_mode(
    folder: Path, *, account_payload: int = -1, user_payload: int = -1
) -> tuple[str, Path]:
    """A server's configuration with an account of one user, and that user's credentials file.

    The payload limits are those of the account and of the user, in bytes.
    """
    operator, account, user, system = (
        bytes(nkeys.encode_seed(os.urandom(32), prefix)).decode()
        for prefix in (
            nkeys.PREFIX_BYTE_OPERATOR,
            nkeys.PREFIX_BYTE_ACCOUNT,
            nkeys.PREFIX_BYTE_USER,
            nkeys.PREFIX_BYTE_ACCOUNT,
        )
    )
    unlimited = {
        "limits": {
            "conn": -1,
            "subs": -1,
            "data": -1,
            "payload": account_payload,
            "mem_storage": -1,
            "disk_storage": -1,
        }
    }
    accounts = {
        account: _token(operator, account, "account", unlimited),
        system: _token(
            operator,
            system,
            "account",
            {"limits": {"conn": -1, "subs": -1, "data": -1, "payload": -1}},
        ),
    }
    system_account = public_key(system)
    preload = ", ".join(f"{public_key(seed)}: {jwt}" for seed, jwt in accounts.items())
    operator_token = _token(operator, operator, "operator", {"system_account": system_account})
    config = (
        f"operator: {operator_token}\n"
        f"system_account: {system_account}\nresolver: MEMORY\nresolver_preload: {{ {preload} }}\n"
    )
    creds = folder / "user.creds"
    token = _token(account, user, "user", {"subs": -1, "data": -1, "payload": user_payload})
    creds.write_text(
        f"-----BEGIN NATS USER JWT-----\n{token}\n"
        "------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user}\n------END USER NKEY SEED------\n"
    )
    return config, creds


def _token(issuer: str, subject: str, kind: str, claims: dict[str, Any]) -> str:
    """A NATS JWT (ADR-14), signed by the issuer's seed."""

    def encode(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).decode().rstrip("=")

    body = {
        "iss": public_key(issuer),
        "sub": public_key(subject),
        "name": kind,
        "iat": 0,
        "nats": {"type": kind, "version": 2, **claims},
    }
    body["jti"] = (
        base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).decode().rstrip("=")
    )
    head = encode(json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}).encode())
    signed = f"{head}.{encode(json.dumps(body).encode())}"
    return f"{signed}.{encode(nkeys.from_seed(bytearray(issuer.encode())).sign(signed.encode()))}"
