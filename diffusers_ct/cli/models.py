"""`diffusers-ct models`: the model presets and what each costs."""

from typing import Annotated, Any

import typer

_EXAMPLES = """
Lists the model presets with their cost, counted for one input in float32, or shows the configuration of one.

Memory in inference is the peak of the activations, in training what is kept for the backward pass (without gradient
checkpointing); the weights come on top.

    diffusers-ct models --shape 32 512 512

    diffusers-ct models ct-transformer-s --json
"""


def models(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show this preset alone.")] = None,
    shape: Annotated[tuple[int, int, int], typer.Option(help="Slices, rows, columns of the input.")] = (16, 256, 256),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: bytes, operations, configuration.")] = False,
) -> None:
    if min(shape) < 1:
        raise ValueError(f"--shape must be three positive numbers, got {shape}.")

    import json
    from dataclasses import asdict

    from ..models.complexity import count_complexity
    from ..models.presets import PRESETS, preset_config

    configs = {name: preset_config(name)} if name else PRESETS
    costs = {key: asdict(count_complexity(config, shape)) for key, config in configs.items()}
    if as_json:
        rows = [{"name": key, "config": configs[key], **costs[key]} for key in configs]
        typer.echo(json.dumps({"input_shape": [1, *shape], "dtype": "float32", "models": rows}, indent=2))
        return
    _print_table(costs, shape)
    if name:
        for key, value in configs[name].items():
            typer.echo(f"{key} = {value!r}")


models.__doc__ = _EXAMPLES


def _print_table(costs: dict[str, dict[str, Any]], shape: tuple[int, int, int]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"counted for 1 x {' x '.join(map(str, shape))} in float32"
    table = Table(title=title, title_justify="left")
    table.add_column("model", no_wrap=True)
    for column in ("parameters\nM", "forward\nGFLOP", "weights\nMiB", "inference\nMiB", "training\nMiB"):
        table.add_column(column, justify="right")
    for key, cost in costs.items():
        sizes = (cost["weight_bytes"], cost["inference_peak_bytes"], cost["training_saved_bytes"])
        table.add_row(
            key,
            f"{cost['parameters'] / 1e6:.2f}",
            f"{cost['forward_flops'] / 1e9:.0f}",
            *(f"{n / 2**20:.0f}" for n in sizes),
        )
    Console().print(table)
