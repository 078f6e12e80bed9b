"""Many memories, served to many: the store, the engine, an OpenAI-compatible server and its page."""
