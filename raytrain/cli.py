"""The verbs.  Each reads files and writes files, so that each can be re-run alone.

What the user did wrong ends with exit code 2 and one line; set RAYTRAIN_DEBUG=1 to see where it came from.
Nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from raytrain import __version__

VERBS = {
    "ingest": "raytrain.cli_data:ingest",
    "scenes": "raytrain.cli_data:scenes",
    "inspect": "raytrain.cli_data:inspect",
    "train": "raytrain.cli_train:train",
    "evaluate": "raytrain.cli_evaluate:evaluate",
    "compare": "raytrain.cli_evaluate:compare",
    "diagnose": "raytrain.cli_diagnose:diagnose",
    "graph": "raytrain.cli_graph:graph",
    "interactions": "raytrain.cli_interactions:interactions",
    "index": "raytrain.cli_search:index",
    "search": "raytrain.cli_search:search",
    "demo": "raytrain.cli_train:demo",
    "methods": "raytrain.cli_config:methods",
    "losses": "raytrain.cli_config:losses",
    "config": "raytrain.cli_config:config",
}
"""In the order of use; each is imported when it is asked for."""


class Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        module, _, attribute = VERBS[name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            from difflib import get_close_matches

            close = get_close_matches(args[0], VERBS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise click.UsageError(f"{args[0]!r} is unknown; known: {', '.join(VERBS)}.{hint}")
        return super().resolve_command(ctx, args)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="raytrain")
def cli() -> None:
    """Train audio-visual embeddings from feature files, on Ray, and measure them honestly."""


def main() -> None:
    try:
        cli.main(prog_name="raytrain", standalone_mode=False)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except (click.Abort, KeyboardInterrupt) as error:
        cause = error.__cause__ or error  # click makes an Abort of whatever interrupted it
        _fail(str(cause) or "interrupted", getattr(cause, "exit_code", 130))
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except (ValueError, OSError) as error:
        if os.environ.get("RAYTRAIN_DEBUG"):
            raise
        _fail(str(error), 2)


def _fail(message: str, code: int) -> None:
    verb = next((word for word in sys.argv[1:] if word in VERBS), "")
    line = " ".join(message.split())
    click.echo(f"raytrain{' ' + verb if verb else ''}: {line}", err=True)
    sys.exit(code)
