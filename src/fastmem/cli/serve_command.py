"""`fastmem serve`: parse, put the server together, run it."""

from pathlib import Path
from typing import Annotated

import typer

from fastmem.cli.flags import ModelFlags, OutputFlags, RecipeFlags, with_flags
from fastmem.cli.output import emit, say
from fastmem.errors import InputError


@with_flags
def serve(
    model: ModelFlags,
    recipe: RecipeFlags,
    output: OutputFlags,
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default is reachable from here only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="FASTMEM_API_KEY", metavar="KEY", help="Accept only these keys; each sees its own memories."
        ),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep memories here, over restarts; without it in RAM only.")
    ] = None,
    device_bytes: Annotated[int | None, typer.Option(min=1, help="Memories ready to use, on the device.")] = None,
    ram_bytes: Annotated[int | None, typer.Option(min=1, help="Memories in RAM.")] = None,
    disk_bytes: Annotated[int | None, typer.Option(min=1, help="Memories in --store.")] = None,
    prefix_bytes: Annotated[int, typer.Option(min=0, help="Keys and values of documents kept for reuse.")] = 256
    * 2**20,
    rows: Annotated[int, typer.Option(min=1, help="Answers decoded side by side.")] = 16,
    waiting: Annotated[int, typer.Option(min=0, help="Requests that may wait; more get 429.")] = 64,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 1024,
    max_answers: Annotated[int, typer.Option(min=1, help="Answers to one request: n times its prompts.")] = 16,
    max_documents: Annotated[int, typer.Option(min=1, help="Documents of one request.")] = 32,
    max_document_tokens: Annotated[int, typer.Option(min=1, help="Tokens of its documents together.")] = 16_384,
    max_body_bytes: Annotated[int, typer.Option(min=1, help="The largest request.")] = 4 * 2**20,
    name: Annotated[
        str | None, typer.Option(help="What clients call the base model; the id, or a folder's own name.")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Documents and message as context or question; see docs/serving.md."),
    ] = None,
) -> None:
    """Serve a model and its memories, OpenAI-compatible.

    A page for people is at /.
    """
    from dataclasses import replace
    from importlib.util import find_spec

    missing = [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise InputError(f"serving needs {', '.join(missing)}: install with  pip install 'fastmem[serve]'.")

    from fastmem.errors import one_of
    from fastmem.serve.app import create_app
    from fastmem.serve.engine import EngineLimits
    from fastmem.serve.limits import Limits
    from fastmem.serve.store import Budget
    from fastmem.serve.uvicorn_server import run

    chosen = one_of(template or ("context" if model.model else "question"), ("context", "question"), "template")
    llm = model.load()
    llm.recipe = recipe.make(llm.recipe)
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
        api_keys=api_key or (),
        template=chosen,  # type: ignore[arg-type]
        name=name or (Path(llm.name).name if Path(llm.name).is_dir() else llm.name),
    )
    where = f"http://{host}:{port}"
    if host not in ("127.0.0.1", "::1", "localhost") and not api_key:
        say(f"note: {host} may be reachable by others and no --api-key is set: everybody may ask.")
    say(f"{llm.name} is served at {where}  (page: {where}/  OpenAI: {where}/v1  stop: Ctrl-C)")
    if output.json:
        emit({"url": where, "model": llm.name, "template": chosen})
    run(app, host, port)
