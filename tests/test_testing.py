"""The conformance tests themselves: they pass what is right, and name what is wrong in families and programs broken on purpose."""

import my_prior
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions.kl import register_kl

import guides
import inference
import zoo
from zoo import oracles
from zoo.latents.categorical import Categorical
from zoo.latents.gaussian import Gaussian
from zoo.latents.poisson import Poisson
from zoo.latents.relaxed.arrival import RelaxedPoisson
from zoo.latents.support import support_kind
from zoo.testing import check_family, check_model
from zoo.testing.laws import covariance_of, law_of, one_by_one

# -- a prior of one's own

def test_the_example_prior_conforms_and_is_known_by_name():
    assert zoo.latents.registry["negative_binomial"] is my_prior.NegativeBinomial
    for shape in (0.7, 9.0):
        check_family(my_prior.NegativeBinomial(shape))


def test_the_example_prior_has_the_mean_and_variance_it_tells_of():
    mean, variance = my_prior.NegativeBinomial(3.0).moments(torch.tensor([[0.5, 2.0, 7.0]]).log())
    torch.testing.assert_close(mean, torch.tensor([0.5, 2.0, 7.0]))
    torch.testing.assert_close(variance, mean + mean.square() / 3)


def test_the_example_prior_has_no_closed_form_between_shapes():
    few, many = (dist.NegativeBinomial(torch.tensor(shape), logits=torch.zeros(3)) for shape in (1.0, 2.0))
    with pytest.raises(NotImplementedError):
        torch.distributions.kl_divergence(few, many)


@pytest.mark.parametrize("name", zoo.latents.registry)
def test_every_prior_is_fitted_inferred_and_scored(name, unchanged_generator):
    torch.manual_seed(0)
    x = torch.randn(200, 1, 3, 4) @ torch.randn(4, 4)
    model = zoo.build(name, (1, 3, 4), latents=8)
    guide = guides.build("amortized", model, encoder="lin")
    before = inference.score(model, x, inference.infer(model, x, guide=guide, draws=5)).values
    with unchanged_generator():
        inference.fit(model, guide, x, steps=120, batch_size=200, lr=0.02, progress=False)
    after = inference.score(model, x, inference.infer(model, x, guide=guide, draws=5)).values
    assert after["elbo"] > before["elbo"] + 0.5  # exact draws: a twin that only fits its own relaxed samples would not do
    discrete = support_kind(model.family.distribution(model.prior).support) != "real"
    for method in ("amortized", "local", "map"):
        posterior = inference.infer(model, x[:5], method, guide=guide, draws=10)
        z = posterior.samples["z"]
        assert z.shape[2:] == (5, 8) and z.isfinite().all()
        assert not discrete or ((z >= 0).all() and (z == z.round()).all())


# -- the truth that families are held to

def test_laws_have_the_moments_of_textbooks():
    params = torch.tensor([[[0.3], [-0.2]], [[-1.0], [0.5]]], dtype=torch.float64)  # (B, P, K)
    scale = params[:, 1].exp()
    mean, covariance = covariance_of(zoo.latents.registry["laplace"](), params)
    torch.testing.assert_close(mean, params[:, 0], atol=1e-6, rtol=0)
    torch.testing.assert_close(covariance.squeeze(-1), 2 * scale.square(), atol=1e-5, rtol=0)
    law = law_of(Gaussian(), one_by_one(params))
    torch.testing.assert_close(law.mass.sum(0), torch.ones(2, dtype=torch.float64))
    logits = torch.tensor([[[0.0, 1.0, -0.5]]], dtype=torch.float64)
    mean, covariance = covariance_of(Categorical(), logits)
    probs = logits.softmax(-1).squeeze(1)
    torch.testing.assert_close(covariance, torch.diag_embed(probs) - probs.mT @ probs)


# -- families that are wrong

class WrongKL(Gaussian):
    def unit_kl(self, q, p):
        return 1.1 * super().unit_kl(q, p)


class NegativeKL(Poisson):
    def unit_kl(self, q, p):
        return q.squeeze(-2).exp() * (q - p).squeeze(-2)


class KLThatIsNotZero(Gaussian):
    def unit_kl(self, q, p):
        return super().unit_kl(q, p) + 0.01


class NoEvent(Gaussian):
    def distribution(self, params):
        return super().distribution(params).base_dist


class WrongCode(Gaussian):
    def code(self, z):
        return z[..., :-1]


class AlwaysSingle(Gaussian):
    def distribution(self, params):
        return super().distribution(params.float())


class ShiftedStart(Gaussian):
    def posterior(self, prior, delta):
        return prior + torch.nn.functional.softplus(delta)


class WrongPrior(Gaussian):
    def initial_prior(self, units):
        return torch.zeros(units)


class WrongAnneal(Poisson):
    anneal = (0.1, 1.0)


class WrongMean(Gaussian):
    def moments(self, params):
        mean, variance = super().moments(params)
        return mean + 0.01, variance


class WrongVariance(Gaussian):
    def moments(self, params):
        mean, variance = super().moments(params)
        return mean, variance.sqrt()


class WrongRead(Gaussian):
    def read(self, distribution):
        return super().read(distribution).flip(-2)


class DiagonalCategorical(Categorical):
    """The published mistake: a one-hot's reconstruction with the variances alone, as if categories were independent."""

    decoded_variance = zoo.latents.Family.decoded_variance


class UnnormalizedNormal(dist.Normal):
    def log_prob(self, value):
        return super().log_prob(value) + 0.05


class Unnormalized(Gaussian):
    def distribution(self, params):
        loc, log_scale = params.unbind(-2)
        return UnnormalizedNormal(loc, log_scale.exp()).to_event(1)

    def unit_kl(self, q, p):
        return None


class WideSampler(dist.Normal):
    def rsample(self, sample_shape=torch.Size()):  # noqa: B008
        return self.loc + 1.1 * (super().rsample(sample_shape) - self.loc)

    sample = rsample


class WrongSampler(Gaussian):
    def distribution(self, params):
        loc, log_scale = params.unbind(-2)
        return WideSampler(loc, log_scale.exp()).to_event(1)


class MixedUpUnits(Gaussian):
    def code(self, z):
        return z.flip(-1)


class BiasedTwin(Poisson):
    def relaxed(self, params, temperature):
        return RelaxedPoisson(1.1 * params.squeeze(-2).exp(), temperature).to_event(1)


class NarrowNormal(RelaxedPoisson):
    """Its samples have the count's mean and, at any temperature, too small a variance; its KL is the Poisson's."""

    def rsample(self, sample_shape=torch.Size()):  # noqa: B008
        noise = torch.randn(self._extended_shape(sample_shape), dtype=self.rate.dtype)
        return self.rate + 0.7 * self.rate.sqrt() * noise

    sample = rsample


class NarrowTwin(Poisson):
    def relaxed(self, params, temperature):
        return NarrowNormal(params.squeeze(-2).exp(), temperature).to_event(1)


class TwinWithoutKL(Poisson):
    def relaxed(self, params, temperature):
        rate = params.squeeze(-2).exp()
        return dist.Normal(rate, rate.sqrt()).to_event(1)


class DetachedTwin(Poisson):
    def relaxed(self, params, temperature):
        return super().relaxed(params.detach(), temperature)


class HalfDetached(Gaussian):
    def distribution(self, params):
        loc, log_scale = params.unbind(-2)
        return dist.Normal(loc, log_scale.detach().exp()).to_event(1)


class Bits(zoo.latents.Family):
    parameters = ("logits",)

    def distribution(self, params):
        return dist.Bernoulli(logits=params.squeeze(-2)).to_event(1)


BROKEN = {
    WrongKL: "unit_kl is .* nats off", NegativeKL: "negative", KLThatIsNotZero: "from itself must be 0",
    NoEvent: "to_event", WrongCode: r"code .* must have shape", AlwaysSingle: "must follow the parameters' torch.float64",
    ShiftedStart: "must be the prior itself", WrongPrior: "initial_prior", WrongAnneal: "anneal", WrongMean: "mean",
    WrongVariance: "variance", WrongRead: "read", DiagonalCategorical: "decoded_variance .* covariances",
    Unnormalized: "integrates to 1.05", WrongSampler: "samples do not follow log_prob",
    MixedUpUnits: "standard errors from moments",
    BiasedTwin: "KL divergence of the relaxed RelaxedPoisson", NarrowTwin: "does not become the exact distribution .* variance",
    TwinWithoutKL: "register_kl", DetachedTwin: "no gradient", HalfDetached: "does not reach every unit's log_scale",
    Bits: "accepted are real, count and one-hot",
}


@pytest.mark.parametrize("family, sentence", BROKEN.items(), ids=lambda item: getattr(item, "__name__", None))
def test_a_broken_family_is_caught(family, sentence):
    with pytest.raises(AssertionError, match=f"{family.__name__}: .*{sentence}"):
        check_family(family)


def test_a_twin_that_is_biased_under_the_right_kl_is_caught():
    class Biased(RelaxedPoisson):
        def rsample(self, sample_shape=torch.Size()):  # noqa: B008
            return 1.1 * super().rsample(sample_shape)

    class Family(Poisson):
        def relaxed(self, params, temperature):
            return Biased(params.squeeze(-2).exp(), temperature).to_event(1)

    with pytest.raises(AssertionError, match="its mean is still off"):
        check_family(Family)


def test_a_registered_kl_that_disagrees_is_caught():
    class Rival(dist.Normal):
        pass

    @register_kl(Rival, Rival)
    def _wrong(q, p):
        return torch.zeros_like(q.loc)

    class Family(Gaussian):
        def distribution(self, params):
            loc, log_scale = params.unbind(-2)
            return Rival(loc, log_scale.exp()).to_event(1)

        def unit_kl(self, q, p):
            return Gaussian().unit_kl(q, p)

    with pytest.raises(AssertionError, match="registered with torch"):
        check_family(Family)


def test_joint_families_are_held_to_their_own_samples():
    class Correlated(zoo.latents.Family):
        """A Normal whose units share half of their noise."""

        def distribution(self, params):
            loc, log_scale = params.unbind(-2)
            shared = torch.full((loc.shape[-1],) * 2, 0.5, dtype=loc.dtype) + 0.5 * torch.eye(loc.shape[-1], dtype=loc.dtype)
            factor = log_scale.exp().unsqueeze(-1) * torch.linalg.cholesky(shared)
            return dist.MultivariateNormal(loc, scale_tril=factor)

        def decoded_variance(self, params, weight):
            scaled = weight * params[..., 1, :].exp().unsqueeze(-2)
            return 0.5 * scaled.square().sum((-2, -1)) + 0.5 * scaled.sum(-1).square().sum(-1)

    class Forgetful(Correlated):
        decoded_variance = zoo.latents.Family.decoded_variance

    class WrongKL(Correlated):
        def unit_kl(self, q, p):
            return 1.1 * super().unit_kl(q, p)

    check_family(Correlated)
    with pytest.raises(AssertionError, match="decoded_variance is .* standard errors"):
        check_family(Forgetful)
    with pytest.raises(AssertionError, match="unit_kl sums to .* standard errors"):
        check_family(WrongKL)


def test_check_family_leaves_the_generator_alone_and_repeats_itself(unchanged_generator):
    with unchanged_generator():
        messages = []
        for _ in range(2):
            with pytest.raises(AssertionError) as caught:
                check_family(WrongSampler, seed=3)
            messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="unknown latents 'nobody'"):
        check_family("nobody")


# -- programs that are wrong

class Program(nn.Module):
    """A plain Pyro program that keeps the conventions; the broken ones below change one thing each."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 12).reshape(6, 2))

    def forward(self, x=None, size=None):
        size = len(x) if x is not None else size
        with pyro.plate("data", size):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(z), obs=x)

    def prior(self):
        return dist.Normal(self.weight.new_zeros(2), 1.0).to_event(1)

    def mean(self, z):
        return (z @ self.weight.T).unflatten(-1, (1, 2, 3))

    def likelihood(self, z):
        return dist.Normal(self.mean(z), 1.0).to_event(3)


class Outside(Program):
    def forward(self, x=None, size=None):
        size = len(x) if x is not None else size
        scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
        with pyro.plate("data", size):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", dist.Normal(self.mean(z), scale).to_event(3), obs=x)


class OtherPlate(Program):
    def forward(self, x=None, size=None):
        with pyro.plate("data", len(x) if x is not None else size, dim=-2), pyro.plate("one", 1, dim=-1):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(z), obs=None if x is None else x.unsqueeze(1))


class UnitsInBatch(Program):
    def forward(self, x=None, size=None):
        with pyro.plate("data", len(x) if x is not None else size):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, 1), 1.0))
            return pyro.sample("x", self.likelihood(z.movedim(0, -1)), obs=x)


class OtherName(Program):
    def forward(self, x=None, size=None):
        with pyro.plate("data", len(x) if x is not None else size):
            z = pyro.sample("z", self.prior())
            return pyro.sample("image", self.likelihood(z), obs=x)


class Rescaled(Program):
    def forward(self, x=None, size=None):
        return super().forward(None if x is None else x / 2, size)


class NoPriorDraws(Program):
    def forward(self, x):
        return super().forward(x)


class FixedSize(Program):
    def forward(self, x=None, size=None):
        return super().forward(x, None if size is None else 3)


class BatchMean(Program):
    def likelihood(self, z):
        return super().likelihood(z - z.mean(-2, keepdim=True))


class OrderMatters(Program):
    def likelihood(self, z):
        return super().likelihood(z.cumsum(-2))


class NoLeft(Program):
    def mean(self, z):
        return (z.reshape(len(z), -1)[:, :2] @ self.weight.T).unflatten(-1, (1, 2, 3))


class FixedDtype(Program):
    def mean(self, z):
        return super().mean(z @ torch.eye(2, dtype=torch.float32))


class GlobalStore(Program):
    def likelihood(self, z):
        return dist.Normal(self.mean(z) + pyro.param("bias", torch.zeros(())), 1.0).to_event(3)


BROKEN_PROGRAMS = {
    Outside: 'the site "scale" lies outside the plate', OtherPlate: "dim -1", UnitsInBatch: r"batch shape|does not run",
    OtherName: 'observe the images at the site "x"', Rescaled: "images as they are",
    NoPriorDraws: "must draw images from the prior",
    FixedSize: "with shape", BatchMean: "depends on the other images", OrderMatters: "depends on the other images",
    NoLeft: "dimensions to the left", FixedDtype: "float64", GlobalStore: "bias into Pyro's global parameter store",
}


def test_a_plain_program_that_keeps_the_conventions_passes(unchanged_generator):
    x = torch.randn(4, 1, 2, 3)
    program = Program().train()
    with unchanged_generator():
        check_model(program, x)
    assert program.training and program.weight.dtype == torch.float32
    check_model(lambda x=None, size=None: program(x, size), x)


@pytest.mark.parametrize("program, sentence", BROKEN_PROGRAMS.items(), ids=lambda item: getattr(item, "__name__", None))
def test_a_broken_program_is_caught(program, sentence):
    torch.manual_seed(0)
    with pytest.raises(AssertionError, match=sentence):
        check_model(program(), torch.randn(4, 1, 2, 3))
    assert not list(pyro.get_param_store().keys())


def test_check_model_leaves_the_parameter_store_as_it_was():
    try:
        pyro.param("mine", torch.ones(2))
        check_model(Program(), torch.randn(4, 1, 2, 3))
        with pytest.raises(AssertionError):
            check_model(GlobalStore(), torch.randn(4, 1, 2, 3))
        assert list(pyro.get_param_store().keys()) == ["mine"]
    finally:
        pyro.clear_param_store()


@pytest.mark.parametrize("name, change, sentence", [
    ("descend", lambda model, draw, x=None: {"z": draw("z", model.family, model.prior + 1)}, "is not the one that the program"),
    ("descend", lambda model, draw, x=None: {"y": draw("z", model.family, model.prior)}, "in this order"),
    ("decode", lambda model, latents: 2 * model.decoder(latents["z"]), "is not the distribution of the site"),
    ("latents", property(lambda model: {"y": (model.family, model.units)}), "latents tells of y"),
    ("latents", property(lambda model: {"z": (model.family, 3)}), "latents tells of 3 units")])
def test_a_walk_that_differs_from_the_program_is_caught(name, change, sentence):
    class Broken(oracles.LinearGaussian):
        def forward(self, x=None, size=None):
            size = len(x) if x is not None else size
            with pyro.plate("data", size):
                z = pyro.sample("z", self.family.distribution(self.prior))
                return pyro.sample("x", self.observation(self.decoder(z)), obs=x)

    setattr(Broken, name, change)
    model = oracles.linear_gaussian()
    model.__class__ = Broken
    with pytest.raises(AssertionError, match=sentence):
        check_model(model, torch.randn(3, 1, 4, 4))


def test_one_image_is_too_few():
    with pytest.raises(ValueError, match="at least 2 images"):
        check_model(Program(), torch.randn(1, 1, 2, 3))


# -- the guard in conftest.py

@pytest.mark.parametrize("change, name", [
    ("torch.set_default_dtype(torch.float64)", "the default dtype"), ("pyro.param('a', torch.ones(1))", "parameter store"),
    ("torch.set_grad_enabled(False)", "grad mode"), ("pyro.enable_validation(False)", "validation flag")])
def test_the_guard_sees_changed_global_state(change, name):
    from conftest import global_state, put_back

    before = global_state()
    try:
        exec(change, {"torch": torch, "pyro": pyro})
        after = global_state()
    finally:
        put_back(before)
    assert any(name in key for key in before if before[key] != after[key])
    assert global_state() == before
