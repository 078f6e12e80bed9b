"""`/tokenize`, as vLLM has it: how many tokens a text or a conversation is, before it is sent."""

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field, model_validator

from fastmem import prompts
from fastmem.encoding import encoded
from fastmem.serve.schemas import Messages, Strict
from fastmem.serve.service import service_of

router = APIRouter()


class TokenizeRequest(Strict):
    """`POST /tokenize`: a plain text, or messages as the chat template writes them."""

    model: Annotated[str, Field(max_length=512)] | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _one_of_both(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give a prompt or messages")
        return self


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, request: Request) -> dict[str, Any]:
    """The tokens, their number, and the model's positions."""
    service = service_of(request)
    texts = [body.prompt or ""] if body.messages is None else [message.plain()["content"] for message in body.messages]

    def read() -> list[int]:
        service.text.check_texts(texts)
        tokenizer = service.llm.tokenizer
        if body.messages is not None:
            return prompts.chat_ids(tokenizer, [message.plain() for message in body.messages]).tolist()
        return list(encoded(tokenizer, texts[0], add_special_tokens=body.add_special_tokens)["input_ids"])

    tokens = await service.text.run(read)
    return {"count": len(tokens), "max_model_len": service.llm.split_model.max_positions, "tokens": tokens}
