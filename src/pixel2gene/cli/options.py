"""Arguments and options that commands share, by the names that the verbs give them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Store = Annotated[Path, typer.Argument(help="SpatialData zarr store.", show_default=False)]
ModelFolder = Annotated[Path, typer.Argument(metavar="MODEL", help="Model that `fit` wrote.", show_default=False)]
Out = Annotated[
    Path | None,
    typer.Option(help="Store to write: a copy of STORE with the results. STORE itself gets them by default."),
]
Image = Annotated[str, typer.Option("--image-key", "--image", help="Key of the H&E.")]
ModelImage = Annotated[str | None, typer.Option("--image-key", "--image", help="Key of the H&E; that of the training.")]
Table = Annotated[
    str, typer.Option("--table-key", "--table", help="Key of the table of raw counts, or of the transcripts.")
]
Tables = Annotated[
    list[str] | None,
    typer.Option(
        "--table-key", "--table", help="Key of the counts, once for each capture under one H&E; counts by default."
    ),
]
ModelTable = Annotated[
    str | None, typer.Option("--table-key", "--table", help="Key of the counts; that of the training.")
]
Layer = Annotated[str | None, typer.Option(help="Layer with the counts.")]
Genes = Annotated[list[str] | None, typer.Option("--genes", "--gene", help="Gene, once for each; all by default.")]
MinScore = Annotated[float | None, typer.Option(help="Leave out genes whose held-out Pearson is lower.")]
Embedding = Annotated[str | None, typer.Option("--embedding-key", help="Key of the embedding; IMAGE_embedding.")]
KeyAdded = Annotated[str, typer.Option(help="Name of the results.")]
Tissue = Annotated[str | None, typer.Option("--tissue-key", "--tissue", help="Key of a tissue mask of your own.")]
Mpp = Annotated[float | None, typer.Option(help="µm per full-resolution pixel.")]
Force = Annotated[bool, typer.Option("--force", help="Accept an implausible pixel size.")]
Encoder = Annotated[
    str | None, typer.Option(help="One of `pixel2gene encoders`, or a folder of weights; lite0 by default.")
]
Scales = Annotated[
    list[int] | None,
    typer.Option(
        "--scales", "--scale", help="Field that the encoder sees, relative to its own, once for each; 1 by default."
    ),
]
ModelEncoder = Annotated[
    str | None, typer.Option(help="Folder of the weights of the model's encoder, if it has no name.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda ...; the best there is by default.")]
Seed = Annotated[int, typer.Option(help="Makes the result repeatable.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Json = Annotated[bool, typer.Option("--json", help="Print the summary as JSON, and nothing else on stdout.")]
