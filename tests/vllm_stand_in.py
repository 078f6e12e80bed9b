"""A stand-in for vLLM, for tests without one: it speaks the same API, and its answers say who wrote them.

It has `/v1/models`, `/v1/load_lora_adapter`, `/v1/unload_lora_adapter` and streamed `/v1/completions` with token ids,
with the statuses and objects of vLLM 0.32. It runs no model: an answer is the name of what was asked, in pieces. The
real vLLM is asked by `make test-vllm`.
"""

import asyncio
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from serving import eventually


def problem(status, message):
    return JSONResponse({"error": {"message": message, "type": "x", "param": None, "code": status}}, status)


@dataclass
class StandIn:
    """behaviour: `well`, or how it fails. loaded: name -> folder. calls: what was asked, in order; bodies: of the
    completions. silence: how long an answer takes to begin. most: how many completions ran at the same time.
    answering: the models of the running completions. cut: the adapters that were unloaded while they answered."""

    behaviour: str = "well"
    loaded: dict = field(default_factory=dict)
    calls: list = field(default_factory=list)
    bodies: list = field(default_factory=list)
    silence: float = 0.0
    answering: list = field(default_factory=list)
    cut: list = field(default_factory=list)
    most: int = 0
    port: int = 0
    server: uvicorn.Server | None = None
    thread: threading.Thread | None = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    @property
    def running(self):
        return len(self.answering)

    def restart(self):
        """Forget all adapters, as vLLM does."""
        self.loaded.clear()

    def start(self):
        """Listen, on the same port as before."""
        config = uvicorn.Config(self.app(), host="127.0.0.1", port=self.port, log_config=None, lifespan="off")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        eventually(lambda: self.server.started)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]

    def stop(self):
        """Refuse connections."""
        self.server.should_exit = self.server.force_exit = True
        self.thread.join()

    def names(self, call):
        """The adapters for which something was called."""
        return [name for called, name in self.calls if called == call]

    def app(self):
        app = FastAPI()

        @app.get("/v1/models")
        async def models():
            self.calls.append(("models", ""))
            base = {"id": "base", "root": "/secret", "parent": None, "max_model_len": 2048}
            return {
                "data": [base, *({"id": name, "root": path, "parent": "base"} for name, path in self.loaded.items())]
            }

        @app.post("/v1/load_lora_adapter")
        async def load(body: dict):
            name, folder = body["lora_name"], Path(body["lora_path"])
            self.calls.append(("load", name))
            if self.behaviour == "takes no adapters":
                return problem(500, f"LoRA rank 8 is greater than max_lora_rank 4 at {folder}")
            if name in self.loaded:
                return problem(400, f"The lora adapter '{name}' has already been loaded.")
            if (
                not (folder / "adapter_config.json").is_file()
                or (folder / "adapter_model.safetensors").stat().st_size < 64
            ):
                return problem(404, f"Loading lora {name} failed: No adapter found for {folder}")
            self.loaded[name] = str(folder)
            return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

        @app.post("/v1/unload_lora_adapter")
        async def unload(body: dict):
            self.calls.append(("unload", body["lora_name"]))
            if body["lora_name"] in self.answering:
                self.cut.append(body["lora_name"])
            if self.loaded.pop(body["lora_name"], None) is None:
                return problem(404, "The lora adapter cannot be found.")
            return PlainTextResponse("Success")

        @app.post("/v1/completions")
        async def completions(body: dict, request: Request) -> Response:
            self.calls.append(("ask", body["model"]))
            self.bodies.append(body)
            if self.behaviour == "500":
                return problem(500, "EngineCore at /secret encountered an issue")
            if self.behaviour == "400":
                return problem(400, "adapter fastmem-other of /secret")
            if self.behaviour == "nonsense":
                return PlainTextResponse("data: {nonsense\n\n", media_type="text/event-stream")
            if self.behaviour == "another object":
                return PlainTextResponse('data: {"choices": [{"text": 5}]}\n\n', media_type="text/event-stream")
            if self.behaviour == "endless line":
                return StreamingResponse(endless(), media_type="text/event-stream")
            if body["model"] != "base" and body["model"] not in self.loaded:
                return problem(404, f"The model `{body['model']}` does not exist.")
            return StreamingResponse(self.chunks(body), media_type="text/event-stream")

        return app

    async def chunks(self, body):
        """The name of the model in pieces of four characters, each with one token id."""
        self.answering.append(body["model"])
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.silence)
            text = body["model"]
            pieces = [text[i : i + 4] for i in range(0, len(text), 4)][: body["max_tokens"]]
            for number, piece in enumerate(pieces):
                last = number == len(pieces) - 1
                choice = {"index": 0, "text": piece, "token_ids": [65 + number], "logprobs": None}
                if "logprobs" in body:
                    top = {f"token_id:{65 + number}": -0.5, "token_id:7": -0.25}
                    choice["logprobs"] = {
                        "tokens": [f"token_id:{65 + number}"], "token_logprobs": [-0.5], "top_logprobs": [top],
                    }  # fmt: skip
                if last and self.behaviour != "breaks off":
                    choice["finish_reason"] = "stop"
                yield f"data: {json.dumps({'choices': [choice]})}\n\n"
                if self.behaviour == "breaks off":
                    return
                await asyncio.sleep(0.001)
            yield f"data: {json.dumps({'choices': [], 'usage': {'prompt_tokens': 3}})}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            self.answering.remove(body["model"])


async def endless():
    for _ in range(100):
        yield b"x" * 65536
        await asyncio.sleep(0.001)


@contextmanager
def stand_ins(count=1):
    """So many of them, listening."""
    found = [StandIn() for _ in range(count)]
    try:
        for one in found:
            one.start()
        yield found
    finally:
        for one in found:
            if one.thread.is_alive():
                one.stop()
