from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixel2gene.cli import options
from pixel2gene.cli.report import progress, say, show, user_errors
from pixel2gene.cli.stores import open_store, write_store

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from pixel2gene import Model
    from pixel2gene.spatial.repetition import Step


def rerun(
    result: Annotated[Path, typer.Argument(help="Store that `run` or verbs wrote; it is only read.")],
    out: Annotated[Path, typer.Option(help="Store to write: what RESULT was made of, and the results made again.")],
    device: options.Device = None,
    as_json: options.Json = False,
) -> None:
    """Repeat what a store records of its results, and tell whether the same comes out."""
    from pixel2gene.spatial.repetition import (
        TOLERANCE,
        changed_versions,
        differences,
        recorded_steps,
        require_same_inputs,
        without_results,
    )

    with user_errors():
        if out.exists():
            raise FileExistsError(f"{out} exists: name another store.")
        recorded = open_store(result)
        steps = recorded_steps(recorded)
        require_same_inputs(recorded, steps)
        for line in changed_versions(steps):
            say(f"Warning: {line}; results may differ.")
        write_store(without_results(recorded), out)
        repeated = open_store(out)
        models = repeat(repeated, steps, device)
        paths = [out.with_suffix(f".{i}.p2g" if i else ".p2g") for i in range(len(models))]
        for model, path in zip(models, paths, strict=True):
            model.save(path, overwrite=True)
        found = differences(recorded, repeated)
    equal = all(value <= TOLERANCE for value in found.values())
    if as_json:
        show({"store": out, "models": paths, "equal": equal, "differences": found}, as_json)
        return
    exact = all(value == 0 for value in found.values())
    for key, value in found.items():
        if value > 0:
            typer.echo(f"{key}: differs by up to {value:.2g} standard deviations")
    said = (
        "The same, bit for bit"
        if exact
        else f"The same to within {TOLERANCE} standard deviations"
        if equal
        else "Not the same"
    )
    typer.echo(f"{said}: {', '.join(found)}.")


def repeat(sdata: SpatialData, steps: list[Step], device: str | None) -> list[Model]:
    """Call the verbs again; the models that were fitted."""
    import pixel2gene as p2g

    models: list[tuple[dict[str, Any], Model]] = []
    for step in steps:
        say(f"Repeat {step.verb}: {step.key}")
        verb = getattr(p2g.tl, step.verb)
        options = _known(verb, step.record["arguments"]) | {"progress": progress()}
        if step.verb in ("embed", "predict", "denoise"):
            options["device"] = device
        if step.fit is not None:
            model = next((one for fit, one in models if fit == step.fit), None)
            if model is None:
                model = _fitted(sdata, step.fit, device)
                models.append((step.fit, model))
            options["model"] = model
        verb(sdata, **options)
    return [model for _, model in models]


def _known(verb: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a verb; a ValueError says if it has them not, as those of a later version."""
    unknown = sorted(arguments.keys() - signature(verb).parameters.keys())
    if unknown:
        raise ValueError(
            f"pixel2gene.tl.{verb.__name__} has no arguments {unknown}, with which the result was made: install the "
            "version that is recorded of it."
        )
    return dict(arguments)


def _fitted(sdata: SpatialData, fit: dict[str, Any], device: str | None) -> Model:
    import pixel2gene as p2g
    from pixel2gene.core.model import recipe_from

    arguments = _known(p2g.tl.fit, fit["arguments"])
    if not isinstance(arguments["recipe"], str):
        arguments["recipe"] = recipe_from(arguments["recipe"])
    (name,) = fit["inputs"]
    return p2g.tl.fit({name: sdata}, **arguments, device=device, progress=progress())
