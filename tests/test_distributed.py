"""Two processes that train together take the steps of one. This file is also what ``torchrun`` starts: see :func:`main`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed

import guides
import inference
import zoo
from guides.bounds import OBJECTIVES
from inference import checkpoint
from inference.batches import batches_of
from inference.cli import app
from inference.distributed import Team, launched, local_device, team
from inference.training import fit
from zoo.latents.deterministic import Deterministic

SHAPE = (2, 9, 9)
TINY = {"channels": 4, "groups": (1, 1), "pre": (1, 1), "up": (1, 1), "down": (1, 1), "units": 3}
X = torch.randn(13, *SHAPE, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 1.0, 13)[:, None, None, None]
OPTIONS = {"batch_size": 6, "steps": 5, "lr": 0.02, "log_every": 2, "progress": False, "seed": 3}
CLI = ["fit", "cnvae_maps_s", "--data", "rofl/fixate-1", "--budget", "smoke", "--steps", "2", "--batch", "4", "--device", "cpu", "--quiet"]


def linear(seed=1):
    model = zoo.build("gaussian", SHAPE, latents=4, seed=seed)
    return model, guides.build("amortized", model, seed=seed + 1)


def hierarchy(family="gaussian", seed=1):
    model = zoo.build("hierarchy", SHAPE, family=family, seed=seed, **TINY)
    return model, guides.build("hierarchical", model, seed=seed + 1)


def weights(*modules):
    return torch.cat([value.flatten().clone() for module in modules for value in module.state_dict().values()])


def trained(pair, data=X, **options):
    history = fit(*pair, data, **OPTIONS | options)
    return {"weights": weights(*pair), "elbo": torch.tensor(history.column("elbo")), "kl": torch.tensor(history.column("kl"))}


def exact(seed=1):
    return trained(linear(seed), objective="exact")


def sampled(seed=1):
    return trained(hierarchy(seed=seed), objective="elbo")


def relative(seed=1):
    """Codes without noise, so that draws do not differ."""
    return trained(hierarchy(Deterministic(), seed), objective="relative", norm_penalty=0.1)


def resumed(folder):
    """A run that stops after four of five steps and goes on from its checkpoint, and how often this process wrote one.

    The first process is stopped where it reports, before it writes; the other, which does not report, by its data.
    """
    written, write = [], checkpoint.write
    checkpoint.write = lambda *arguments: written.append(0) or write(*arguments)

    def stop(step, steps, row):
        if step == 4:
            raise KeyboardInterrupt

    options = {"objective": "elbo", "checkpoint": folder, "checkpoint_every": 0.0, "log_every": 1}
    try:
        fit(*hierarchy(), Stopping(None if team().leads else 4), **OPTIONS | options | {"progress": stop})
    except KeyboardInterrupt:
        before = len(written)
    result = trained(hierarchy(), Stopping(), **options)
    checkpoint.write = write
    return result | {"before": torch.tensor(before), "written": torch.tensor(len(written))}


class Stopping:
    """A stream of the images that stops the run when a step is asked for."""

    event_shape, device = SHAPE, torch.device("cpu")

    def __init__(self, stop=None):
        self.stop = stop

    def __repr__(self):
        return "images"

    def to(self, device):
        return self

    def images(self, start, stop):
        if start // 6 == self.stop:
            raise KeyboardInterrupt
        return X[torch.arange(start, stop) % 13]


def main(folder):
    """What each of the two processes does; it leaves its results in a file."""
    torch.set_num_threads(1)
    with launched("cpu") as together:
        assert distributed.is_initialized() and (together.size, together.rank) == (2, int(os.environ["RANK"]))
        app([*CLI, "--out", str(folder / "model")], standalone_mode=False)
        torch.save(results(together.rank, folder), folder / f"{together.rank}.pt")
    assert not distributed.is_initialized()


def results(rank, folder):
    # Other initial weights on each: the first's are taken.
    found = {"exact": exact(1 + rank), "sampled": sampled(1 + rank), "relative": relative(1 + rank),
             "resumed": resumed(folder / "training"), "streamed": trained(hierarchy(), Stopping(), objective="elbo")}
    refused = []
    for options in ({"batch_size": 5}, {"batch_size": 14}, {"method": "mcmc"}):
        with pytest.raises(ValueError) as error:
            fit(*linear(), X, **OPTIONS | options)
        refused.append(str(error.value))
    with pytest.raises(ValueError) as error:
        team().check_same(rank, "not the same")
    seeds, inner = [], OBJECTIVES["elbo"]
    OBJECTIVES["elbo"] = lambda *arguments, **options: seeds.append(torch.initial_seed()) or inner(*arguments, **options)
    sampled()
    OBJECTIVES["elbo"] = inner
    return found | {"refused": [*refused, str(error.value)], "seeds": seeds}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Results of two processes started by PyTorch's launcher, and the folder that they wrote into."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"},
                          cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)], folder, done.stdout


@pytest.mark.parametrize("name", ["exact", "relative"])
def test_two_processes_take_the_steps_of_one(both, name):
    """Where there are no draws: parameters and history to float32's rounding."""
    alone = {"exact": exact, "relative": relative}[name]()
    for result in both[0]:
        torch.testing.assert_close(result[name]["weights"], alone["weights"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(result[name]["elbo"], alone["elbo"], rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(result[name]["kl"], alone["kl"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["exact", "sampled", "relative", "resumed"])
def test_all_processes_end_with_the_same_parameters(both, name):
    first, second = both[0]
    assert torch.equal(first[name]["weights"], second[name]["weights"])
    assert torch.equal(first[name]["elbo"], second[name]["elbo"])


def test_with_draws_of_their_own_they_come_near(both):
    """Not the bits of one process, but parameters that moved the same way."""
    start, alone, found = weights(*hierarchy()), sampled()["weights"], both[0][0]["sampled"]["weights"]
    assert not torch.equal(found, alone)
    assert torch.nn.functional.cosine_similarity(found - start, alone - start, dim=0) > 0.5


def test_a_run_of_two_goes_on_exactly_and_the_first_writes(both):
    for result in both[0]:
        assert torch.equal(result["resumed"]["weights"], result["streamed"]["weights"])
    written = [(int(result["resumed"]["before"]), int(result["resumed"]["written"])) for result in both[0]]
    assert written == [(3, 5), (0, 0)]


def test_what_several_processes_refuse(both):
    for result in both[0]:
        assert "batch_size 5 cannot be divided among 2 processes" in result["refused"][0]
        assert "13 images are fewer than a batch of 14, which 2 processes share" in result["refused"][1]
        assert "'mcmc' keeps latents of all images in one process" in result["refused"][2]
        assert result["refused"][3] == "not the same: 0, 1 by process"


def test_the_launched_command_line_saves_once(both):
    _, folder, said = both
    assert said.count("saved in") == 1
    model, guide, config = inference.load(folder / "model")
    assert config["history"][-1]["step"] == 2 and guide is not None and len(model.latents) == 6


def test_every_process_and_step_has_draws_of_its_own(both):
    assert len(set(both[0][0]["seeds"] + both[0][1]["seeds"])) == 2 * 5


def test_shares_and_seeds():
    batches = batches_of(X, 6, seed=0, event_shape=SHAPE, device=None)
    halves = [Team(rank, 2).share(batches, 6) for rank in range(2)]
    for step in range(4):
        assert torch.equal(torch.cat([half.at(step) for half in halves]), batches.at(step))
    assert Team().share(batches, 5) is batches
    draws = {}
    with torch.random.fork_rng():
        for rank, step in ((0, 0), (1, 0), (0, 1), (0, 0)):
            Team(rank, 2).reseed(3, step)
            draws.setdefault((rank, step), []).append(torch.rand(1).item())
        torch.manual_seed(1)
        state = torch.get_rng_state()
        Team().reseed(3, 0)
        assert torch.equal(torch.get_rng_state(), state)
    assert draws[0, 0][0] == draws[0, 0][1] and len({value for values in draws.values() for value in values}) == 3


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_device("cuda") == "cuda:3" and local_device("cuda:1") == "cuda:1" and local_device("cpu") == "cpu"
    monkeypatch.delenv("LOCAL_RANK")
    assert local_device("cuda") == "cuda"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
