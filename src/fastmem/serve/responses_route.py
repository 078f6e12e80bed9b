"""`/v1/responses`: OpenAI's newer interface, for text in and text out.

A request is a chat request in other words, and is answered as one; only the objects that come back differ. Nothing is
stored, so `previous_response_id` is refused.
"""

import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from fastmem.answer.running_batch import Piece
from fastmem.errors import InputError
from fastmem.serve.completion_routes import EventStream, asked_of
from fastmem.serve.http_errors import error_response
from fastmem.serve.jobs import AnswerFinished, JobFailed
from fastmem.serve.mailbox import Mailbox
from fastmem.serve.responses import CommonFields, costs, sse_event
from fastmem.serve.schemas import (
    MAX_MESSAGES,
    ChatRequest,
    Generation,
    JsonSchema,
    Message,
    ResponseFormat,
    Strict,
)
from fastmem.serve.service import Service, service_of

router = APIRouter(prefix="/v1")


class InputText(Strict):
    """A part of a turn: text that the user or, in a turn sent back, the model wrote."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    logprobs: Annotated[list[Any], Field(max_length=0)] | None = None


class InputMessage(Strict):
    """A turn of the conversation, also one that this server wrote."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[InputText], Field(max_length=64, fail_fast=True)]
    type: Literal["message"] = "message"
    id: str | None = None
    status: str | None = None

    def as_chat(self) -> Message:
        """The same as a message of a chat."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role=self.role, content=text)


class PlainFormat(Strict):
    """Text without a form, or any JSON object."""

    type: Literal["text", "json_object"]

    def as_chat(self) -> ResponseFormat | None:
        """The same as a format of a chat."""
        return ResponseFormat(type="json_object") if self.type == "json_object" else None


class SchemaFormat(JsonSchema):
    """JSON that follows a schema."""

    type: Literal["json_schema"]

    def as_chat(self) -> ResponseFormat:
        """The same as a format of a chat."""
        return ResponseFormat(type=self.type, json_schema=self)


class TextOptions(Strict):
    """The form of the answer."""

    format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] = PlainFormat(type="text")


class ResponsesRequest(Generation):
    """`POST /v1/responses`."""

    input: str | Annotated[list[InputMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    text: TextOptions = TextOptions()
    truncation: Literal["disabled"] = "disabled"

    def as_chat(self) -> ChatRequest:
        """The same as a chat request. Errors: `InputError` for more messages than a chat has."""
        turns = [Message(role="user", content=self.input)] if isinstance(self.input, str) else []
        turns += [turn.as_chat() for turn in self.input if not isinstance(turn, str)]
        if self.instructions is not None:
            turns.insert(0, Message(role="system", content=self.instructions))
        if len(turns) > MAX_MESSAGES:
            text = f"input and instructions are {len(turns)} messages: give at most {MAX_MESSAGES}."
            raise InputError(text, field="input")
        shared = {name: getattr(self, name) for name in self.model_fields_set & Generation.model_fields.keys()}
        own = {"max_tokens": self.max_output_tokens, "response_format": self.text.format.as_chat()}
        return ChatRequest.model_validate(shared | {"messages": turns} | own)


@router.post("/responses")
async def responses(body: ResponsesRequest, request: Request) -> Response:
    """Answer a text or a conversation."""
    service, chat = service_of(request), body.as_chat()
    sender = service.sender(request)
    asked = await service.text.run(lambda: asked_of(service, sender, chat))
    common = CommonFields(f"resp_{uuid.uuid4().hex}", int(time.time()), body.model, asked.method, True, 1, False)
    mailbox = Mailbox(service, asked.jobs, sender).submit()
    streaming = False
    try:
        _, event = await mailbox.next_or_gone(request)
        if body.stream:
            streaming = True
            events = _events(service, mailbox, common, body, event, request.state.request_id)
            return EventStream(mailbox.close, events)
        while not isinstance(event, AnswerFinished):
            _, event = await mailbox.next_or_gone(request)
        service.metrics.count_answer(asked.method, event)
        return JSONResponse(_response(common, body, event))
    finally:
        if not streaming:
            mailbox.close()


async def _events(
    service: Service,
    mailbox: Mailbox,
    common: CommonFields,
    body: ResponsesRequest,
    event: Any,
    request_id: str,
) -> AsyncIterator[bytes]:
    """The named events of a streamed response. event: the first of the mailbox."""
    count, item = 0, f"msg_{common.id.removeprefix('resp_')}"

    def named(kind: str, **fields: Any) -> bytes:
        nonlocal count
        data = {"type": kind, "sequence_number": count} | fields
        count += 1
        return sse_event(data, kind)

    place = {"item_id": item, "output_index": 0, "content_index": 0}
    try:
        begun = _response(common, body, None)
        yield named("response.created", response=begun)
        yield named("response.in_progress", response=begun)
        yield named("response.output_item.added", output_index=0, item=_message(item, None))
        yield named("response.content_part.added", **place, part=_part(""))
        while not isinstance(event, AnswerFinished):
            if isinstance(event, JobFailed):
                refusal = json.loads(bytes(error_response(event.error, request_id).body))["error"]
                yield named("error", code=refusal["code"], message=refusal["message"], param=refusal["param"])
                return
            if isinstance(event, Piece) and event.text:
                yield named("response.output_text.delta", **place, delta=event.text, logprobs=[])
            _, event = await mailbox.next()
        service.metrics.count_answer(common.method, event)
        text = event.answer.text
        yield named("response.output_text.done", **place, text=text, logprobs=[])
        yield named("response.content_part.done", **place, part=_part(text))
        yield named("response.output_item.done", output_index=0, item=_message(item, text))
        done = _response(common, body, event)
        yield named(f"response.{done['status']}", response=done)
    finally:
        mailbox.close()


def _response(common: CommonFields, body: ResponsesRequest, end: AnswerFinished | None) -> dict[str, Any]:
    """The response object. end: None while it is being written."""
    cut = end is not None and end.answer.reason == "length"
    status = "in_progress" if end is None else "incomplete" if cut else "completed"
    found: dict[str, Any] = {
        "id": common.id,
        "object": "response",
        "created_at": common.created,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": {},
        "model": common.model,
        "output": [],
        "parallel_tool_calls": False,
        "previous_response_id": None,
        "store": False,
        "temperature": body.sampling()["temperature"],
        "text": body.text.model_dump(by_alias=True, exclude_none=True),
        "tool_choice": "none",
        "tools": [],
        "top_p": body.top_p,
        "truncation": body.truncation,
        "usage": None,
    }
    if end is None:
        return found
    tokens = {"input_tokens": end.answer.prompt_tokens, "output_tokens": len(end.answer.token_ids)}
    return found | {
        "output": [_message(f"msg_{common.id.removeprefix('resp_')}", end.answer.text)],
        "usage": tokens
        | {
            "input_tokens_details": {"cached_tokens": end.answer.cached_tokens},
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": sum(tokens.values()),
        },
        "fastmem": costs(common, [end]),
    }


def _message(item: str, text: str | None) -> dict[str, Any]:
    """The one item of the output. text: None while it is being written."""
    status = "in_progress" if text is None else "completed"
    content = [] if text is None else [_part(text)]
    return {"id": item, "type": "message", "role": "assistant", "status": status, "content": content}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
