"""A prior of one's own: spike counts that vary more than a Poisson's, with variance mean + mean² / shape."""

import pyro.distributions as dist
from torch.distributions.kl import register_kl
from torch.nn.functional import logsigmoid

import zoo
from zoo.latents.relaxed.gumbel import RelaxedCount


@zoo.latents.register("negative_binomial", "overdispersed spike counts, negative binomial prior with learned means")
class NegativeBinomial(zoo.latents.Family):
    parameters = ("log_mean",)
    learn_prior = True
    anneal = (1.0, 0.1)

    def __init__(self, shape: float = 2.0):
        self.shape = shape

    def distribution(self, params):
        return self._counts(params).to_event(1)

    def relaxed(self, params, temperature):
        return RelaxedCount(self._counts(params), temperature).to_event(1)

    def _counts(self, params):
        shape = params.new_tensor(self.shape)
        return dist.NegativeBinomial(shape, logits=params.squeeze(-2) - shape.log())


@register_kl(dist.NegativeBinomial, dist.NegativeBinomial)
def same_shape_kl(q, p):
    if not (q.total_count == p.total_count).all():
        raise NotImplementedError("there is no closed form between different shapes")
    more_failures = logsigmoid(-q.logits) - logsigmoid(-p.logits)
    more_successes = logsigmoid(q.logits) - logsigmoid(p.logits)
    return q.total_count * more_failures + q.mean * more_successes
