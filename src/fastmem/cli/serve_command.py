"""`fastmem serve`: build the server from the arguments and run it."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastmem.cli.flags import ModelFlags, OutputFlags, ServedRecipeFlags, with_flags
from fastmem.cli.output import Status, emit, say
from fastmem.errors import InputError, one_of
from fastmem.extras import require

if TYPE_CHECKING:
    from fastmem.serve.vllm_answers import VllmOptions


@with_flags
def serve(
    model: ModelFlags,
    recipe: ServedRecipeFlags,
    output: OutputFlags,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help="Address to listen on; the default accepts connections from this machine only."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, metavar="N", help="Port to listen on.")] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="FASTMEM_API_KEY", metavar="KEY", help="Accept only these keys; each key has its own memories."
        ),
    ] = None,
    keys_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Tenants with keys and limits (TOML), read again when it changes."),
    ] = None,
    admin_key: Annotated[
        str | None,
        typer.Option(envvar="FASTMEM_ADMIN_KEY", metavar="KEY", help="Key for /metrics, which covers all tenants."),
    ] = None,
    allowed_hosts: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Host names that clients may use; default: localhost and --host; * for all."
        ),
    ] = None,
    allowed_origins: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Other origins whose pages may use this server (CORS); default: none."),
    ] = None,
    log_format: Annotated[
        str, typer.Option(metavar="FORMAT", help="Format of the log on stderr: text or json.")
    ] = "text",
    root_path: Annotated[str, typer.Option(metavar="PATH", help="Path under which a proxy serves this server.")] = "",
    store: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep memories in this folder across restarts; default: in RAM only."),
    ] = None,
    device_bytes: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Bytes of memories on the device, ready to use, at most.")
    ] = None,
    ram_bytes: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Bytes of memories in RAM, at most.")
    ] = None,
    disk_bytes: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Bytes of memories in --store, at most.")
    ] = None,
    prefix_bytes: Annotated[
        int, typer.Option(min=0, metavar="N", help="Bytes of keys and values that are kept for reuse, at most.")
    ] = 256 * 2**20,
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="Answers decoded at the same time.")] = 16,
    waiting: Annotated[int, typer.Option(min=0, metavar="N", help="Requests that may wait; more get 429.")] = 64,
    max_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Longest answer, in tokens.")] = 1024,
    max_answers: Annotated[
        int, typer.Option(min=1, metavar="N", help="Answers per request (n times its prompts), at most.")
    ] = 16,
    max_documents: Annotated[int, typer.Option(min=1, metavar="N", help="Documents per request, at most.")] = 32,
    max_document_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Tokens of all documents of a request, at most.")
    ] = 16_384,
    max_body_bytes: Annotated[int, typer.Option(min=1, metavar="N", help="Largest request body, in bytes.")] = 4
    * 2**20,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Name of the base model for clients; default: the hub id or the folder's name."
        ),
    ] = None,
    alias: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Another name of the base model for clients; repeatable.")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How documents and message become a prompt: context or question; see docs/reference/server.md.",
        ),
    ] = None,
    vllm: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="A running vLLM that writes the answers; repeatable. Needs --adapters."),
    ] = None,
    adapters: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for memories as adapters, at the same path for every --vllm."),
    ] = None,
    vllm_adapters: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Adapters loaded in each vLLM; the least recently used are unloaded."),
    ] = 64,
    vllm_api_key: Annotated[
        str | None,
        typer.Option(
            envvar="FASTMEM_VLLM_API_KEY", metavar="KEY", help="API key of the vLLM servers (their --api-key)."
        ),
    ] = None,
) -> None:
    """Serve a model and its memories with an OpenAI-compatible API.

    A web page is served at /. With --vllm, memories are made here and vLLM writes the answers: docs/guides/vllm.md.
    """
    import asyncio
    from dataclasses import replace

    require("fastapi", "uvicorn", "prometheus_client", extra="serve", purpose="serving")
    from fastmem.serve.allowed_hosts import LOCAL_HOSTS
    from fastmem.serve.app import create_app
    from fastmem.serve.engine import EngineLimits
    from fastmem.serve.limits import Limits
    from fastmem.serve.logs import start_logging
    from fastmem.serve.memory_source import check_placement
    from fastmem.serve.store import Budget
    from fastmem.serve.tenants import Keys, check_key
    from fastmem.serve.uvicorn_server import run
    from fastmem.serve.vllm_check import check_vllm

    keys = list(api_key or ())
    if not keys and "FASTMEM_API_KEY" in os.environ:  # set, but empty: an option of typer is then absent
        keys = [""]
    Keys(keys, keys_file)  # checked before a model is loaded
    if admin_key is not None:
        check_key("admin_key", admin_key)
    one_of(log_format, ("text", "json"), "log format", field="log_format")
    check_placement(recipe.known())
    elsewhere = _vllm_options(vllm, adapters, vllm_adapters, vllm_api_key, rows)
    if elsewhere is not None:
        recipe = _low_rank(recipe)
    _check_address(host, port)  # before a model is loaded
    chosen = one_of(template or ("context" if model.model else "question"), ("context", "question"), "template")
    with Status(quiet=output.quiet) as status:
        llm = model.load(status)
        llm.recipe = recipe.of(llm, status)
    limits = replace(
        Limits(),
        body_bytes=max_body_bytes,
        answers=max_answers,
        documents=max_documents,
        document_tokens=max_document_tokens,
        max_tokens=max_tokens,
    )
    app = create_app(
        llm,
        budget=Budget(device_bytes, ram_bytes, disk_bytes),
        folder=store,
        limits=limits,
        engine_limits=EngineLimits(rows=rows, waiting=waiting, prefix_bytes=prefix_bytes),
        api_keys=keys,
        keys_file=keys_file,
        admin_key=admin_key,
        allowed_hosts=allowed_hosts or [*LOCAL_HOSTS, host],
        allowed_origins=allowed_origins or (),
        aliases=alias or (),
        template=chosen,  # type: ignore[arg-type]
        name=name or (Path(llm.name).name if Path(llm.name).is_dir() else llm.name),
        vllm=elsewhere,
    )
    if elsewhere is not None:
        made = llm.recipe
        say(f"memories are adapters of rank {made.rank}: learning rate {made.learning_rate:g}, {made.steps} steps.")
        for problem in asyncio.run(check_vllm(app.state.service.vllm, llm)):
            say(f"note: there are no answers until this vLLM can be reached: {problem}.")
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if host not in ("127.0.0.1", "::1", "localhost") and not (keys or keys_file):
        say(f"note: {host} may be reachable from other machines, and without keys anyone can send requests.")
    say(f"{llm.name} is served at {url}  (page: {url}/  OpenAI: {url}/v1  stop: Ctrl-C)")
    if output.json:
        emit({"url": url, "model": llm.name, "template": chosen})
    start_logging(log_format)  # type: ignore[arg-type]
    run(app, host, port, root_path)


def _check_address(host: str, port: int) -> None:
    """Errors: `InputError` if the address is in use or not of this machine."""
    import errno
    import socket

    try:
        missing: list[OSError] = []
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for family, _, _, _, address in found:
            try:
                socket.create_server(address, family=family).close()
            except OSError as error:
                if error.errno != errno.EAFNOSUPPORT:  # a machine without IPv6; asyncio passes over it, too
                    raise
                missing.append(error)
        if len(missing) == len(found):
            raise missing[0]
    except (OSError, UnicodeError) as error:  # a name with a surrogate cannot be looked up
        reason = (getattr(error, "strerror", None) or str(error)).partition(" (while")[0]
        text = f"the server cannot listen on {host}, port {port} ({reason}): give another address."
        raise InputError(text, options=("port", "host")) from error


def _vllm_options(
    urls: list[str] | None, folder: Path | None, most: int, key: str | None, rows: int
) -> "VllmOptions | None":
    """Where answers are written; None for this process. Errors: `InputError`."""
    if (urls is None) != (folder is None):
        missing = "adapters" if folder is None else "vllm"
        text = "answers from vLLM need both: its address, and a folder for adapters that it can read."
        raise InputError(text, field=missing, options=(missing,))
    if urls is None or folder is None:
        return None
    from fastmem.serve.vllm_answers import VllmOptions

    options = VllmOptions(tuple(urls), folder, most, key)
    options.check(rows)
    return options


def _low_rank(recipe: ServedRecipeFlags) -> ServedRecipeFlags:
    """The recipe of adapters: low-rank, with the rate that is found for the model unless one is given."""
    from dataclasses import replace

    if recipe.parametrization not in (None, "lora"):
        text = f"parametrization is {recipe.parametrization!r}: adapters of vLLM are low-rank. Leave it out."
        raise InputError(text, field="parametrization")
    found = recipe.recipe or ("auto" if recipe.learning_rate is None else None)
    return replace(recipe, recipe=found, parametrization="lora")
