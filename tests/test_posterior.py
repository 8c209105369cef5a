"""What every way of inferring returns: means, predictions, parts, and a file that ArviZ reads."""

import arviz
import pytest
import torch

import guides
import zoo
from inference import Posterior, infer


def pair(name, options=None, latents=6, n=20):
    model = zoo.build(name, (1, 3, 3), latents=latents, init_scale=0.6, seed=1, **(options or {}))
    x = torch.randn(n, 1, 3, 3, generator=torch.Generator().manual_seed(2))
    return model, guides.build("amortized", model, init_scale=0.2, seed=3), x


def test_means_and_predictions_by_hand():
    model, guide, x = pair("poisson", {"log_rate_init": (0.0, 1.0)}, n=4)
    posterior = infer(model, x, guide=guide, draws=6)
    z = posterior.samples["z"]
    torch.testing.assert_close(posterior.mean["z"], z.mean((0, 1)))
    torch.testing.assert_close(posterior.predict(model), model.decode({"z": z}).mean((0, 1)))
    log_weights = torch.randn(1, 6, 4)
    weighted = Posterior("ais", {"z": z}, log_weights)
    weights = log_weights.exp() / log_weights.exp().sum((0, 1))
    torch.testing.assert_close(weighted.mean["z"], (z * weights.unsqueeze(-1)).sum((0, 1)))
    torch.testing.assert_close(weighted.predict(model), (model.decode({"z": z}) * weights[..., None, None, None]).sum((0, 1)))


def test_the_mean_image_is_no_decoded_mean():
    model, guide, x = pair("gaussian", {"activation": "exp"}, n=4)
    posterior = infer(model, x, guide=guide, draws=50)
    assert (posterior.predict(model) - model.decode(posterior.mean)).abs().max() > 0.01


def test_the_first_images_and_another_device():
    model, guide, x = pair("gaussian")
    posterior = infer(model, x, "local", guide=guide, steps=20, draws=3)  # as many steps as images
    posterior.stats["energy"] = torch.arange(20.0)
    log_q = torch.randn(1, 3, 20)
    part = Posterior(posterior.method, posterior.samples, torch.zeros(1, 3, 20), posterior.params, posterior.stats, log_q=log_q).first(7)
    assert len(part) == 7 and part.params["z"].shape == (7, 2, 6) and part.log_weights.shape == (1, 3, 7)
    assert torch.equal(part.log_q, log_q[..., :7]) and part.to("meta").log_q.is_meta and posterior.first(7).log_q is None
    assert torch.equal(part.samples["z"], posterior.samples["z"][:, :, :7])
    assert torch.equal(part.stats["energy"], torch.arange(7.0)) and part.stats["elbo_trace"].shape == (20,)
    moved = posterior.to("meta")
    assert moved.samples["z"].is_meta and moved.params["z"].is_meta and moved.stats["energy"].is_meta
    assert moved.cost == posterior.cost


@pytest.mark.parametrize(("name", "options", "units"), [("gaussian", {}, ["z_unit"]),
                                                        ("categorical", {"groups": 2}, ["z_unit_0", "z_unit_1"])])
def test_netcdf_holds_the_posterior(tmp_path, name, options, units):
    model, guide, x = pair(name, options)
    posterior = infer(model, x, "local", guide=guide, steps=20, draws=3)
    posterior.stats["energy"] = torch.arange(20.0)
    weighted = Posterior(posterior.method, posterior.samples, torch.randn(1, 3, 20), stats=posterior.stats, cost=posterior.cost)
    path = weighted.to_netcdf(tmp_path / "posteriors.nc")
    assert [p.name for p in tmp_path.iterdir()] == ["posteriors.nc"]
    read = arviz.from_netcdf(path)
    assert read.posterior["z"].dims == ("chain", "draw", "image", *units)
    assert torch.equal(torch.tensor(read.posterior["z"].values), posterior.samples["z"])
    assert set(read.sample_stats) == {"log_weight", "energy"}  # one number per step is no number per image
    assert torch.equal(torch.tensor(read.sample_stats["log_weight"].values), weighted.log_weights)
    assert torch.equal(torch.tensor(read.sample_stats["energy"].values)[0, 1], torch.arange(20.0))
    told = Posterior("flow", posterior.samples, log_q=torch.randn(1, 3, 20))
    read_again = arviz.from_netcdf(told.to_netcdf(tmp_path / "told.nc"))
    assert read_again.sample_stats["log_q"].dims == ("chain", "draw", "image")
    assert torch.equal(torch.tensor(read_again.sample_stats["log_q"].values), told.log_q)
    assert read.attrs["method"] == "local" and float(read.attrs["gradient_evaluations"]) == 20 and read.attrs["device"] == "cpu"


def test_scalar_sites_have_no_unit_dimension():
    posterior = Posterior("mine", {"s": torch.randn(2, 5, 3)})
    data = posterior.to_arviz()
    assert data.posterior["s"].dims == ("chain", "draw", "image") and not hasattr(data, "sample_stats")
    torch.testing.assert_close(torch.tensor(data.posterior["s"].values), posterior.samples["s"])
