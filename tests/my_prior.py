"""A prior of one's own: spike counts that vary more than a Poisson's, with a variance of mean + mean² / shape.

Use it by its name once this file is imported, or with ``--plugin my_prior.py`` on the command line.
"""

import pyro.distributions as dist
from torch.distributions.kl import register_kl

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
        log_odds = params.squeeze(-2) - params.new_tensor(self.shape).log()
        return dist.NegativeBinomial(params.new_tensor(self.shape), logits=log_odds)


@register_kl(dist.NegativeBinomial, dist.NegativeBinomial)
def kl_of_one_shape(q, p):
    if not (q.total_count == p.total_count).all():
        raise NotImplementedError("no closed form between different shapes")
    # Σ q log(q / p) with log q(z) = shape · log σ(−logits) + z · log σ(logits) + what both share
    none_q, none_p = (-q.logits).sigmoid().log(), (-p.logits).sigmoid().log()
    return q.total_count * (none_q - none_p) + q.mean * (none_q + q.logits - none_p - p.logits)
