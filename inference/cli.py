"""The command ``zoo``: list what there is, train a model, compare ways of inference."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
                  context_settings={"help_option_names": ["-h", "--help"]},
                  help="Perception as inference: generative models of vision as Pyro programs, with interchangeable inference.")

Plugin = Annotated[list[Path] | None, typer.Option(help="Python file that registers families, guides, … of your own; repeatable.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; a GPU if there is one.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress display.")]


@app.command("list")
def list_names(plugin: Plugin = None) -> None:
    """Name every model, family, guide, method, network and data set."""
    _import_plugins(plugin)
    import guides
    from inference.methods import registry as methods
    from zoo import data, flows, latents, models, networks

    sections = {
        "latent families (each names its one-layer model)": latents.registry, "models": models.registry,
        "guides": guides.registry, "methods": methods, "encoders": networks.encoders, "decoders": networks.decoders,
        "flows": flows.registry, "data": data.registry}
    for title, registry in sections.items():
        typer.echo(f"\n{title}")
        for name, line in registry.lines().items():
            typer.echo(f"  {name:<22} {line}")


@app.command()
def fit(
    model: Annotated[str, typer.Argument(help="A latent family or model (see: zoo list).")],
    out: Annotated[Path, typer.Option(help="Folder for the trained model.")],
    data: Annotated[str, typer.Option(help="Data set.")] = "patches",
    budget: Annotated[str, typer.Option(help="smoke, default or paper.")] = "default",
    objective: Annotated[str | None, typer.Option(help="exact, elbo, iwae, dreg, rws, relative, …; exact where possible.")] = None,
    latents: Annotated[int | None, typer.Option(help="Number of latents; 512 (rofl: 128), or 64 on the smoke budget.")] = None,
    family: Annotated[str | None, typer.Option(help="Of a hierarchy: one latent family, or one for each scale or group, top-down: "
                                                    "gaussian,poisson,poisson; of predictive coding, z1 first.")] = None,
    decoder: Annotated[str | None, typer.Option(help="lin (if not given), mlp or conv; of one-layer models.")] = None,
    encoder: Annotated[str | None, typer.Option(help="lin (if not given), mlp or conv; of guides that have one.")] = None,
    guide: Annotated[str | None, typer.Option(help="The guide to train with: hierarchical for hierarchies, else amortized; iterative, "
                                                   "natural, semi, …")] = None,
    epochs: Annotated[float | None, typer.Option(help="Length of training, instead of the budget's.")] = None,
    steps: Annotated[int | None, typer.Option(help="The same in steps.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images per step, instead of the budget's; of all processes together.")] = None,
    precision: Annotated[str, typer.Option(help="float32, tf32 or bf16.")] = "float32",
    seed: Annotated[int, typer.Option(help="Seed of initial weights, batches and samples.")] = 0,
    device: Device = None,
    plugin: Plugin = None,
    quiet: Quiet = False,
) -> None:
    """Train one model with a guide and save both. An interrupted run goes on where it was.

    On several devices: torchrun --nproc-per-node 2 -m inference.cli fit …
    """
    _import_plugins(plugin)
    import guides as guide_package
    import inference
    import zoo
    from inference.checkpoint import check_free
    from inference.choices import choose_device, choose_images, choose_objective, choose_options
    from inference.distributed import launched, local_device
    from inference.recipes import recipe
    from zoo.latents.deterministic import is_deterministic

    with _plain_errors(), launched(place := local_device(choose_device(device))) as team:
        check_free(out)
        recipe(budget, data)  # a wrong word is told before data is made
        options = choose_options(model, {"latents": latents, "decoder": decoder, "family": family}, budget, data)
        images = choose_images(data, model, seed)
        program = zoo.build(model, images, seed=seed, **options)
        settings = recipe(budget, data, program)
        objective = objective or settings.get("objective") or choose_objective(model, decoder or "lin")
        if epochs is not None or steps is not None:
            settings |= {"epochs": epochs, "steps": steps}
        settings |= {"objective": objective, "precision": precision} | ({} if batch is None else {"batch_size": batch})
        guide = guide or guide_package.default(program)
        trained = guide_package.build(guide, program, **_guide_options(guide_package.registry[guide], guide, encoder, seed))
        history = inference.fit(program, trained, images, seed=seed, device=place, checkpoint=out / "training", progress=not quiet,
                                **settings)
        if team.leads:
            inference.save(out, program.cpu(), trained.cpu(), description={"data": data, "data_options": {}, "objective": objective},
                           history=history.rows)
            what = "log-likelihood" if is_deterministic(program) else "ELBO"
            typer.echo(f"saved in {out}: training {what} {history.rows[-1]['elbo']:.2f} nats per image after "
                       f"{history.rows[-1]['step']} steps")


@app.command()
def compare(
    data: Annotated[str, typer.Option(help="Data set.")] = "patches",
    models: Annotated[str | None, typer.Option(help="Latent families or models, separated by commas; four families if not given.")] = None,
    methods: Annotated[str, typer.Option(help="Ways of inferring, separated by commas.")] = "amortized,local,map,mcmc",
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0",
    budget: Annotated[str, typer.Option(help="smoke (seconds), default (minutes) or paper (as published).")] = "default",
    out: Annotated[Path, typer.Option(help="Folder for table, figures and posteriors.")] = Path("zoo-comparison"),
    latents: Annotated[int | None, typer.Option(help="Latents per model; 512 (rofl: 128), or 64 on the smoke budget.")] = None,
    decoder: Annotated[str, typer.Option(help="lin, mlp or conv.")] = "lin",
    encoder: Annotated[str, typer.Option(help="lin, mlp or conv.")] = "lin",
    objective: Annotated[str | None, typer.Option(help="exact, elbo, iwae, dreg, rws, …; exact where possible.")] = None,
    trained: Annotated[
        list[Path] | None, typer.Option("--from", help="Compare on a model saved by zoo fit, instead of training; repeatable.")] = None,
    device: Device = None,
    plugin: Plugin = None,
    quiet: Quiet = False,
) -> None:
    """Train models, infer held-out images with each method, print one table and write a folder."""
    _import_plugins(plugin)
    from rich.console import Console

    import inference
    from inference.table import shown

    with _plain_errors():
        seed_list = _seeds(seeds)
        result = inference.compare(
            data, None if models is None else _names(models), _names(methods), seed_list, budget=budget,
            out=out, latents=latents, decoder=decoder, encoder=encoder,
            objective=objective, trained=trained or (), device=device, progress=not quiet)
    console, table = Console(), shown(result.rows, budget)
    needed = Console(width=400).measure(table).maximum
    console.width = max(console.width, needed)  # a wrapped line is better than a number cut short
    console.print(table)
    console.print(f"\nIn {out}: report.md (open this), table.csv, figures, posteriors/", highlight=False)


@app.command()
def page(
    saved: Annotated[Path, typer.Argument(help="Folder of a model saved by zoo fit.")],
    out: Annotated[Path, typer.Option(help="Folder for the page.")],
    data: Annotated[str | None, typer.Option(help="Data set; the one it was trained on if not given.")] = None,
    images: Annotated[int, typer.Option(help="Test images that scores are of.")] = 200,
    probe: Annotated[int, typer.Option(help="Images that readouts of known causes are fitted on, and others they are scored on.")] = 6000,
    seed: Annotated[int, typer.Option(help="Seed of all draws.")] = 0,
    device: Device = None,
    plugin: Plugin = None,
    quiet: Quiet = False,
) -> None:
    """Look into one trained model: reconstructions, prior samples, traversals, KL by group, what its latents know of the causes."""
    _import_plugins(plugin)
    import inference
    import zoo
    from inference.choices import choose_device

    with _plain_errors("stopped; nothing was written"):
        model, guide, config = inference.load(saved)
        name = data or config.get("description", {}).get("data")
        if guide is None or name is None:
            missing = "a guide" if guide is None else "the name of its data: give --data"
            raise ValueError(f"the model in {saved} was saved without {missing}")
        place = choose_device(device)
        inference.page(model.to(place), guide.to(place), zoo.data.load(name), out, history=config.get("history"), images=images,
                       probe=probe, seed=seed, say=None if quiet else typer.echo)
    typer.echo(f"in {out}: report.md (open this), figures, tables")


@app.command()
def rofl(
    out: Annotated[Path, typer.Option(help="File to write: safetensors with the tensors x and factors.")],
    category: Annotated[str, typer.Option(help="fixate-n, transl-n, obj-n, terrain-n or pursuit-n, with n objects.")] = "fixate-1",
    n: Annotated[int, typer.Option(help="Number of frames.")] = 10_000,
    resolution: Annotated[int, typer.Option(help="Pixels along a side; odd.")] = 17,
    grid: Annotated[bool, typer.Option("--grid", help="Objects' angles on pixels, as published, instead of anywhere.")] = False,
    residual: Annotated[bool, typer.Option("--residual", help="Objects' velocities relative to the eye.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the frames.")] = 0,
    preview: Annotated[bool, typer.Option(help="Draw the first frames into a PNG beside the file.")] = True,
    quiet: Quiet = False,
) -> None:
    """Generate frames of retinal optic flow (rad/s) with all their causes."""
    from inference.plots.rofl import plot_frames
    from inference.plots.style import save
    from inference.progress import count_bar
    from zoo.data import rofl as simulator

    with _plain_errors("stopped; nothing was written"):
        if preview and out.suffix == ".png":
            raise ValueError(f"the preview would take the place of the frames in {out}: choose a name that does not end in .png")
        world = simulator.World(category, resolution, grid=grid, residual=residual)
        with count_bar("frames", quiet) as progress:
            data = simulator.frames(world, n, seed=seed, progress=progress)
        simulator.write(out, data, world, seed=seed)
        written = [str(out)]
        if preview:
            written.append(str(save(plot_frames(data, world), out.with_suffix(".png"))))
    typer.echo(f"{n:,} frames of {category}, {resolution} × {resolution} pixels, with {len(data.factors)} factors: {', '.join(written)}")


def main() -> None:
    """Runs the command line."""
    app()


def _guide_options(builder: type, name: str, encoder: str | None, seed: int) -> dict[str, object]:
    """The guide's seed, and its encoder, a linear one if none was asked for, where it has such options."""
    accepted = signature(builder).parameters
    if encoder is not None and "encoder" not in accepted:
        others = sorted(set(accepted) - {"model", "data"})
        raise ValueError(f"the guide {name!r} has no option encoder; it accepts: {', '.join(others) or 'none'}")
    return {option: value for option, value in {"encoder": encoder or "lin", "seed": seed}.items() if option in accepted}


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _seeds(text: str) -> list[int]:
    try:
        return [int(name) for name in _names(text)]
    except ValueError:
        raise ValueError(f"seeds must be whole numbers separated by commas, not {text!r}") from None


class _plain_errors:
    """Turns the errors that bad input raises into one line and exit code 2, and Ctrl-C into a word on what it leaves."""

    def __init__(self, stopped: str = "stopped; what was finished is kept, and the same command goes on from there") -> None:
        self.stopped = stopped

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, KeyboardInterrupt):
            typer.echo(self.stopped, err=True)
            raise typer.Exit(130)
        if isinstance(error, (ValueError, FloatingPointError, OSError)):
            typer.echo(f"zoo: {error}", err=True)
            raise typer.Exit(2)
        return False


def _import_plugins(paths: list[Path] | None) -> None:
    import sys
    from importlib.util import module_from_spec, spec_from_file_location

    for path in paths or []:
        if not path.is_file():
            typer.echo(f"zoo: no plugin file {path}", err=True)
            raise typer.Exit(2)
        spec = spec_from_file_location(path.stem, path)
        if spec is None:
            typer.echo(f"zoo: the plugin {path} is not a Python file (.py)", err=True)
            raise typer.Exit(2)
        module = module_from_spec(spec)
        sys.modules[path.stem] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # whatever is wrong in somebody's file: one line that names the file
            typer.echo(f"zoo: the plugin {path} does not run: {type(error).__name__}: {error}", err=True)
            raise typer.Exit(2) from error


if __name__ == "__main__":
    main()
