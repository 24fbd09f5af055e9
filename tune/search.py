"""`python tune/search.py`: the search for hyper-parameters that runs overnight."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __package__ in (
    None,
    "",
):  # run as a script: `tune` is the package beside us, for this process and its workers
    _ROOT = str(Path(__file__).resolve().parent.parent)
    sys.path[0] = _ROOT
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))

from typing import Any

import click

WAYS = ("auto", "workers", "here", "nested")


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("data", required=False)
@click.option("--method", help="Method, see `raytrain methods`.  [default: psd]")
@click.option("--trials", type=int, default=24, show_default=True, help="How many there are in the end.")
@click.option("--sampler", default="tpe", show_default=True, help="tpe, gp, cmaes or random.")
@click.option(
    "--objectives",
    default="map",
    show_default=True,
    help="map; or with a second one, `map,time` or `map,size`: then the Pareto front is reported.",
)
@click.option(
    "--epochs", type=int, help="Of a trial that goes all the way.  [default: 9 on the demo world, else 27]"
)
@click.option("--first-rung", type=int, default=1, show_default=True, help="Epochs until the first decision.")
@click.option(
    "--factor", type=float, default=3.0, show_default=True, help="At each rung 1/factor go on; 1: all."
)
@click.option(
    "--survivors", type=int, default=3, show_default=True, help="Trials that are run again with seeds."
)
@click.option("--seeds", type=int, default=3, show_default=True, help="Of each survivor and of the default.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sampler and of all trials.")
@click.option(
    "--teachers",
    type=int,
    default=4,
    show_default=True,
    help="Of methods with a teacher of its own (ili): how many trials share; 0: each trial trains its own.",
)
@click.option(
    "--workers-per-trial", type=int, default=1, show_default=True, help="Ray Train workers of a trial."
)
@click.option("--gpus-per-trial", type=float, default=0.0, show_default=True, help="May be a share of one.")
@click.option("--cpus-per-trial", type=int, default=1, show_default=True, help="Threads of each worker.")
@click.option("--concurrency", type=int, help="Trials at a time.  [default: as many as fit]")
@click.option(
    "--way",
    default="auto",
    show_default=True,
    help="workers: long-lived processes; here: this process; nested: Ray Train in Ray Tune.",
)
@click.option(
    "--config", "file", type=click.Path(path_type=Path), help="TOML file that every trial starts from."
)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Of every trial; not searched then."
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder.  [default: runs/search/<data>-<method>]"
)
@click.option("--resume", is_flag=True, help="Go on with the search in --out, if there is one.")
def search(data: str | None, **options: Any) -> None:
    """Search the hyper-parameters of a method on DATA, a folder that `raytrain ingest` wrote.

    Without DATA on a generated demo world.  Trials are selected on the validation split; the best few and the default
    are run again with seeds, and the test split is read once, for the last table.  What was killed goes on with
    --resume.  The end: report.html, best.toml, and a TensorBoard folder.
    """
    from tune.asked import Options
    from tune.whole import run_search

    run_search(Options(data=data, **options))


def main() -> None:
    """What the user did wrong ends with exit code 2 and one line."""
    try:
        search.main(prog_name="tune/search.py", standalone_mode=False)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted; go on with the same command and --resume", 130)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except (ValueError, OSError) as error:
        if os.environ.get("RAYTRAIN_DEBUG"):
            raise
        _fail(str(error), 2)


def _fail(message: str, code: int) -> None:
    click.echo(f"tune/search.py: {' '.join(message.split())}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
