"""The options that say which engine writes continuations in the models' place."""

from dataclasses import dataclass, fields
from typing import Annotated, Any

import typer

from ..store.core.errors import LakeError


@dataclass(frozen=True)
class Engine:
    """Which engine writes continuations in the models' place, and how it is asked."""

    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            help="Let an engine write the continuations: vLLM or SGLang, say, at an OpenAI-compatible address"
            " (http://localhost:8000/v1). The key, if it wants one: ACTLAKE_ENGINE_KEY.",
        ),
    ] = None
    served: Annotated[
        str | None,
        typer.Option("--served", help="Of --server: the model's name there. [default: its repository or folder]"),
    ] = None
    engine: Annotated[
        str, typer.Option("--engine", help='Of --server: what runs there, for the record ("vllm 0.27").')
    ] = ""
    temperature: Annotated[float, typer.Option("--temperature", help="Of --server: 0 is greedy.", min=0)] = 0.0
    seed: Annotated[int | None, typer.Option("--seed", help="Of --server: what it draws with.")] = None
    workers: Annotated[int, typer.Option("--workers", help="Of --server: requests at a time.", min=1)] = 16
    timeout: Annotated[float, typer.Option("--timeout", help="Of --server: seconds for one answer.", min=1)] = 600.0
    from_text: Annotated[
        bool,
        typer.Option(
            "--from-text",
            help="Of --server, where it returns no token ids: tokenize its text with the model's own tokenizer.",
        ),
    ] = False

    def opened(self) -> Any:
        """The `actlake.Server`, or None; LakeError for options of one that is not named."""
        given = dict(vars(self))
        if given.pop("server") is None:
            if given != {one.name: one.default for one in fields(self) if one.name != "server"}:
                raise LakeError(
                    "--served, --engine, --temperature, --seed, --workers, --timeout, --from-text: only with --server"
                )
            return None
        from ..exchange.server import Server

        return Server(str(self.server), **given)
