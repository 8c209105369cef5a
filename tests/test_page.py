"""A page on one model: its numbers are those of the functions it calls, and its folder is whole or not there."""

from __future__ import annotations

import csv

import pytest
import torch
from typer.testing import CliRunner

import guides
import inference
import zoo
from inference import page_pictures
from inference.cli import app
from inference.draft import Draft
from inference.metrics.decodability import drawn_code, linear_decodability, mean_code, scales
from inference.metrics.group_kl import group_kl
from inference.model_page import page
from inference.traversals import traverse
from zoo.data.base import Data, Dataset
from zoo.latents.deterministic import Deterministic

TINY = {"channels": 4, "groups": (1, 1), "pre": (1, 1), "up": (1, 1), "down": (1, 1), "units": 3}
ROWS = [{"step": step, "seconds": 0.1 * step, "elbo": 100.0 - 50.0 / step, "beta": min(1.0, step / 5)} for step in range(1, 11)]


def made(shape, targets=True, n=110, seed=0):
    """Images that are linear in two causes, and noise."""
    parts = []
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(2, *shape, generator=generator)
    for _ in range(3):
        causes = torch.randn(n, 2, generator=generator)
        x = 0.2 * torch.einsum("nk,kchw->nchw", causes, maps) + 0.05 * torch.randn(n, *shape, generator=generator)
        parts.append(Data(x, factors={"left": causes[:, 0], "right": causes[:, 1]} if targets else None))
    return Dataset("made", parts[0], parts[2], "Two causes and noise.", validation=parts[1] if targets else None,
                   targets=("left", "right") if targets else ())


def pair(shape, family="gaussian", seed=0, **options):
    model = zoo.build("hierarchy", shape, family=family, seed=seed, **TINY | options)
    return model.eval(), guides.build("hierarchical", model, seed=seed).eval()


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_page_of_flow_with_factors(tmp_path, unchanged_generator):
    data = made((2, 9, 9))
    model, guide = pair((2, 9, 9), "poisson,gaussian")
    with unchanged_generator():
        out = page(model, guide, data, tmp_path / "page", title="mine", history=ROWS, images=20, draws=4, probe=100)
    pictures = {"reconstructions", "training", "group_kl", "prior_samples", "traversals", "decodability", "levels", "mutual_information"}
    tables = {"scores", "group_kl", "decodability", "levels", "dci", "mutual_information"}
    assert {path.name for path in out.iterdir()} == {"report.md", *(f"{n}.png" for n in pictures), *(f"{n}.csv" for n in tables)}
    report = (out / "report.md").read_text()
    assert report.startswith("# mine\n") and all(f"({name}.png)" in report for name in pictures)
    for words in ("first 20 test images", "4 draws", "seed 0", "fitted on 100 validation images", "z2 (poisson, 3)", "log p(x \\| z)"):
        assert words in report, words
    x = data.test.x[:20]
    posterior = inference.infer(model, x, guide=guide, draws=4)
    scores = inference.score(model, x, posterior, k=4, guide=guide).values
    rows = {row["score"]: float(row["value"]) for row in table(out / "scores.csv")}
    for name in ("nelbo", "elbo", "log_px_bound", "mse", "active"):
        assert rows[name] == pytest.approx(scores[name], rel=1e-6), name
    kl = group_kl(model, x, guide, draws=4)
    units = [float(row["kl_nats"]) for row in table(out / "group_kl.csv")]
    assert units == pytest.approx(torch.cat([kl["z2"], kl["z1"]]).tolist(), rel=1e-5)
    assert [row["level"] for row in table(out / "group_kl.csv")] == ["4 × 4"] * 3 + ["8 × 8"] * 3
    fit, scored = data.validation[:100], data.test[:100]
    z = [mean_code(model, inference.infer(model, part.x, guide=guide, propagate="means")) for part in (fit, scored)]
    truth = linear_decodability(z[0], fit.factors, z[1], scored.factors)
    row, drawn = table(out / "decodability.csv")
    assert row["representation"] == "mine" and float(row["left"]) == pytest.approx(truth["left"], abs=1e-5)
    z = [drawn_code(model, inference.infer(model, part.x, guide=guide, draws=1)) for part in (fit, scored)]
    truth = linear_decodability(z[0], fit.factors, z[1], scored.factors)
    assert drawn["representation"] == "mine · one draw" and float(drawn["left"]) == pytest.approx(truth["left"], abs=1e-5)
    assert "Raw pixels are left out: 162" in report
    assert [row["importance"] for row in table(out / "dci.csv")] == ["regression", "permutation"]


def test_traversals_of_a_hierarchy_hold_what_an_image_says(monkeypatch):
    """Where the levels above multiply what is below, sweeps around the prior's mean of zero would show nothing."""
    x = made((1, 8, 8), targets=False).test.x[:9]
    model, guide = pair((1, 8, 8), coupling="gain")
    with torch.no_grad():
        torch.nn.init.zeros_(next(group.spread.bias for group in model.groups.values() if group.gain is not None))
    drawn = []
    monkeypatch.setattr(page_pictures, "plot_traversals", lambda rows, **options: drawn.extend(rows))
    monkeypatch.setattr(Draft, "section", lambda *words: None)
    page_pictures.traversals(Draft(), model, guide, x, scales(model), {}, False)
    middle = x.flatten(1).norm(dim=1).argsort()[4]
    z = {site: value[0, 0, middle] for site, value in inference.infer(model, x, guide=guide, propagate="means").samples.items()}
    assert {row.site for row in drawn} == set(model.latents)
    for row in drawn:
        assert row.images.var(0).max() > 1e-8, "a sweep that shows nothing"
        torch.testing.assert_close(row.images, traverse(model, z, row.site, row.unit).images)


def test_raw_pixels_stand_beside_the_model_where_they_can(tmp_path):
    data = made((2, 4, 4))
    model = zoo.build("gaussian", (2, 4, 4), latents=3, likelihood="endpoint", init_scale=0.5, seed=0)
    guide = guides.build("amortized", model)
    out = page(model, guide, data, tmp_path, images=10, draws=2, probe=80)
    rows = table(out / "decodability.csv")
    assert [row["representation"] for row in rows] == ["raw pixels", "gaussian", "gaussian · one draw"] and float(rows[0]["left"]) > 0.9
    assert not (out / "levels.png").exists() and not (out / "training.png").exists()


def test_a_page_of_grey_images_without_factors(tmp_path):
    data = made((1, 8, 8), targets=False)
    model, guide = pair((1, 8, 8), "categorical,laplace")
    out = page(model, guide, data, tmp_path / "page", images=10, draws=2)
    assert {path.name for path in out.iterdir()} == {"report.md", "scores.csv", "group_kl.csv", "group_kl.png", "prior_samples.png",
                                                     "reconstructions.png", "traversals.png"}
    again = page(model, guide, data, tmp_path / "page", title="second", images=5, draws=2)
    assert (again / "report.md").read_text().startswith("# second")


@pytest.mark.parametrize("kind", ["deterministic", "full"])
def test_a_page_leaves_out_what_is_not_defined(tmp_path, kind):
    data = made((1, 8, 8), targets=False)
    if kind == "full":
        model = zoo.build("gaussian", (1, 8, 8), latents=3, seed=0)
        guide = guides.build("full", model)
    else:
        model, guide = pair((1, 8, 8), Deterministic())
    out = page(model, guide, data, tmp_path / "page", images=10, draws=2)
    report = (out / "report.md").read_text()
    assert "Not defined for this model and guide" in report and "nan" not in report
    assert not (out / "group_kl.png").exists() and "vary most" in report
    assert (out / "prior_samples.png").exists() == (kind == "full")


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    data = made((1, 8, 8), targets=False)
    model, guide = pair((1, 8, 8))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="notes.txt.*not part of a page"):
        page(model, guide, data, tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        page(model, guide, data, tmp_path / "notes.txt")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_text("mine")
    with pytest.raises(ValueError, match=r"a\.png"):
        page(model, guide, data, tmp_path / "photos")
    assert (tmp_path / "notes.txt").read_text() == "mine" and (tmp_path / "photos" / "a.png").exists()


def test_what_cannot_make_a_page_is_refused(tmp_path):
    data = made((1, 8, 8))
    model, guide = pair((1, 8, 8))
    with pytest.raises(ValueError, match="test images"):
        page(model, guide, data.test, tmp_path / "page")
    with pytest.raises(ValueError, match="larger probe"):
        page(model, guide, data, tmp_path / "page", images=5, draws=2, probe=6)
    flat = zoo.build("hierarchy", (7,), cells="lin", **TINY)
    with pytest.raises(ValueError, match="channels, height, width"):
        page(flat, guides.build("hierarchical", flat), data, tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_a_page_from_the_command_line(tmp_path):
    model = zoo.build("hierarchy", (1, 16, 16), family="poisson", cells="mlp", units=3, channels=8, groups=(1, 1), pre=(1, 1), up=(1, 1),
                      down=(1, 1))
    inference.save(tmp_path / "saved", model, guides.build("hierarchical", model), description={"data": "patches", "data_options": {}})
    inference.save(tmp_path / "nameless", model, guides.build("hierarchical", model))
    run = CliRunner().invoke
    done = run(app, ["page", str(tmp_path / "saved"), "--out", str(tmp_path / "page"), "--images", "20", "--quiet"])
    assert done.exit_code == 0 and (tmp_path / "page" / "report.md").exists()
    refused = run(app, ["page", str(tmp_path / "nameless"), "--out", str(tmp_path / "other")])
    assert refused.exit_code == 2 and "the name of its data" in refused.output and not (tmp_path / "other").exists()
