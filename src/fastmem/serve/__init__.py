"""The server: a store of memories, an engine, an OpenAI-compatible interface, and a page for the browser."""
