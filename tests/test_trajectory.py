"""Trajectories of inference: every number is that of the posterior after that step; and the figures show these numbers."""

from __future__ import annotations

import time
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from test_iterative import Mixed, TwoLevels, ascended, drawn
from test_program import SITES, quadrature, scalar_program

import guides
import inference
import inference.trajectory as module
import zoo
from guides.base import Fixed
from guides.bounds import exact_elbo
from inference import plots
from inference.methods.amortized import draw
from inference.trajectory import Trajectory, path_of, trajectory
from zoo.density import counting
from zoo.oracles import likelihood_constant

PER_IMAGE = ("elbo", "nelbo", "mse", "kl", "r2")


@pytest.fixture(autouse=True)
def settings_left_as_found():
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before


def pair(name="poisson", n=12, **options):
    model = zoo.build(name, (1, 3, 3), latents=6, init_scale=0.6, seed=1, **options).eval()
    x = torch.randn(n, 1, 3, 3, generator=torch.Generator().manual_seed(2))
    return model, guides.build("amortized", model, init_scale=0.2, seed=3).eval(), x


def built(name, model, encoder, **options):
    return guides.build(name, model, **({"encoder": encoder} if name == "semi" else {}), **options).eval()


@pytest.mark.parametrize("name", ["poisson", "categorical", "laplace"])
@pytest.mark.parametrize("decoder", ["lin", "mlp"])
def test_every_number_is_the_score_of_that_steps_posterior(name, decoder):
    model, encoder, x = pair(name, decoder=decoder)
    guide = built("semi", model, encoder, refine="svi", steps=3)
    followed = trajectory(model, x, guide, draws=7, keep=5, seed=4)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(4)
        path = list(guide.path(x))
        for row, deltas in enumerate(path):
            torch.manual_seed(4)
            posterior = draw(Fixed(model, deltas), x, 7)
            scores = inference.score(model, x, posterior)
            for column in PER_IMAGE:
                torch.testing.assert_close(getattr(followed, column)[row], scores.per_image[column])
            assert followed.zeros[row].item() == pytest.approx(scores.values["zeros"])
            assert followed.sparsity[row].item() == pytest.approx(scores.values["population_sparsity"])
            torch.testing.assert_close(followed.reconstruction[row], posterior.predict(model)[:5])
            torch.testing.assert_close(followed.code[row], model.family.code(posterior.samples["z"])[0, :, :5].mean(0))
    assert followed.step.tolist() == [0, 1, 2, 3] and len(followed) == 3
    assert followed.elbo.shape == (4, 12) and followed.code.shape == (4, 5, 6) and followed.reconstruction.shape == (4, 5, 1, 3, 3)


@pytest.mark.parametrize("name", ["natural", "iterative", "semi"])
def test_bounds_along_the_way_in_closed_form(name):
    model, encoder, x = pair()
    guide = built(name, model, encoder, steps=4)
    followed = trajectory(model, x, guide, steps=6)
    with torch.no_grad():
        values = torch.stack([exact_elbo(model, Fixed(model, deltas), x).value for deltas in guide.path(x, 6)])
    torch.testing.assert_close(followed.elbo, values)
    torch.testing.assert_close(followed.nelbo, -values - likelihood_constant(model).float())
    assert len(followed) == 6 and guide.steps == 4
    if name == "semi":
        torch.testing.assert_close(followed.elbo[0], exact_elbo(model, encoder, x).value.detach())
    else:
        assert not followed.kl[0].any()


def test_a_guide_without_steps_has_one_from_the_prior():
    model, encoder, x = pair()
    for guide in (encoder, guides.build("local", model, x, start=encoder)):
        followed = trajectory(model, x, guide)
        assert len(followed) == 1 and followed.step.tolist() == [0, 1] and not followed.kl[0].any()
        torch.testing.assert_close(followed.elbo[1], exact_elbo(model, encoder, x).value.detach())


def test_bounds_of_a_hierarchy_and_of_plain_programs():
    """Where a prior depends on other latents, or is not the zoo's, the draws' densities tell the KL divergence."""
    model = TwoLevels().requires_grad_(False)
    x = drawn(model, 12, 2)
    start = {name: torch.zeros(12, 2, units) for name, (_, units) in model.latents.items()}
    best = ascended(lambda deltas: model.exact_elbo(deltas, x), start)[1]
    followed = trajectory(model, x, [start, best], draws=200)
    error = followed.elbo[-1] - model.exact_elbo(best, x)
    assert error.abs().max() < 1.0 and error.mean().abs() < 5 * error.std() / len(x)**0.5 + 1e-3
    assert followed.kl[0].abs().max() < 1e-4 and followed.code.shape == (2, 12, 6)

    program = scalar_program(SITES["normal"])
    x = drawn(program, 5, 1)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        *_, end = path_of("local", program, x, None, steps=150)
    followed = trajectory(program, x, [end], draws=200)
    evidence, mean, _ = quadrature("normal", x)
    assert ((evidence - followed.elbo[-1]).abs() < 0.03).all()  # a Normal posterior is in the family
    torch.testing.assert_close(followed.code[-1, :, 0].double(), mean, atol=0.15, rtol=0)

    mixed = Mixed().requires_grad_(False)
    x = drawn(mixed, 5, 1)
    followed = trajectory(mixed, x, guides.build("amortized", mixed, x), draws=4, keep=2)
    assert followed.elbo.isfinite().all() and followed.code.shape == (2, 2, 4) and followed.reconstruction.shape == (2, 2, 1, 3, 3)


@pytest.mark.parametrize("method", ["amortized", "iterative", "semi", "natural", "local"])
def test_methods_arrive_where_infer_does(method):
    model, encoder, x = pair()
    guide = guides.build("iterative", model, steps=3).eval() if method == "iterative" else encoder
    options = {"amortized": {}, "iterative": {}, "semi": {"refine": "svi", "steps": 5}, "natural": {"steps": 4, "step_size": 0.3},
               "local": {"steps": 7, "lr": 0.2}}[method]
    posterior = inference.infer(model, x, method, guide=guide, **options)
    followed = trajectory(model, x, path_of(method, model, x, guide, **options))
    torch.testing.assert_close(followed.elbo[-1], inference.score(model, x, posterior).per_image["elbo"])
    if method in ("local", "semi"):
        torch.testing.assert_close(followed.elbo[0], exact_elbo(model, encoder, x).value.detach())
    assert len(followed) == {"amortized": 1, "iterative": 3, "semi": 5, "natural": 4, "local": 7}[method]


def test_methods_without_a_path():
    model, encoder, x = pair()
    assert path_of("map", model, x, encoder) is None and path_of("mcmc", model, x, None, draws=3) is None


def test_long_trajectories_are_looked_at_eight_times_in_every_doubling():
    model, encoder, x = pair(n=2)
    deltas = encoder.delta(x)
    followed = trajectory(model, x, (deltas for _ in range(301)), draws=1, keep=1)
    assert followed.step.tolist() == [*range(17), 18, 20, 22, 24, 26, 28, 30, 32, 36, 40, 44, 48, 52, 56, 60, 64, 72, 80, 88, 96, 104, 112,
                                      120, 128, 144, 160, 176, 192, 208, 224, 240, 256, 288, 300]
    assert len(followed) == 300 and len(followed.seconds) == len(followed.elbo) == len(followed.step)


def test_time_is_that_of_inference_alone(monkeypatch):
    model, encoder, x = pair()
    deltas, look = encoder.delta(x), module._look

    def slow_look(*arguments):
        time.sleep(0.05)
        return look(*arguments)

    def slow_path():
        for pause in (0.0, 0.2, 0.0, 0.3):
            time.sleep(pause)
            yield deltas

    monkeypatch.setattr(module, "_look", slow_look)
    seconds = trajectory(model, x, slow_path(), draws=1).seconds
    taken = seconds.diff()
    assert (taken > 0).all() and taken[0] >= 0.2 and taken[2] >= 0.3
    assert taken[1] < 0.15 and seconds[0] < 0.15  # the pauses of looking, .05 each, are not in it


def test_nothing_else_changes(unchanged_generator):
    model, encoder, x = pair(decoder="mlp")
    iterative = guides.build("iterative", model, steps=2)
    semi = guides.build("semi", model, encoder=encoder, refine="svi", steps=2)
    encoder.train()
    bounds = []
    for training in (True, False):
        iterative.train(training)
        with unchanged_generator():
            first, again, other = (trajectory(model, x, iterative, seed=seed) for seed in (1, 1, 2))
        assert iterative.training == iterative.network.training == training
        assert torch.equal(first.elbo, again.elbo) and not torch.equal(first.elbo, other.elbo)
        bounds += [first.elbo, other.elbo]
    assert torch.equal(bounds[0], bounds[2]) and torch.equal(bounds[1], bounds[3])
    assert not first.kl[0].any()
    encoder.eval()
    trajectory(model, x, semi)
    assert semi.training and not encoder.training
    with pytest.raises(ValueError, match="got .12, 1, 2, 3."):
        trajectory(model, x[:, :, :2], semi)
    assert semi.training and not encoder.training
    assert not any(part.requires_grad for part in vars(first).values())


def test_looking_costs_nothing():
    model, encoder, x = pair()
    with counting() as cost:
        trajectory(model, x, built("semi", model, encoder, refine="svi", steps=3))
    assert cost.gradients == cost.evaluations == 3 * len(x)


def test_guides_without_parameters_are_refused():
    model, _, x = pair("gaussian")
    for name in ("flow", "map"):
        guide = guides.build(name, model, x)
        with pytest.raises(ValueError, match=f"a guide's parameters, which {type(guide).__name__} does not have"):
            trajectory(model, x, guide)


# Figures


def made(steps, n=6, zeros=0.5, offset=0.0, shape=(1, 4, 5)):
    """A trajectory of which every number is known."""
    generator = torch.Generator().manual_seed(steps if isinstance(steps, int) else sum(steps))
    rows = len(steps) if isinstance(steps, list) else steps + 1
    at = torch.tensor(steps if isinstance(steps, list) else list(range(rows)))
    per_image = {name: offset + torch.rand(rows, n, generator=generator) for name in PER_IMAGE}
    return Trajectory(step=at, zeros=zeros * torch.rand(rows, generator=generator), sparsity=torch.rand(rows, generator=generator),
                      code=torch.zeros(rows, 3, 2), reconstruction=torch.randn(rows, 3, *shape, generator=generator),
                      seconds=torch.arange(rows) * 0.006 + 0.0006, **per_image)


def lines(ax):
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def test_panels_show_means_over_images():
    ways = {"iterative": made(5), "semi": made(9, offset=1.0), "encoder": made(1)}
    figure = plots.plot_trajectory(ways, reference={"best": 0.1, "evidence": 0.05}, title="inference")
    assert isinstance(figure, Figure)
    bound, timed, error, sparse = figure.axes
    for ax, column in ((bound, "nelbo"), (timed, "nelbo"), (error, "mse")):
        for label in ("iterative", "semi"):
            np.testing.assert_allclose(lines(ax)[label].get_ydata(), getattr(ways[label], column).mean(1), rtol=1e-6)
        assert lines(ax)["encoder"].get_ydata() == pytest.approx(getattr(ways["encoder"], column)[1].mean().item())
    np.testing.assert_allclose(lines(sparse)["semi"].get_ydata(), ways["semi"].zeros)
    np.testing.assert_allclose(lines(timed)["semi"].get_xdata(), ways["semi"].seconds * 1e3 / 6, rtol=1e-6)
    for ax in (bound, error, sparse):
        np.testing.assert_array_equal(lines(ax)["semi"].get_xdata(), range(10))
        assert "step" in ax.get_xlabel() and ax.get_xlim()[1] > 9
        assert [tick for tick in ax.get_xticks() if tick <= 9] == [0, 1, 2, 4, 8]
    for ax in (bound, timed):
        assert [lines(ax)[name].get_ydata()[0] for name in ("best", "evidence")] == [0.1, 0.05]
        assert "nats per image" in ax.get_ylabel() and ax.get_ylim()[0] < 0.05
    assert "ms per image" in timed.get_xlabel() and "pixels" in error.get_ylabel() and "zeros" in sparse.get_ylabel()
    legend, = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["iterative", "semi", "encoder", "best", "evidence"]
    assert len({line.get_color() for line in lines(error).values()}) == 3


def test_the_axis_of_steps_grows_like_a_logarithm_and_holds_zero():
    bound = plots.plot_trajectory({"long": made(300), "sparse": made([0, 1, 2, 8, 24])}).axes[0]
    np.testing.assert_array_equal(lines(bound)["sparse"].get_xdata(), [0, 1, 2, 8, 24])
    at = bound.transData.transform([(step, 0.5) for step in (0, 1, 2, 4, 128, 256)])[:, 0]
    assert (np.diff(at) > 0).all()
    assert at[2] - at[1] == pytest.approx(at[3] - at[2]) == pytest.approx(at[5] - at[4])
    assert 0.5 * (at[2] - at[1]) < at[1] - at[0] < 2 * (at[2] - at[1])


def test_sparsity_is_shown_where_codes_have_no_zeros():
    ways = {"poisson · local": made(4), "gaussian · local": made(4, zeros=0.0), "gaussian · semi": made(3, zeros=0.0)}
    *_, sparse = plots.plot_trajectory(ways).axes
    for label in ways:
        np.testing.assert_allclose(lines(sparse)[label].get_ydata(), ways[label].sparsity)
    assert "population sparsity" in sparse.get_ylabel()
    drawn_lines = lines(sparse)
    assert to_hex(drawn_lines["poisson · local"].get_color()) == "#d55e00"
    assert drawn_lines["gaussian · local"].get_color() == drawn_lines["gaussian · semi"].get_color()
    assert drawn_lines["gaussian · local"].get_linestyle() != drawn_lines["gaussian · semi"].get_linestyle()


def test_the_bounds_near_the_end_can_be_enlarged():
    bound, timed, *_ = plots.plot_trajectory({"a": made(4)}, top=0.8).axes
    lowest = made(4).nelbo.mean(1).min().item()
    for ax in (bound, timed):
        assert ax.get_ylim()[1] == 0.8 and ax.get_ylim()[0] == pytest.approx(lowest - 0.05 * (0.8 - lowest))


def test_film_strips_show_the_steps_beside_the_image():
    x = torch.randn(6, 1, 4, 5, generator=torch.Generator().manual_seed(9))
    ways = {"iterative": made(5), "encoder": made(1), "long": made([0, 1, 2, 8])}
    figure = plots.plot_steps(x, ways, steps=(0, 1, 2, 4), images=2, title="strips")
    ax = figure.axes[0]
    limit = np.quantile(x[:2].abs(), 0.99)
    found = {}
    for image in ax.images:
        left, _, _, top = image.get_extent()
        found[round(left, 6), round(top, 6)] = 2 * np.asarray(image.get_array())[..., 0] - 1
    columns, tops = sorted({left for left, _ in found}), sorted({top for _, top in found})
    assert len(columns) == 5 and len(tops) == 6 and len(found) == 2 + 2 * (4 + 2 + 3)
    for row in range(2):
        np.testing.assert_allclose(found[columns[0], tops[3 * row]], np.clip(x[row, 0] / limit, -1, 1), atol=0.02)
        for strip, (way, rows) in enumerate(zip(ways.values(), ({0: 0, 1: 1, 2: 2, 4: 4}, {0: 0, 1: 1}, {0: 0, 1: 1, 2: 2}), strict=True)):
            for column, step in enumerate((0, 1, 2, 4), start=1):
                at = columns[column], tops[3 * row + strip]
                assert (at in found) == (step in rows)
                if step in rows:
                    truth = np.clip(way.reconstruction[rows[step], row, 0] / limit, -1, 1)
                    np.testing.assert_allclose(found[at], truth, atol=0.02)
    words = [text.get_text() for text in ax.texts]
    heads = ["image", "start", "step 1", "2", "4"]
    assert words.count("iterative") == 2 and [word for word in words if word in heads] == heads
    shown = [(ways["iterative"], 0), (ways["iterative"], 1), (ways["iterative"], 2), (ways["iterative"], 4), (ways["encoder"], 0),
             (ways["encoder"], 1), (ways["long"], 0), (ways["long"], 1), (ways["long"], 2)]
    errors = [f"{way.mse[at, row]:.1f}" for row in range(2) for way, at in shown]
    assert [word for word in words if word.replace(".", "").isdigit() and "." in word] == errors


def test_film_strips_of_flow_have_its_key(tmp_path):
    x = 0.02 * torch.randn(6, 2, 4, 4)
    figure = plots.plot_steps(x, {"a": made(2, shape=(2, 4, 4))}, images=9)
    assert len(figure.axes) == 2 and len(figure.axes[0].images) == 3 * 4
    path = plots.save(figure, tmp_path / "flow.png")
    assert path.stat().st_size > 1000
    assert plots.save(plots.plot_trajectory({"a": made(40)}), tmp_path / "steps.png").stat().st_size > 1000


def test_what_cannot_be_drawn_is_refused():
    x = torch.randn(6, 1, 4, 5)
    for plot in (plots.plot_trajectory, lambda ways: plots.plot_steps(x, ways)):
        with pytest.raises(ValueError, match="no trajectory"):
            plot({})
        with pytest.raises(TypeError, match="'mine' must be a trajectory .*, not list"):
            plot({"mine": [1.0, 2.0]})
    with pytest.raises(ValueError, match="best must be finite"):
        plots.plot_trajectory({"a": made(2)}, reference={"best": float("nan")})
    with pytest.raises(ValueError, match="top must be finite"):
        plots.plot_trajectory({"a": made(2)}, top=float("inf"))
    with pytest.raises(ValueError, match=r"'a' is of 6 images \(1, 4, 5\), not of 5 images \(1, 4, 5\)"):
        plots.plot_steps(x[:5], {"a": made(2)})
    with pytest.raises(ValueError, match="not of 6 images"):
        plots.plot_steps(x.transpose(2, 3), {"a": made(2)})
    with pytest.raises(ValueError, match="x must be finite images"):
        plots.plot_steps(x.flatten(1), {"a": made(2)})
    for options in ({"steps": ()}, {"steps": (-1, 2)}, {"images": 0}):
        with pytest.raises(ValueError, match="steps must be at least 0 and images at least 1"):
            plots.plot_steps(x, {"a": made(2)}, **options)
    with pytest.raises(ValueError, match="the trajectories kept"):
        plots.plot_steps(x, {"a": replace(made(2), reconstruction=torch.zeros(3, 0, 1, 4, 5))})
