import math
import time

import numpy as np
import pytest
import torch
from scipy.integrate import dblquad
from scipy.special import ndtr

from excursion import viability as module
from excursion.acquisition import SUR, Straddle
from excursion.acquisition.search import DEAD, _tempered, select
from excursion.belief import believe
from excursion.data import Outcome, Trial
from excursion.problem import Problem, Task
from excursion.proposal import target
from excursion.space import Parameter, ParameterSpace
from excursion.surrogate import GaussianProcess
from excursion.surrogate.censored import censored_sites
from excursion.viability import Viability, _explained, _kernel, by_point, fit, to_retry, viability

SPACE = ParameterSpace((Parameter("a", 0, 2), Parameter("b", 0, 4)))


def trial(number, a, b, state="complete", **more):
    outcome = {"complete": Outcome.of(1.0), "failed": Outcome.failed("x")}.get(state)
    return Trial(number, {"a": a, "b": b}, 0, 0, state=state, outcome=outcome, **more)


def sobol(n, d, seed=0):
    return torch.quasirandom.SobolEngine(d, scramble=True, seed=seed).draw(n).double().numpy()


# --- expectation propagation


@pytest.mark.parametrize(("y", "distance"), [((1, 1), 0.3), ((1, -1), 0.2), ((-1, -1), 0.05), ((1, -1), 1.5)])
@pytest.mark.parametrize("amplitude", [1.0, 3.0])
def test_two_labels_against_quadrature(y, distance, amplitude):
    """Evidence and prediction; expectation propagation is good to some per cent with strong correlations."""
    u = np.array([[0.0], [distance]])
    y = np.array(y, dtype=float)
    metric = np.array([[2.0]])
    k = _kernel(u, u, metric, amplitude)
    assert k[0, 0] == pytest.approx(amplitude**2 + module.CONSTANT)
    precision, norm = np.linalg.inv(k), 1 / (2 * math.pi * math.sqrt(np.linalg.det(k)))
    new = np.array([[0.4 * distance]])
    c = _kernel(new, u, metric, amplitude)[0] @ precision
    left = k[0, 0] - c @ _kernel(u, new, metric, amplitude)[:, 0]

    def weight(b, a):
        f = np.array([a, b])
        return norm * math.exp(-0.5 * f @ precision @ f) * ndtr(y[0] * a) * ndtr(y[1] * b)

    edge = 8 * math.sqrt(k[0, 0])
    box = (-edge, edge, -edge, edge)
    evidence = dblquad(weight, *box, epsabs=1e-7)[0]

    def success(b, a):
        return weight(b, a) * ndtr((c[0] * a + c[1] * b) / math.sqrt(1 + left))

    chance = dblquad(success, *box, epsabs=1e-7)[0] / evidence
    found = _explained(u, y, metric, amplitude, 0.0)
    assert found.evidence == pytest.approx(math.log(evidence), abs=0.04)
    assert found.process(new)[0] == pytest.approx(chance, abs=0.015)


def test_a_single_label_is_exact():
    """Of one label the moments are known in closed form: P(y) = 1/2, and P(success again) = 1/4 + asin(rho)/(2 pi)."""
    found = _explained(np.array([[0.5]]), np.array([1.0]), np.eye(1), 2.0, 0.0)
    variance = 4.0 + module.CONSTANT
    assert found.evidence == pytest.approx(math.log(0.5), abs=1e-4)
    both = 0.25 + math.asin(variance / (1 + variance)) / (2 * math.pi)
    assert found.process(np.array([[0.5]]))[0] == pytest.approx(both / 0.5, abs=0.02)


def test_sites_are_those_of_the_sequential_algorithm():
    """`censored_sites` has the same likelihood (noise 1, beyond 0) and visits one site after the other."""
    u = sobol(40, 2, 3)
    y = np.where(u[:, 0] + u[:, 1] < 0.8, -1.0, 1.0)
    metric = 2.5 * np.eye(2)
    k = torch.from_numpy(_kernel(u, u, metric, 3.0))
    zeros, ones = torch.zeros(40).double(), torch.ones(40).double()
    value, noise = censored_sites(k, zeros, zeros, ones, torch.from_numpy(y))
    new = torch.from_numpy(_kernel(sobol(50, 2, 9), u, metric, 3.0))
    posterior = torch.linalg.solve(k + torch.diag(noise), torch.cat([value[:, None], new.T], 1))
    mean, variance = new @ posterior[:, 0], 9 + module.CONSTANT - (new.T * posterior[:, 1:]).sum(0)
    ours = _explained(u, y, metric, 3.0, 0.0).process(sobol(50, 2, 9))
    assert ours == pytest.approx(torch.special.ndtr(mean / (1 + variance).sqrt()).numpy(), abs=1e-3)


def test_many_labels_against_sampling():
    """Importance sampling from the prior of three labels and a fourth point."""
    u = np.array([[0.1, 0.2], [0.4, 0.3], [0.2, 0.5], [0.3, 0.3]])
    y = np.array([1.0, -1.0, 1.0])
    metric = np.array([[2.0, 0.0], [1.0, 1.5]])
    k = _kernel(u, u, metric, 2.0)
    f = np.random.default_rng(0).standard_normal((400_000, 4)) @ np.linalg.cholesky(k).T
    weight = ndtr(y * f[:, :3]).prod(1)
    found = _explained(u[:3], y, metric, 2.0, 0.0)
    assert found.evidence == pytest.approx(math.log(weight.mean()), abs=0.02)
    assert found.process(u[3:])[0] == pytest.approx((weight * ndtr(f[:, 3])).sum() / weight.sum(), abs=0.01)


# --- calibration


def scores(found, d, truth, rng):
    u = rng.random((4000, d))
    p = found(torch.from_numpy(u)).numpy()
    y = rng.random(4000) < truth(u)
    return ((p - y) ** 2).mean(), -np.log(np.where(y, p, 1 - p)).mean(), p


@pytest.mark.parametrize("d", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_a_corner_is_found(d, seed):
    """Crashes beyond a difference of two parameters, a quarter of the cube: Brier score .19 without a model."""

    def truth(u):
        return (u[:, 0] - u[:, 1] > -0.3).astype(float)

    u = sobol(60, d, seed)
    brier, log, _ = scores(fit(u, np.where(truth(u), 1.0, -1.0)), d, truth, np.random.default_rng(seed))
    assert brier < 0.035
    assert log < 0.14


@pytest.mark.parametrize("n", [30, 100, 400])
@pytest.mark.parametrize("seed", range(2))
def test_failures_by_chance_are_the_same_everywhere(n, seed):
    """A fifth fails: P is about .8 and not wild; the least possible scores are .160 and .500."""

    def truth(u):
        return np.full(len(u), 0.8)

    rng = np.random.default_rng(seed)
    u = sobol(n, 2, seed)
    y = np.where(rng.random(n) < 0.8, 1.0, -1.0)
    brier, log, p = scores(fit(u, y), 2, truth, rng)
    assert p.std() < 0.08
    assert abs(p.mean() - (y > 0).mean()) < 0.1  # some hundred labels of those are looked at
    assert brier < 0.18
    assert log < 0.55


def test_a_corner_with_failures_by_chance_elsewhere():
    def truth(u):
        return np.where((u < 0.5).all(1), 0.02, 0.9)

    rng = np.random.default_rng(5)
    u = sobol(150, 2, 5)
    brier, log, p = scores(fit(u, np.where(rng.random(150) < truth(u), 1.0, -1.0)), 2, truth, rng)
    assert brier < 0.105  # .075 is the least possible
    assert log < 0.36
    assert np.isfinite(p).all()


def test_many_labels_are_fitted_fast():
    u = sobol(1000, 2, 1)
    y = np.where(u[:, 0] - u[:, 1] < -0.3, -1.0, 1.0)
    start = time.process_time()
    found = fit(u, y)
    assert time.process_time() - start < 2.0
    assert len(found.parts[0].u) == module.MOST
    p = found(torch.from_numpy(sobol(2000, 2, 7))).numpy()
    v = sobol(2000, 2, 7)
    assert ((p > 0.5) == (v[:, 0] - v[:, 1] > -0.3)).mean() > 0.975


# --- histories


def test_without_failures_success_is_sure_and_costs_nothing():
    found = viability(SPACE, [trial(i, 0.1 * i, 0.3) for i in range(9)])
    assert found == Viability()
    assert found.sure
    assert found(torch.rand(5, 2).double()).tolist() == [1.0] * 5


def test_all_points_failed():
    """Then it is not known where to go: the same probability everywhere, and a small one."""
    p = viability(SPACE, [trial(i, 0.1 * i, 0.3 * i, "failed") for i in range(9)])(torch.rand(5, 2).double())
    assert p.max() < 0.2
    assert p.max() - p.min() < 1e-9


def test_points_are_told_apart_and_their_trials_put_together():
    history = [
        trial(0, 1.0, 2.0, "failed"),
        trial(1, 0.5, 2.0),
        trial(2, 1.0, 2.0),
        trial(3, 0.1, 0.1, "failed"),
        trial(4, 0.1, 0.1, "queued"),
        trial(5, 0.2, 0.2, "queued"),
        trial(6, 0.3, 0.2, "invalid"),
        trial(7, 1.0, 2.0, "failed", fidelity="fast"),
    ]
    points = by_point(reversed(history))
    assert [[t.number for t in p.trials] for p in points] == [[0, 2], [1], [3, 4], [5], [6], [7]]
    assert [p.label for p in points] == [1, 1, -1, 0, -1, -1]
    assert [p.pending for p in points] == [False, False, True, True, False, False]


def test_a_failure_that_a_retry_mended_is_a_success():
    history = [trial(i, 0.2 * i, 0.3 * i, "failed" if i == 4 else "complete") for i in range(9)]
    assert not viability(SPACE, history).sure
    assert viability(SPACE, [*history, trial(9, 0.8, 1.2)]).sure


def test_the_order_of_names_does_not_matter():
    swapped = trial(1, 0.5, 2.0)
    swapped = Trial(1, {"b": 2.0, "a": 0.5}, 0, 0, state="failed", outcome=Outcome.failed("x"))
    assert len(by_point([trial(0, 0.5, 2.0, "failed"), swapped])) == 1


def test_retries_wait_for_trials_asked_later():
    history = [trial(0, 1.0, 1.0, "failed"), *(trial(i, 0.1 * i, 2.0, "queued") for i in range(1, 5))]

    def again(*states, retries=2, wait=True, p=1.0):
        told = [trial(i + 1, 0.1 * (i + 1), 2.0, s) for i, s in enumerate(states)]
        both = [history[0], *told, *history[len(told) + 1 :]]
        found = to_retry(both, retries, lambda some: torch.full((len(some),), p).double(), wait)
        return [t.number for t in found]

    assert again() == []
    assert again(wait=False) == [0]
    assert again("queued", "complete") == [0]
    assert again("queued", "failed", p=module.HOPELESS) == [0]
    assert again("queued", "complete", p=0.9 * module.HOPELESS) == []
    assert again("complete", retries=0) == []


# --- the search


def belief():
    problem = Problem(SPACE, Task("f", 0.5, "identity"))
    x = SPACE.from_unit(torch.from_numpy(sobol(9, 2, 1)))
    trials = [
        Trial(i, SPACE.point(p), 0, 0, state="complete", outcome=Outcome.of(float(torch.sin(5 * p[0]) + 0.2 * p[1])))
        for i, p in enumerate(x)
    ]
    return problem, believe(problem, GaussianProcess(average=False), trials)


@pytest.mark.parametrize("criterion", [SUR(), Straddle()], ids=repr)
@pytest.mark.parametrize("batch", [1, 6])
def test_no_point_is_chosen_where_none_succeeds(criterion, batch):
    problem, believed = belief()
    sought = target(problem, believed.posterior, believed.data.u)

    def chosen(viable):
        taken = believed.data.u
        return select(criterion, believed.posterior, SPACE, sought, batch, seed=3, taken=taken, viable=viable)

    free, _ = chosen(None)
    same, _ = chosen(lambda u: torch.ones(len(u)).double())
    assert torch.equal(free, same)
    dead = free[0, 0] < 0.5

    small = 0.9 * DEAD if criterion.kind == "bound" else 1e-7

    def half(u):
        return torch.where((u[:, 0] < 0.5) == dead, small, 1.0).double()

    kept, scores = chosen(half)
    assert ((kept[:, 0] < 0.5) != dead).all()
    assert torch.isfinite(scores).all()
    assert (scores > -1e200).all()


def test_gains_are_multiplied_by_the_probability():
    score, p = torch.tensor([2.0, -1.0, 3.0]).double(), torch.tensor([0.5, 0.9, 0.01]).double()
    assert _tempered(score, p, "gain").tolist() == pytest.approx([1.0, -0.9, 0.03])
    assert _tempered(score, p, "log").tolist() == pytest.approx(
        [2 + math.log(0.5), -1 + math.log(0.9), 3 - math.log(100)]
    )
    assert _tempered(score, p, "bound").tolist() == [2.0, -1.0, -1e300]


def test_a_long_history_of_trials_is_read_without_complaint():
    space = ParameterSpace(tuple(Parameter(name, 0, 1) for name in "abcd"))
    trials = []
    for i, u in enumerate(space.sample(0, module.MOST + 50, 1)):
        dead = bool(u[0] + u[1] > 1.5)
        outcome = Outcome.failed("crash", permanent=True) if dead else Outcome.of(1.0)
        trials.append(Trial(i, space.point(u), 0, 0, state=outcome.state, told=i, outcome=outcome))
    p = viability(space, trials)(torch.tensor([[0.9, 0.9, 0.5, 0.5], [0.3, 0.3, 0.5, 0.5]], dtype=torch.float64))
    assert p[0] < 0.05
    assert p[1] > 0.95
