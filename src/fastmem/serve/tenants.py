"""Who sends a request: the API key, the tenant it belongs to, and what a tenant may use.

Each tenant has its own memories. Keys come from the command line, each a tenant of its own, or from a TOML file that
names tenants, gives them limits, and is read again when it changes:

    [ada]
    key = "..."
    memories = 100
    bytes = 2_000_000_000
    tokens_per_minute = 60_000
    running = 4
"""

import hashlib
import hmac
import json
import logging
import threading
import time
import tomllib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from fastapi import Request

from fastmem.errors import InputError

log = logging.getLogger("fastmem")


@dataclass(frozen=True)
class Quota:
    """What one tenant may use. None: no limit. memories, bytes: stored; bytes are those in RAM or on disk.
    tokens_per_minute: of prompts and answers. running: requests at the same time."""

    memories: int | None = None
    bytes: int | None = None
    tokens_per_minute: int | None = None
    running: int | None = None


@dataclass(frozen=True)
class Tenant:
    """identity: what a memory's owner is made of, with a salt. name: None for a key of the command line."""

    identity: tuple[str, str]
    name: str | None = None
    quota: Quota = field(default_factory=Quota)

    def salted(self, salt: str | None) -> str:
        """The owner of memories: a digest from which neither key nor salt can be read, different for every pair."""
        return hashlib.sha256(json.dumps([*self.identity, salt]).encode()).hexdigest()


class Keys:
    """The accepted keys. Without any, every client is let in, and clients with different keys are different tenants.

    file: the TOML file of tenants. Errors: `InputError` for an empty key, or a file that is not as described.
    """

    def __init__(self, api_keys: Sequence[str] = (), file: Path | None = None):
        for key in api_keys:
            check_key("api_key", key)
        self._given, self._file = tuple(api_keys), file
        self._modified, self._looked = 0.0, 0.0
        self._of_file: dict[str, Tenant] = {}
        self._lock = threading.Lock()
        if file is not None:
            self._of_file, self._modified = tenants_of(file), _modified(file)

    @property
    def needed(self) -> bool:
        """Whether a request needs a key."""
        return bool(self._given) or self._file is not None

    def tenant(self, key: str) -> Tenant | None:
        """The tenant of a key, or None if it is not accepted. Compared in constant time."""
        found = Tenant(("fastmem tenant", key)) if not self.needed or is_accepted_key(key, self._given) else None
        for other, tenant in self._named().items():
            if is_accepted_key(key, [other]):
                found = tenant
        return found

    def _named(self) -> dict[str, Tenant]:
        """The tenants of the file, which is looked at once a second. A file that cannot be used changes nothing."""
        with self._lock:
            now = time.monotonic()
            if self._file is not None and now - self._looked > 1.0:
                self._looked = now
                modified = _modified(self._file)
                if modified != self._modified:
                    self._modified = modified
                    try:
                        self._of_file = tenants_of(self._file)
                        log.info("the keys were read again", extra={"fields": {"tenants": len(self._of_file)}})
                    except InputError as error:
                        log.warning("the keys could not be read again; the old ones stay in use: %s", error.text)
            return self._of_file


def tenants_of(file: Path) -> dict[str, Tenant]:
    """Key -> tenant, from a TOML file. Errors: `InputError`, which never shows a key."""
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not TOML"
        raise InputError(f"the keys in {file} cannot be read: {reason}.", field="keys_file") from None
    found: dict[str, Tenant] = {}
    names = [one.name for one in fields(Quota)]
    for name, table in tables.items():
        where = f"tenant {name!r} in {file}"
        if not isinstance(table, dict) or not isinstance(key := table.get("key"), str) or not key.strip():
            raise InputError(f"{where}: give a table with a key that is not empty.", field="keys_file")
        limits = {option: value for option, value in table.items() if option != "key"}
        for option, value in limits.items():
            if option not in names:
                raise InputError(
                    f"{where}: unknown {option!r}; accepted are key, {', '.join(names)}.", field="keys_file"
                )
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise InputError(f"{where}: {option} takes a whole number, 0 or more.", field="keys_file")
        if key in found:
            raise InputError(f"{where}: another tenant has the same key.", field="keys_file")
        found[key] = Tenant(("fastmem tenant by name", name), name, Quota(**limits))
    return found


class Usage:
    """What tenants use at the moment: running requests, and the tokens of the last minute."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], int] = {}
        self._tokens: dict[tuple[str, str], deque[tuple[float, int]]] = {}

    def begin(self, tenant: Tenant) -> None:
        """Count a request that begins. Errors: `QuotaError`."""
        who, quota, now = tenant.identity, tenant.quota, time.monotonic()
        if quota.running is not None and self._running.get(who, 0) >= quota.running:
            raise QuotaError(
                f"{quota.running} requests of this key are running, the most it may have: wait until one has ended.", 1
            )
        if quota.tokens_per_minute is not None:
            spent = self._tokens.get(who, deque())
            while spent and now - spent[0][0] > 60:
                spent.popleft()
            if sum(tokens for _, tokens in spent) >= quota.tokens_per_minute:
                wait = max(1, round(60 - (now - spent[0][0])) + 1) if spent else 60
                raise QuotaError(
                    f"this key may use {quota.tokens_per_minute} tokens a minute: try again in {wait} s.", wait
                )
        self._running[who] = self._running.get(who, 0) + 1

    def end(self, tenant: Tenant) -> None:
        """Count a request that has ended."""
        left = self._running.get(tenant.identity, 0) - 1
        if left > 0:
            self._running[tenant.identity] = left
        else:
            self._running.pop(tenant.identity, None)

    def spend(self, tenant: Tenant, tokens: int) -> None:
        """Count tokens that were read or written."""
        if tenant.quota.tokens_per_minute is not None:
            self._tokens.setdefault(tenant.identity, deque()).append((time.monotonic(), tokens))


class QuotaError(InputError):
    """A tenant uses all that it may. retry_after_seconds: when to ask again."""

    def __init__(self, text: str, retry_after_seconds: int):
        super().__init__(text)
        self.retry_after_seconds = retry_after_seconds


def check_key(name: str, key: str) -> None:
    """name: `api_key` or `admin_key`. Errors: `InputError` for an empty key, which would accept everybody."""
    if not key.strip():
        text = f"the {name.replace('_', ' ')} is empty, which would accept everybody: give a key, or leave it out."
        raise InputError(text, field=name)


def bearer_key(request: Request) -> str:
    """The key in `Authorization: Bearer <key>`, or an empty string."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def is_accepted_key(key: str, accepted: Sequence[str]) -> bool:
    """Whether the key is among the accepted ones, compared in constant time."""
    return any(hmac.compare_digest(key.encode(), other.encode()) for other in accepted)


def _modified(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
