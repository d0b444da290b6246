"""Sets with their uncertainty, against closed forms, quadrature and counting."""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
from scipy.spatial import Voronoi
from scipy.stats import multivariate_normal, multivariate_t
from scipy.stats import t as student

from excursion import levelset, uncertainty
from excursion.errors import InvalidProblem
from excursion.problem import Problem, Task
from excursion.space import Parameter, ParameterSpace
from excursion.surrogate import GaussianProcess, Observations
from excursion.surrogate.joined import Mixture, Tempered

F64 = torch.float64


def fitted(u, z, **settings):
    recipe = GaussianProcess(**{"kernel": "matern52", "metric": "ard", "average": False, "restarts": 1, **settings})
    return recipe.fit(Observations.exact(u, z))


@pytest.fixture(scope="module")
def line():
    """A belief along one parameter that crosses zero once or three times."""
    u = torch.tensor([[0.02], [0.25], [0.5], [0.7], [0.98]], dtype=F64)
    return fitted(u, torch.tensor([-1.0, 0.25, -0.1, 0.8, 1.2], dtype=F64)), u


@pytest.fixture(scope="module")
def plane():
    u = ParameterSpace.of({"x": (0, 1), "y": (0, 1)}).sample(0, 12, 5)
    z = torch.sin(5 * u[:, 0]) + u[:, 1]
    return fitted(u, z), u


def problem(*names, constraints=(), transform="identity", threshold=0.0):
    space = ParameterSpace.of({name: (0.0, 1.0) for name in names}, constraints)
    return Problem(space, Task("f", threshold, transform))


# ------------------------------------------------------------------------------------------------- draws


def test_draws_have_the_moments_of_the_posterior(plane):
    posterior, _ = plane
    u = torch.rand(40, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    drawn = uncertainty.draws(posterior, u, 40_000, seed=3)
    mean, covariance = (m[0] for m in posterior.joint(u))
    sd = covariance.diagonal().sqrt()
    assert ((drawn.mean(0) - mean).abs() < 5 * sd / 200).all()
    error = (sd[:, None] * sd + covariance.square() / (sd[:, None] * sd)) / 200
    assert ((drawn.T.cov() - covariance).abs() < 5 * error).all()
    assert torch.equal(drawn, uncertainty.draws(posterior, u, 40_000, seed=3))
    assert not torch.equal(drawn, uncertainty.draws(posterior, u, 40_000, seed=4))
    above = uncertainty.excursions(posterior, u, 0.3, 40_000, 3)
    assert torch.equal(above, drawn >= 0.3)


def test_draws_at_many_points_keep_variances_and_neighbours_together(plane):
    posterior, seen = plane
    pairs = torch.rand(2400, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    u = torch.cat([pairs, (pairs + 0.002).clamp_max(1.0), seen])
    drawn = uncertainty.draws(posterior, u, 2000, seed=0)
    mean, variance = (m[0] for m in posterior.marginal(u))
    scaled = (drawn - mean) / variance.sqrt()
    far = variance > 1e-6
    assert scaled[:, far].var(0).mean() == pytest.approx(1.0, abs=0.01)
    assert scaled[:, far].var(0).min() > 0.8
    a, b = posterior.view(u[:2400]), posterior.view(u[2400:4800])
    cross = torch.stack([a.covariance(b)[0].diagonal(), a.variance[0], b.variance[0]])
    correlation = cross[0] / (cross[1] * cross[2]).sqrt()
    counted = (scaled[:, :2400] * scaled[:, 2400:4800]).mean(0)
    assert (counted - correlation).mean().abs() < 0.002
    assert scaled[:, 4800:].abs().max() < 6
    assert variance[4800:].max() < 1e-4  # known values stay known


def test_draws_of_rough_functions_keep_their_variance():
    u = ParameterSpace.of({name: (0, 1) for name in "xyz"}).sample(0, 40, 1)
    posterior = fitted(u, torch.sin(40 * u).sum(1), kernel="matern32")
    at = ParameterSpace.of({name: (0, 1) for name in "xyz"}).sample(0, 3000, 2)
    variance = posterior.marginal(at)[1][0]
    drawn = uncertainty.draws(posterior, at, 1000, seed=0)
    assert (drawn.var(0) / variance).min() > 0.8
    assert (drawn.var(0) / variance).mean() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("kernel", ["rbf", "matern32"])
def test_draws_of_smooth_and_of_well_known_functions(kernel):
    u = torch.linspace(0, 1, 25, dtype=F64)[:, None]
    posterior = fitted(u, torch.sin(3 * u[:, 0]), kernel=kernel)
    at = torch.linspace(0, 1, 700, dtype=F64)[:, None]
    mean, variance = (m[0] for m in posterior.marginal(at))
    scaled = (uncertainty.draws(posterior, at, 500, seed=1) - mean) / variance.sqrt()
    assert scaled.var() == pytest.approx(1.0, abs=0.15)
    assert scaled.abs().max() < 7


def test_probabilities_of_two_points_are_those_of_the_bivariate_normal(line):
    posterior, _ = line
    u = torch.tensor([[0.12], [0.4]], dtype=F64)
    mean, covariance = (m[0].numpy() for m in posterior.joint(u))
    above = uncertainty.excursions(posterior, u, -0.3, 200_000, seed=0).double()
    exact = multivariate_normal(mean=-mean, cov=covariance).cdf([0.3, 0.3])
    assert float(above.prod(1).mean()) == pytest.approx(exact, abs=0.005)
    assert exact < float(above.mean(0).min()) - 0.01  # not decided by one of the points alone


@pytest.mark.parametrize("degrees", [math.inf, 30.0])
def test_what_the_picked_points_leave_is_drawn_too(plane, monkeypatch, degrees):
    posterior, _ = plane
    u = torch.rand(300, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    monkeypatch.setattr(uncertainty, "_PIVOTS", 5)
    drawn = uncertainty.draws(posterior, u, 4000, seed=0, degrees=degrees)
    ratio = drawn.var(0) / posterior.marginal(u)[1][0]
    expected = 1.0 if degrees == math.inf else degrees / (degrees - 2)
    assert ratio.min() > 0.85 * expected
    assert ratio.mean() == pytest.approx(expected, rel=0.02)


def test_draws_of_few_degrees_are_multivariate_t(line):
    posterior, _ = line
    u = torch.tensor([[0.12], [0.4], [0.85]], dtype=F64)
    mean, covariance = (m[0].numpy() for m in posterior.joint(u))
    drawn = uncertainty.draws(posterior, u, 200_000, seed=0, degrees=4)
    scaled = (drawn.numpy() - mean) / np.sqrt(covariance.diagonal())
    for tail in (0.001, 0.02, 0.2):  # each point
        assert (scaled < student.ppf(tail, 4)).mean(0) == pytest.approx(tail, abs=4 * math.sqrt(tail / 200_000))
    far = mean - 3 * np.sqrt(covariance.diagonal())  # all together: the tails come in the same draws
    joint = float((drawn.numpy() < far).any(1).mean())
    exact = 1 - multivariate_t(loc=-mean, shape=covariance, df=4).cdf(-far, random_state=0)
    assert joint == pytest.approx(exact, abs=0.001)
    above = uncertainty.excursions(posterior, u, -0.3, 200_000, 0, degrees=4)
    assert torch.equal(above, drawn >= -0.3)


def test_degrees_of_freedom():
    assert uncertainty.degrees_of_freedom(20, 2) == 20 - 1 - 2 - 1  # mean, length scales, nugget
    assert uncertainty.degrees_of_freedom(4, 2) == 3.0


def test_draws_of_a_task_and_of_none():
    u = torch.linspace(0, 1, 6, dtype=F64)[:, None]
    z = torch.stack([u[:, 0], 5 - u[:, 0]], 1)
    posterior = fitted(u, z)
    drawn = uncertainty.draws(posterior, u, 10, 0, task=1)
    assert torch.allclose(drawn, z[:, 1].expand(10, 6), atol=1e-2)
    assert uncertainty.draws(posterior, u[:0], 10, 0).shape == (10, 0)
    assert uncertainty.excursions(posterior, u[:0], 0.0, 10, 0).shape == (10, 0)


# ------------------------------------------------------------------------------------------------- quantiles


def test_vorobev_of_a_ramp():
    p = (torch.arange(10_000, dtype=F64) + 0.5) / 10_000
    assert uncertainty.vorobev_quantile(p) == pytest.approx(0.5, abs=1e-4)
    assert uncertainty.symmetric_difference(p, p >= 0.5) == pytest.approx(0.25, abs=1e-6)
    assert uncertainty.expected_distance(p) == pytest.approx(1 / 3, abs=1e-6)
    # int min(p^2, ..): p^2 has mean 1/3, so the upper third counts: rho* = (2/3)^2.
    rho = uncertainty.vorobev_quantile(p**2)
    assert rho == pytest.approx(4 / 9, abs=1e-3)
    exact = (1 / 3 - (1 - (2 / 3) ** 3) / 3) + (2 / 3) ** 3 / 3
    assert uncertainty.symmetric_difference(p**2, p**2 >= rho) == pytest.approx(exact, abs=1e-3)


def test_vorobev_expectation_is_the_best_set_of_its_size():
    p = torch.rand(12, generator=torch.Generator().manual_seed(0), dtype=F64)
    inside = p >= uncertainty.vorobev_quantile(p)
    size = int(inside.sum())
    assert size == math.ceil(float(p.sum()))
    best = uncertainty.symmetric_difference(p, inside)
    others = []
    for chosen in itertools.combinations(range(12), size):
        other = torch.zeros(12, dtype=torch.bool)
        other[list(chosen)] = True
        others.append(uncertainty.symmetric_difference(p, other))
    assert best == pytest.approx(min(others))
    median = uncertainty.symmetric_difference(p, p >= 0.5)
    assert median <= best
    assert median == pytest.approx(float(levelset.misclassification(p).mean()))


def test_vorobev_of_certain_sets():
    assert uncertainty.vorobev_quantile(torch.zeros(5, dtype=F64)) == math.inf
    assert uncertainty.vorobev_quantile(torch.ones(5, dtype=F64)) == 1.0
    assert uncertainty.vorobev_quantile(torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=F64)) == 1.0


def test_conservative_level_against_the_multivariate_normal():
    """Six points of a process along a line: the largest level set with joint probability .9, all by quadrature."""
    x = np.linspace(0, 1, 6)
    mean = np.array([0.5, 1.1, 1.6, 2.3, 2.6, 3.5])
    covariance = np.exp(-0.5 * ((x[:, None] - x) / 0.25) ** 2)
    joint = {k: multivariate_normal(mean=-mean[k:], cov=covariance[k:, k:]).cdf(np.zeros(6 - k)) for k in range(6)}
    drawn = np.random.default_rng(0).multivariate_normal(mean, covariance, 100_000)
    z = torch.from_numpy(mean)
    inside = torch.from_numpy(drawn >= 0)
    for level in (0.7, 0.9, 0.95, 0.985, 0.9985):
        best = min(k for k in joint if joint[k] >= level)
        assert min(abs(joint[k] - level) for k in joint) > 0.0005  # the draws can tell
        c = uncertainty.conservative_level(z, inside, 1 - level)
        assert int((z > c).sum()) == 6 - best
    assert joint[2] < 0.985 < float(levelset.ndtr(z)[3])  # more than pointwise


def test_conservative_level_at_its_ends():
    z = torch.tensor([1.0, 2.0], dtype=F64)
    always = torch.ones(99, 2, dtype=torch.bool)
    assert uncertainty.conservative_level(z, always, 0.05) == -math.inf
    assert uncertainty.conservative_level(z, always, 0.005) == math.inf  # 99 draws cannot tell so small a risk
    # Four of 99 draws may be violated at 5 %, and the fifth is the level: 5/100.
    once = always.clone()
    once[:4, 1] = False
    once[4:9, 0] = False
    assert uncertainty.conservative_level(z, once, 0.05) == 1.0
    assert uncertainty.conservative_level(z, once, 0.04) == 2.0
    assert uncertainty.conservative_level(z[:0], always[:, :0], 0.05) == -math.inf


@pytest.mark.parametrize("degrees", [math.inf, 12.0])
def test_only_the_surest_points_are_left_out(degrees):
    z = 25 * torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=F64) - 9
    chance = torch.from_numpy(student.cdf(-z.abs().numpy(), degrees))
    open_, spent = uncertainty._open(z, 1e-3, degrees)
    left = torch.ones(500, dtype=torch.bool)
    left[open_] = False
    assert 0 < int(left.sum()) < 400
    assert spent == pytest.approx(float(chance[left].sum()))
    assert spent <= 1e-3 < spent + float(chance[open_].min())
    assert float(chance[left].max()) <= float(chance[open_].min())
    assert torch.equal(open_, open_.sort().values)
    assert uncertainty._open(z, 0.0, degrees)[1] == 0.0


# ------------------------------------------------------------------------------------------------- pieces


@pytest.mark.parametrize(("d", "k"), [(1, 40), (2, 12), (3, 6)])
def test_components_are_those_of_image_analysis(d, k):
    rng = np.random.default_rng(d)
    links = uncertainty._adjacent(np.arange(k**d).reshape((k,) * d))
    assert len(np.unique(links, axis=0)) == len(links)
    for share in (0.1, 0.3, 0.6):
        inside = rng.uniform(size=k**d) < share
        label, count = scipy.ndimage.label(inside.reshape((k,) * d), np.ones((3,) * d))
        assert uncertainty.components(links, np.ones(k**d), inside) == count
        sizes = np.bincount(label.ravel())[1:]
        assert uncertainty.components(links, np.ones(k**d), inside, 3.0) == (sizes >= 3).sum()
    assert uncertainty.components(links, np.ones(k**d), np.zeros(k**d, dtype=bool)) == 0


@pytest.mark.parametrize("names", ["xy", "wxyz"])
def test_merging_what_is_sure_changes_no_count(names):
    cells = next(uncertainty.resolutions(problem(*names).space))
    n = len(cells.u)
    wave = torch.sin(9 * cells.u).prod(1).numpy()
    open_ = np.flatnonzero(np.abs(wave) < 0.05)
    links, sizes = uncertainty._merged(cells, wave > 0, open_)
    assert sizes.sum() == pytest.approx(((wave > 0).sum() + (wave[open_] <= 0).sum()) / n)
    assert len(sizes) < n / 2
    rng = np.random.default_rng(0)
    for share in (0.0, 0.3, 0.7, 1.0):
        inside = wave > 0
        inside[open_] = rng.uniform(size=len(open_)) < share
        row = np.concatenate([inside[open_], np.ones(len(sizes) - len(open_), dtype=bool)])
        expected = uncertainty.components(cells.links, np.full(n, 1 / n), inside, 1e-3)
        assert uncertainty.components(links, sizes, row, 1e-3) == expected


def test_cells_fill_the_allowed_region():
    half = problem("x", "y", constraints="x + y < 1").space
    sizes = [len(cells.u) for cells in uncertainty.resolutions(half)]
    assert sizes == sorted(sizes, reverse=True)
    cells = next(uncertainty.resolutions(half))
    assert half.allowed_unit(cells.u).all()
    assert cells.links.max() < len(cells.u)
    step = (cells.u[cells.links[:, 0]] - cells.u[cells.links[:, 1]]).abs()
    assert step.max() == pytest.approx(1 / 201)
    narrow = problem("x", "y", constraints="abs(x - y) < 0.02").space
    cells = next(uncertainty.resolutions(narrow))
    assert len(cells.u) == 16384
    assert narrow.allowed_unit(cells.u).all()
    assert uncertainty.components(cells.links, np.ones(16384), np.ones(16384, dtype=bool)) == 1
    for space in (half, narrow, problem(*"vwxyz").space, problem("x").space, problem(*"xyz").space):
        assert [len(c.u) for c in uncertainty.resolutions(space)][-1] <= uncertainty._DRAWN


# ------------------------------------------------------------------------------------------------- holes, volumes


def test_the_largest_hole_is_at_a_vertex_of_the_voronoi_diagram():
    space = problem("x", "y").space
    center, radius = uncertainty.largest_hole(space, torch.tensor([[0.5, 0.5]], dtype=F64))
    assert radius == pytest.approx(math.sqrt(0.5))
    assert sorted(center.tolist())[0] in (0.0, 1.0)
    explored = space.sample(0, 40, 3)
    center, radius = uncertainty.largest_hole(space, explored)
    # Mirrored in the edges, the points have Voronoi vertices at all candidates: inside, on edges and in corners.
    mirrored = [explored]
    for axis, edge in itertools.product((0, 1), (0.0, 1.0)):
        image = torch.cat(mirrored[:1]).clone()
        image[:, axis] = 2 * edge - image[:, axis]
        mirrored.append(image)
    vertices = torch.from_numpy(Voronoi(torch.cat(mirrored).numpy()).vertices)
    corners = torch.tensor(list(itertools.product((0.0, 1.0), repeat=2)), dtype=F64)
    vertices = torch.cat([vertices[((vertices >= -1e-9) & (vertices <= 1 + 1e-9)).all(1)], corners])
    exact = float(torch.cdist(vertices, explored).amin(1).max())
    assert radius == pytest.approx(exact, abs=1e-3)
    assert radius <= exact + 1e-9
    assert float((explored - center).norm(dim=1).min()) == pytest.approx(radius)


def test_the_hole_is_allowed():
    space = problem("x", "y", constraints="x + y < 1").space
    center, radius = uncertainty.largest_hole(space, torch.tensor([[0.0, 0.0]], dtype=F64))
    assert space.allowed_unit(center[None]).all()
    assert radius == pytest.approx(1.0, abs=2e-3)
    assert uncertainty.largest_hole(space, torch.zeros(0, 2, dtype=F64))[1] == math.inf


def test_volumes_have_units():
    space = ParameterSpace(
        (
            Parameter("m", 100, 500, unit="GeV"),
            Parameter("n", 0, 100, unit="GeV"),
            Parameter("g", 1e-3, 1, scale="log"),
            Parameter("k", 0, 2),
        ),
        ("m < 300",),
    )
    volume, unit = uncertainty.physical_volume(space)
    assert volume == pytest.approx(0.5 * 400 * 100 * 3 * 2, rel=0.05)
    assert unit == "GeV^2 decade"


def test_the_volume_and_its_error_are_those_of_bivariate_quadrature(line):
    """E = int Phi(z); Var = int int Phi2(z, z') - Phi(z) Phi(z')."""
    posterior, u = line
    found = uncertainty.summary(problem("x"), posterior, u)
    at = ((torch.arange(120, dtype=F64) + 0.5) / 120)[:, None]
    mean, covariance = (m[0].numpy() for m in posterior.joint(at))
    sd = np.sqrt(covariance.diagonal())
    z, total = mean / sd, 0.0
    p = levelset.ndtr(torch.from_numpy(z)).numpy()
    for i in range(120):
        for j in range(i):
            correlation = min(covariance[i, j] / (sd[i] * sd[j]), 1 - 1e-9)
            both = multivariate_normal(cov=[[1, correlation], [correlation, 1]]).cdf([z[i], z[j]])
            total += 2 * (both - p[i] * p[j])
    total += (p * (1 - p)).sum()
    assert found.volume == pytest.approx(p.mean(), abs=1e-3)
    assert found.volume_sd == pytest.approx(math.sqrt(total) / 120, rel=0.06)
    assert found.misclassified == pytest.approx(np.minimum(p, 1 - p).mean(), abs=1e-3)
    assert found.distance == pytest.approx((2 * p * (1 - p)).mean(), abs=1e-3)
    for level, volume in found.bands.items():
        assert volume == pytest.approx((np.abs(2 * p - 1) < level).mean(), abs=0.01)


def test_an_edge_that_is_known_has_the_error_of_its_cell():
    """Where nothing else is open the edge is anywhere in one cell: variance 1/12 of its size squared."""
    u = torch.linspace(0, 1, 12, dtype=F64)[:, None]
    found = uncertainty.summary(problem("x", threshold=0.1), fitted(u, torch.sin(3 * u[:, 0] - 1), kernel="rbf"), u)
    assert found.components == 1
    assert found.volume_sd * found.points == pytest.approx(math.sqrt(1 / 12), rel=0.1)


# ------------------------------------------------------------------------------------------------- the summary


def held(posterior, cells, found, side):
    """How often the conservative set of a side holds in fresh draws at other points."""
    sign = 1 if side == "above" else -1
    mean, variance = (m[0] for m in posterior.marginal(cells))
    kept = sign * mean / variance.sqrt() >= getattr(found, side).sigmas
    above = uncertainty.excursions(posterior, cells[kept], 0.0, 4000, seed=77)
    return float((above if sign > 0 else ~above).all(1).double().mean()), float(kept.double().mean())


def test_conservative_sets_hold_as_often_as_promised(plane):
    posterior, u = plane
    shifted = Problem(problem("x", "y").space, Task("f", 0.6, "identity"))
    found = uncertainty.summary(shifted, posterior, u)
    grid = (torch.arange(73, dtype=F64) + 0.31) / 73
    cells = torch.cartesian_prod(grid, grid)
    zero = fitted(u, torch.sin(5 * u[:, 0]) + u[:, 1] - 0.6)  # the same belief, the threshold at zero
    for side in ("above", "below"):
        share, volume = held(zero, cells, found, side)
        assert 0.935 < share < 0.975, side
        assert volume == pytest.approx(getattr(found, side).volume, abs=0.01)
    assert found.drawn < found.points


def test_laws_of_the_summary(line):
    posterior, u = line
    asked = problem("x")
    found = {level: uncertainty.summary(asked, posterior, u, level=level) for level in (0.5, 0.8, 0.95, 0.99)}
    for level, one in found.items():
        assert min(one.above.probability, one.below.probability) >= level
        assert one.above.volume + one.below.volume <= 1
        assert one.above.volume <= one.volume
        assert one.misclassified <= one.vorobev_deviation <= 2 * one.misclassified + 1e-12
        assert one.distance <= 2 * one.misclassified
        assert one.bands[0.68] < one.bands[0.95]
        assert one.volume == found[0.5].volume
    for a, b in itertools.pairwise(found.values()):
        for side in ("above", "below"):
            assert getattr(a, side).volume > getattr(b, side).volume
            assert getattr(a, side).sigmas < getattr(b, side).sigmas
    assert uncertainty.summary(asked, posterior, u) == found[0.95]
    other = uncertainty.summary(asked, posterior, u, seed=5)
    assert other != found[0.95]
    assert other.above.volume == pytest.approx(found[0.95].above.volume, abs=0.01)


def test_fewer_values_make_smaller_conservative_sets(line):
    posterior, u = line
    asked = problem("x")
    found = [uncertainty.summary(asked, posterior, u, degrees=degrees) for degrees in (math.inf, 8.0, 3.0)]
    for a, b in itertools.pairwise(found):
        assert a.above.volume > b.above.volume
        assert a.volume_sd < b.volume_sd
        assert (a.volume, a.bands) == (b.volume, b.bands)
    # No set is surer than its least certain point.
    for degrees in (math.inf, 3.0):
        one = uncertainty.summary(asked, posterior, u, degrees=degrees, level=0.6)
        assert min(one.above.sigmas, one.below.sigmas) >= student.ppf(0.6, degrees)


def test_a_change_of_sign_mirrors_the_sets(line):
    posterior, u = line
    asked = problem("x", threshold=(-0.3, 0.3))
    mirrored = fitted(u, torch.tensor([1.0, -0.25, 0.1, -0.8, -1.2], dtype=F64))
    one, two = uncertainty.summary(asked, posterior, u, threshold=0.3), uncertainty.summary(asked, mirrored, u)
    assert two.threshold == -0.3
    assert one.volume == pytest.approx(1 - two.volume, abs=1e-6)
    assert one.volume_sd == pytest.approx(two.volume_sd, rel=0.05)
    assert one.misclassified == pytest.approx(two.misclassified, abs=1e-6)
    assert one.bands[0.95] == pytest.approx(two.bands[0.95], abs=1e-3)
    for a, b in ((one.above, two.below), (one.below, two.above)):
        assert a.volume == pytest.approx(b.volume, abs=0.01)
        assert a.sigmas == pytest.approx(b.sigmas, abs=0.1)


def test_a_wider_belief_knows_less(line):
    posterior, u = line
    asked = problem("x")
    sharp = uncertainty.summary(asked, posterior, u)
    wide = uncertainty.summary(asked, Tempered(posterior, torch.tensor([2.0], dtype=F64)), u)
    both = uncertainty.summary(asked, Mixture((posterior, posterior), torch.tensor([0.5, 0.5], dtype=F64)), u)
    assert wide.bands[0.95] > 1.2 * sharp.bands[0.95]
    assert wide.above.volume < sharp.above.volume
    assert wide.volume_sd > 1.3 * sharp.volume_sd
    assert both.above.volume == pytest.approx(sharp.above.volume, abs=0.01)


def test_pieces_are_counted_with_their_doubts(line):
    posterior, u = line
    found = uncertainty.summary(problem("x"), posterior, u)
    at = torch.linspace(0, 1, 1001, dtype=F64)[:, None]
    above = uncertainty.excursions(posterior, at, 0.0, 4000, seed=9).int()
    starts = (above[:, 1:] > above[:, :-1]).sum(1) + above[:, 0]
    assert found.components == 2
    assert found.components_differ == pytest.approx(float((starts != 2).double().mean()), abs=0.08)


def test_a_set_that_is_sure_has_no_doubts():
    u = torch.linspace(0, 1, 9, dtype=F64)[:, None]
    posterior = fitted(u, 5 + torch.sin(u[:, 0]))
    found = uncertainty.summary(problem("x"), posterior, u)
    assert (found.volume, found.components, found.components_differ, found.drawn) == (1.0, 1, 0.0, 0)
    assert found.above.volume == 1.0
    assert found.below.volume == 0.0
    assert found.below.sigmas == math.inf
    assert found.volume_sd == 0.0
    assert "nowhere" in str(found)
    assert found.hole_radius == pytest.approx(1 / 16, abs=1e-3)


def test_more_dimensions_use_space_filling_points():
    space = problem(*"vwxyz").space
    u = space.sample(0, 60, 1)
    posterior = fitted(u, (u - 0.5).square().sum(1))
    asked = Problem(space, Task("f", 0.35, "identity"))
    found = uncertainty.summary(asked, posterior, u)
    truth = space.sample(0, 2**15, 12)
    assert found.volume == pytest.approx(float(((truth - 0.5).square().sum(1) >= 0.35).double().mean()), abs=0.05)
    assert found.points in uncertainty._SOBOL
    assert found.hole_radius > 0.5
    kernel = posterior.hyperparameters[0]
    assert found.hole_lengths == pytest.approx(
        float(torch.cdist(space.to_unit(space.tensor([found.hole])) / torch.tensor(kernel["lengthscales"]),
                          u / torch.tensor(kernel["lengthscales"])).min())
    )  # fmt: skip


@pytest.mark.parametrize("level", [0.0, 1.0, 1.5, "much", True])
def test_levels_must_make_sense(line, level):
    posterior, u = line
    with pytest.raises(InvalidProblem, match="level: must lie between 0 and 1, got"):
        uncertainty.summary(problem("x"), posterior, u, level=level)


def test_what_the_documentation_shows_works():
    text = (Path(__file__).parents[1] / "docs" / "uncertainty.md").read_text()
    names = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code, names)
    found, grid = names["found"], names["result"].problem.space.grid(201).numpy()
    truth = np.mean([names["limit"]({"x": x, "y": y}) >= 0.6 for x, y in grid])
    assert abs(truth - found.volume) < 3 * found.volume_sd
    assert names["inside"].tolist() == [False, False]
    assert names["surely_below"].tolist() == [False, True]
    assert len(names["upper"].lines) >= 2
    assert str(found).split(" +- ")[0] in text
