"""The greatest request that the server accepts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """document_tokens: of all documents together. answers: `n` times the number of prompts. default_tokens: the length
    limit of an answer if the request gives none. connections: open at the same time, more get 503. header_seconds,
    body_seconds: for a client to send them. shutdown_seconds: for running requests after SIGTERM."""

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
    shutdown_seconds: int = 120
