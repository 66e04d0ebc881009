"""The command line: each command is one chain of tl and pl calls."""

from __future__ import annotations

import typer

from pixel2gene.cli.demo import demo
from pixel2gene.cli.info import encoders, info
from pixel2gene.cli.rerun import rerun
from pixel2gene.cli.run import run
from pixel2gene.cli.verbs import aggregate, denoise, fit, predict

app = typer.Typer(help="Read gene expression off the H&E.", no_args_is_help=True, pretty_exceptions_enable=False)
for command in (demo, run, rerun, fit, predict, denoise, aggregate, info, encoders):
    app.command()(command)
