"""Trained models on disk, and the state of training: weights as safetensors, everything else as JSON, written atomically."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zoo.files import atomic_file, atomic_folder

__all__ = ["exists", "load", "resume", "save", "write"]

STATE = "training.safetensors"


def save(folder: str | Path, model: nn.Module, guide: nn.Module | None = None, **about: Any) -> Path:
    """Writes ``model.safetensors``, ``guide.safetensors`` and ``config.json`` (how to build both again, and ``about``).

    An older saved model in ``folder`` is replaced.

    Raises:
        ValueError: if model or guide were not made by ``zoo.build`` and ``guides.build``, so that nobody could build them again, or
            from something that JSON does not hold; or if the folder holds other things, which replacing it would delete.
    """
    check_free(folder)
    parts = {"model": model} if guide is None else {"model": model, "guide": guide}
    for kind, part in parts.items():
        if not hasattr(part, "built_with"):
            maker = "zoo.build" if kind == "model" else "guides.build"
            raise ValueError(f"only a {kind} made by {maker} can be saved; save its state_dict yourself")
    if getattr(guide, "per_image", False):
        raise ValueError("a guide that keeps something for each of its images cannot be built again without them; save its posterior")
    config = {kind: part.built_with for kind, part in parts.items()} | {"version": version("perception-zoo")} | about
    try:
        json.dumps(config)
    except TypeError as error:
        raise ValueError(f"how this was built cannot be written down ({error}); build it from names and numbers") from None
    with atomic_folder(folder) as temporary:
        for kind, part in parts.items():
            save_file(_contiguous(part.state_dict()), temporary / f"{kind}.safetensors")
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return Path(folder)


def check_free(folder: str | Path) -> None:
    """Raises ``ValueError`` if the folder holds anything but a saved model and the state of its training."""
    folder = Path(folder)
    own = {"config.json", "model.safetensors", "guide.safetensors", "training"}
    others = sorted({path.name for path in folder.iterdir()} - own) if folder.is_dir() else []
    if others or folder.is_file():
        what = f"the folder {folder} holds {', '.join(others[:3])}" if others else f"{folder} is a file"
        raise ValueError(f"{what}, which is not part of a saved model; choose an empty or a new folder")


def load(folder: str | Path) -> tuple[nn.Module, nn.Module | None, dict[str, Any]]:
    """Builds a saved model and its guide (None if it has none) again; the third value is what ``config.json`` says.

    Raises:
        FileNotFoundError: if there is no saved model in the folder.
        ValueError: if the weights are damaged, or do not fit what this version builds under that name.
    """
    import guides
    import zoo

    folder = Path(folder)
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"no saved model in {folder}: config.json is missing")
    config = json.loads(path.read_text())
    settings = dict(config["model"])
    model = zoo.build(settings.pop("name"), settings.pop("event_shape"), **settings)
    _fill(model, folder / "model.safetensors", config)
    guide = None
    if "guide" in config:
        settings = dict(config["guide"])
        guide = guides.build(settings.pop("name"), model, **settings)
        _fill(guide, folder / "guide.safetensors", config)
        guide.eval()
    return model.eval(), guide, config


def _fill(part: nn.Module, path: Path, config: dict[str, Any]) -> None:
    """Puts the saved weights into a model or guide that was built as its settings say."""
    try:
        part.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        saved, now = config.get("version", "one before 0.8"), version("perception-zoo")
        raise ValueError(f"the weights in {path} are damaged, or not those of {part.built_with['name']!r} as version {now} builds it; "
                         f"the version that saved them is {saved}. {str(error).splitlines()[0]}") from error


def exists(folder: str | Path) -> bool:
    """Whether the folder holds a state of training."""
    return (Path(folder) / STATE).exists()


def write(folder: str | Path, model: nn.Module, guide: nn.Module, optimizer: torch.optim.Optimizer, step: int,
          settings: dict[str, Any], rows: list[dict]) -> None:
    """Writes all that :func:`resume` needs to go on as if nothing had happened: one file, replaced in one move.

    Arguments:
        settings: What training was asked for, JSON-able; :func:`resume` must be given the same.
    """
    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    tensors |= {f"guide.{key}": value for key, value in guide.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
    tensors["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors |= {f"rng.cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    with atomic_file(Path(folder) / STATE) as temporary:
        save_file(_contiguous(tensors), temporary,
                  metadata={"training": json.dumps({"step": step, "settings": settings, "rows": rows})})


def resume(folder: str | Path, model: nn.Module, guide: nn.Module, optimizer: torch.optim.Optimizer,
           settings: dict[str, Any]) -> tuple[int, list[dict]]:
    """Puts model, guide, optimizer and random generators back; returns the number of steps done and the history's rows.

    Raises:
        ValueError: if the file is damaged, or of a training with other settings, or of another model or guide.
    """
    path = Path(folder) / STATE
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["training"])
        tensors = load_file(path)
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged or no state of training ({error}); choose another folder or remove it") from error
    there, here = about.get("settings", {}), json.loads(json.dumps(settings))
    different = [f"{name} {there.get(name)} there, {here.get(name)} here" for name in here | there
                 if there.get(name) != here.get(name)]
    if different:
        raise ValueError(f"{path} is of a training with other settings ({'; '.join(different)}); choose another folder or remove it")
    try:
        model.load_state_dict(_part(tensors, "model."))
        guide.load_state_dict(_part(tensors, "guide."))
    except RuntimeError as error:
        raise ValueError(f"{path} is of another model or guide: {error}") from error
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in _part(tensors, "optimizer.").items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["rng.cpu"])
    cuda = _part(tensors, "rng.cuda.")
    if cuda and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([cuda[key] for key in sorted(cuda, key=int)])
    return about["step"], about["rows"]


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().contiguous() for key, value in tensors.items()}
