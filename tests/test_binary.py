"""Images of zeros and ones, and models of them, against independent numbers."""

import pytest
import torch
from torch.distributions import Bernoulli

import guides
import inference
import zoo
from zoo.data.base import Data, Dataset
from zoo.data.binary import BinaryStream, binarized
from zoo.testing import check_model


def gray(n=40, seed=0):
    x = torch.rand(n, 1, 3, 4, generator=torch.Generator().manual_seed(seed))
    return Dataset("gray", Data(x), Data(x[:7].clone()), "made for a test")


def model_of(family="gaussian", **options):
    return zoo.build(family, (1, 3, 4), latents=5, decoder="elu", likelihood="bernoulli", **options)


def test_a_stream_is_the_same_whenever_it_is_asked_and_its_pixels_are_drawn_with_their_probabilities():
    stream = BinaryStream(gray(), seed=3)
    first = stream.images(0, 40)
    assert torch.equal(first, BinaryStream(gray(), seed=3).images(0, 40))
    assert not torch.equal(first, BinaryStream(gray(), seed=4).images(0, 40))
    stream.images(80, 120)
    assert torch.equal(first, stream.images(0, 40)) and first.unique().tolist() == [0.0, 1.0]
    epochs = torch.stack([stream.images(40 * i, 40 * i + 40).mean(0) for i in range(300)])  # every image once in each epoch
    expected = gray().train.x
    se = (expected * (1 - expected)).sum(0).sqrt() / 40 / 300**0.5
    assert ((epochs.mean(0) - expected.mean(0)).abs() < 4 * se).all()


def test_a_batch_may_lie_in_two_epochs():
    stream = BinaryStream(Dataset("bits", Data(torch.eye(12).reshape(12, 1, 3, 4)), Data(torch.zeros(1, 1, 3, 4)), ""), seed=0)
    both = stream.images(9, 15).flatten(1).argmax(1)
    assert len(both[:3].unique()) == 3 and len(both[3:].unique()) == 3
    epoch = torch.cat([stream.images(0, 9).flatten(1).argmax(1), both[:3]])
    assert sorted(epoch.tolist()) == list(range(12)), "an epoch shows every image once"


def test_held_out_images_are_drawn_once_and_share_nothing_with_training_images():
    data = binarized(gray(), seed=1)
    assert data.test.x.unique().tolist() == [0.0, 1.0] and torch.equal(data.test.x, binarized(gray(), seed=1).test.x)
    assert not torch.equal(data.test.x, data.train.x[:7])


@pytest.mark.parametrize("make", [binarized, BinaryStream])
def test_pixels_that_are_no_probabilities_are_refused(make):
    data = gray()
    with pytest.raises(ValueError, match=r"in \[0, 1\].*they are in \[0, 2\]"):
        make(Dataset("wrong", Data(data.train.x.clamp(0, 0).index_fill(0, torch.tensor([3]), 2.0)), data.test, ""))


def test_a_model_of_binary_images_keeps_the_conventions_and_scores_by_cross_entropy():
    model, x = model_of(), binarized(gray()).test.x
    check_model(model, x)
    z = torch.randn(len(x), 5, generator=torch.Generator().manual_seed(0))
    likelihood = Bernoulli(logits=model.decoder(z)).log_prob(x).flatten(1).sum(1)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(inference.log_joint(model, {"z": z}, x), prior + likelihood, atol=1e-4, rtol=1e-5)
    assert not model.linear and torch.equal(model.mean(z), model.decoder(z).sigmoid())
    guide = guides.build("amortized", model)
    scores = inference.score(model, x, inference.infer(model, x, guide=guide, draws=50))
    assert scores.values["elbo"] == pytest.approx(-scores.values["nelbo"], rel=1e-5), "its log-likelihood has no constant"


@pytest.mark.parametrize("family", ["gaussian", "poisson"])
def test_it_is_trained_saved_and_sampled(family, tmp_path):
    model = model_of(family)
    guide = guides.build("amortized", model, encoder="elu")
    history = inference.fit(model, guide, BinaryStream(gray()), steps=80, batch_size=40, log_every=40, progress=False)
    assert history.rows[-1]["elbo"] > history.rows[0]["elbo"]
    inference.save(tmp_path / "saved", model, guide)
    again = inference.load(tmp_path / "saved")[0]
    assert again.likelihood == "bernoulli" and torch.equal(again(size=2).unique(), torch.tensor([0.0, 1.0]))
    chains = inference.infer(model, binarized(gray()).test.x, "mcmc", draws=5, warmup=5, chains=2)
    assert chains.samples["z"].shape == (2, 5, 7, 5)


def test_an_unknown_likelihood_is_refused():
    with pytest.raises(ValueError, match="likelihood must be 'normal', 'bernoulli', 'categorical', 'endpoint', not 'cauchy'"):
        zoo.build("gaussian", (1, 3, 4), likelihood="cauchy")
