"""The greatest request that the server accepts, and how much it does at the same time."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """document_tokens: of all documents together. answers: `n` times the number of prompts. default_tokens: the length
    limit of an answer if the request gives none. connections: open at the same time, at most half of the files that
    the process may open; more get 503. header_seconds, body_seconds: for a client to send them. unread_seconds: for a
    client to read what was sent to it. shutdown_seconds: for running requests after SIGTERM. refused_share: the part
    of the time that the refused requests of one client may take, see `refusal_pace.py`; inf: no limit. adapter_rank:
    memories must be low-rank, of this rank at most, as vLLM has room for it; None: any memory."""

    body_bytes: int = 4 * 2**20
    documents: int = 32
    document_tokens: int = 16_384
    answers: int = 16
    max_tokens: int = 1024
    default_tokens: int = 256
    recipe_steps: int = 100
    connections: int = 1024
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    unread_seconds: float = 60.0
    shutdown_seconds: int = 120
    refused_share: float = 0.1
    adapter_rank: int | None = None


@dataclass(frozen=True)
class EngineLimits:
    """rows: answers decoded at the same time. waiting: jobs that may wait, for wait_seconds at most. prefix_bytes:
    keys and values of documents that are kept for reuse. overtaking: how many later jobs may start to use stored
    memories while an earlier job waits for room in the store. save_again_seconds: after which memories that could not
    be written to disk are written again."""

    rows: int = 16
    waiting: int = 64
    wait_seconds: float = 120.0
    prefix_bytes: int = 256 * 2**20
    overtaking: int = 16
    save_again_seconds: float = 30.0
