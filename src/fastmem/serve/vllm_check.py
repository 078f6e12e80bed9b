"""What is checked before the first request: each vLLM serves this model, reads the folder, and takes adapters.

A vLLM that does not answer yet is no error, since it may start later than this server.
"""

from dataclasses import replace

from fastmem.answer.request import Request as DecodeRequest
from fastmem.errors import InputError
from fastmem.model import FastMem
from fastmem.serve.adapter_folder import PREFIX
from fastmem.serve.vllm_adapters import chosen_for
from fastmem.serve.vllm_answers import VllmAnswers
from fastmem.serve.vllm_client import VllmClient, VllmRefusedError, VllmUnavailableError
from fastmem.serve.vllm_protocol import completion_body

TEXT = "The ferry leaves at nine."
NAME = f"{PREFIX}check"
# Another type, or other kernels, may exchange tokens that are nearly as likely as each other, but not more.
MOST_LIKELY = 5


async def check_vllm(answers: VllmAnswers, llm: FastMem) -> list[str]:
    """Try an adapter that changes nothing in every vLLM. Returns the addresses that do not answer yet.

    Errors: `InputError` for a vLLM that cannot be used, with what it said.
    """
    memory = llm.memorize(TEXT, replace(llm.recipe, steps=0))
    answers.folder.remove(NAME)
    answers.folder.write(llm, memory, NAME)
    silent = []
    try:
        for server in answers.servers:
            client = answers.options.client(server.client.url)
            try:
                await _check_one(client, answers, llm)
                _, loaded = await client.models()
                for name in loaded.intersection(answers.folder.names()):  # left from before another vLLM was added
                    if chosen_for(name, answers.servers) is not server:
                        await client.unload(name)
            except VllmUnavailableError as error:
                silent.append(f"{client.url} ({error.detail})")
            except VllmRefusedError as error:
                raise InputError(
                    f"the vLLM does not take adapters from {answers.folder.folder}: {error.detail}. It needs the same "
                    "folder at the same path, VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, --enable-lora and a --max-lora-rank "
                    f"of {llm.recipe.rank} or more.",
                    field="vllm",
                ) from error
            finally:
                await client.close()
    finally:
        answers.folder.remove(NAME)
    return silent


async def _check_one(client: VllmClient, answers: VllmAnswers, llm: FastMem) -> None:
    """Errors: `InputError` for another model, `VllmRefusedError`, `VllmUnavailableError`."""
    base, _ = await client.models()
    await client.unload(NAME)
    await client.load(NAME, answers.folder.path(NAME))
    try:
        tokens = llm.memory_tokens(TEXT, llm.recipe)
        body = completion_body(DecodeRequest(tokens.ids, max_new_tokens=1), NAME, base)
        found = [
            token
            async for chunk in client.completion(body)
            for choice in chunk["choices"]
            for token in choice["token_ids"]
        ]
    except (TypeError, LookupError) as error:
        raise VllmUnavailableError(f"{client.url} sent a response that makes no sense: {error!r:.200}") from error
    finally:
        await client.unload(NAME)
    likely = llm.logits(tokens.ids)[-1].topk(MOST_LIKELY).indices.tolist()
    if not found or found[0] not in likely:
        raise InputError(
            f"the vLLM at {client.url} goes on from a text with token {found[:1]}, {llm.name!r} with one of {likely}: "
            "it has to serve the same model.",
            field="vllm",
        )
