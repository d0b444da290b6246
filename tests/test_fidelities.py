"""Several fidelities and missing values: one belief from all of it, and campaigns that choose where to look and how."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from excursion.acquisition import SUR, Offer, Offers, Search, Straddle, Target, select
from excursion.belief import believe, observations, settle
from excursion.campaign import Campaign
from excursion.data import Outcome
from excursion.errors import FitError, InvalidStrategy, ShapeError
from excursion.fidelities import Help
from excursion.precision import misclassified
from excursion.problem import Fidelity, Problem, Task
from excursion.proposal import Strategy, propose
from excursion.report.tables import standing, standing_lines, strict_json
from excursion.result import Result, find_level_set
from excursion.space import Parameter, ParameterSpace
from excursion.surrogate import GaussianProcess, KernelSearch, MultiTask, Observations

LEVEL = (torch.tensor([0.5], dtype=torch.float64),)


def points(n: int, d: int = 2, seed: int = 0) -> Tensor:
    return torch.quasirandom.SobolEngine(d, scramble=True, seed=seed).draw(n).double()


def cheap(u: Tensor) -> Tensor:
    return torch.sin(5 * u[:, 0]) + 2 * u[:, 1] * torch.cos(3 * u[:, 0])


def dear(u: Tensor) -> Tensor:
    return 1.2 * cheap(u) + 0.3 * u[:, 0] - 0.2 * u[:, 1] ** 2


def values(u: Tensor, z: Tensor, **more: object) -> Observations:
    z = z if z.ndim == 2 else z[:, None]
    return Observations(u, z, torch.zeros_like(z), torch.zeros_like(z), LEVEL * z.shape[1], **more)


def with_level(u: Tensor, level: int) -> Tensor:
    return torch.cat([u, torch.full((len(u), 1), float(level), dtype=u.dtype)], 1)


def rms(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).square().mean().sqrt())


ONE = GaussianProcess(kernel="matern52", metric="ard", average=False)


@pytest.mark.parametrize("nested", [True, False])
def test_the_belief_is_that_of_all_data_at_once(nested):
    """Against the dense algebra of the joint process of both fidelities (Kennedy and O'Hagan 2000, eqs. 2 and 3)."""
    a, b, at = points(14), points(14)[:6] if nested else points(6, seed=5), points(9, seed=8)
    belief = ONE.fit(values(b, dear(b), cheaper=values(a, cheap(a))))
    below = belief.source.belief
    assert belief.link.weight != 0
    square, under = belief.scale**2, below.scale**2

    def follow(u: Tensor) -> Tensor:
        """Basis of the part of the mean and of the covariance that the weight of the source leaves open."""
        return below.marginal(u)[0][0] - belief.shift

    # Everything before any data: the mean of the cheap process, and both covariances.
    def first(u: Tensor) -> Tensor:
        return (below.shift + below.scale * below.beta[0]).expand(len(u))

    w, p, v = belief.link.weight, belief.link.prior, belief.link.variance

    def among(x: Tensor, y: Tensor, own_x: bool, own_y: bool) -> Tensor:
        out = (w if own_x else 1.0) * (w if own_y else 1.0) * under * below.kernel(x, y)
        if own_x and own_y:
            out = out + square * belief.kernel(x, y) + v * torch.outer(follow(x), follow(y))
        return out

    gram = torch.cat(
        [
            torch.cat([among(a, a, False, False), among(a, b, False, True)], 1),
            torch.cat([among(b, a, True, False), among(b, b, True, True)], 1),
        ]
    )
    gram += torch.diag(torch.cat([(under * below.nugget).expand(14), (square * belief.nugget).expand(6)]))
    # The mean of the dear process follows the posterior mean of the cheap one with the prior weight; what the cheap
    # data tell beyond it comes by the covariance with the weight that was found.
    constant = belief.shift + belief.scale * belief.beta[0]
    known_cheap = below.marginal(b)[0][0]
    residual_a = cheap(a) - first(a)
    solved_a = torch.linalg.solve(gram[:14, :14], residual_a)
    expect_b = constant + p * follow(b)
    shift_b = gram[14:, :14] @ solved_a - w * (known_cheap - first(b))
    assert shift_b.abs().max() < 1e-8  # the source's belief is that of its own data
    residual = torch.cat([residual_a, dear(b) - expect_b + w * (known_cheap - first(b))])
    for own in (True, False):
        cross = torch.cat([among(at, a, own, False), among(at, b, own, True)], 1)
        gain = torch.linalg.solve(gram, cross.T).T
        u = at if own else with_level(at, 1)
        prior = constant + p * follow(at) - w * (below.marginal(at)[0][0] - first(at)) if own else first(at)
        mean, variance = belief.marginal(u)
        assert torch.allclose(mean[0], prior + gain @ residual, atol=1e-6)
        dense = among(at, at, own, own) - gain @ cross.T
        assert torch.allclose(belief.joint(u)[1][0], dense, atol=1e-7)
        assert torch.allclose(variance[0], dense.diagonal(), atol=1e-7)
    both = torch.cat([with_level(at[:4], 0), with_level(at[4:], 1)])
    assert torch.allclose(belief.joint(both)[1][0, :4, :4], belief.joint(at[:4])[1][0], atol=1e-10)


def test_few_dear_values_are_enough_beside_many_cheap_ones():
    a, b, at = points(60), points(6, seed=7), points(500, seed=9)
    alone = GaussianProcess().fit(values(b, dear(b))).marginal(at)[0][0]
    both = GaussianProcess().fit(values(b, dear(b), cheaper=values(a, cheap(a))))
    assert rms(both.marginal(at)[0][0], dear(at)) < 0.2 * rms(alone, dear(at))


def test_a_cheaper_fidelity_that_tells_nothing_is_dropped():
    a, b, at = points(40), points(14, seed=7), points(300, seed=9)
    noise = torch.randn(40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    alone = GaussianProcess().fit(values(b, dear(b)))
    misled = GaussianProcess().fit(values(b, dear(b), cheaper=values(a, noise)))
    assert rms(misled.marginal(at)[0][0], dear(at)) < 1.2 * rms(alone.marginal(at)[0][0], dear(at))
    # A look at it is then of no use.
    here, there = misled.view(at[:5]), misled.view(with_level(at[:5], 1))
    spread = torch.outer(here.variance[0].sqrt(), there.variance[0].sqrt())
    assert (here.covariance(there)[0] / spread).abs().max() < 0.2


def test_a_cheaper_fidelity_may_know_some_parameters_only():
    def rough(u: Tensor) -> Tensor:
        return torch.sin(9 * u[:, 1])

    def right(u: Tensor) -> Tensor:
        return rough(u) + 0.5 * u[:, 0]

    a, b, at = points(30), points(8, seed=7), points(300, seed=9)
    below = values(a, rough(a))
    some = GaussianProcess().fit(values(b, right(b), cheaper=replace(below, columns=(1,))))
    alone = GaussianProcess().fit(values(b, right(b)))
    assert rms(some.marginal(at)[0][0], right(at)) < 0.3 * rms(alone.marginal(at)[0][0], right(at))
    # The other parameter of the cheap values may be anything.
    elsewhere = replace(below, u=torch.cat([0 * a[:, :1] + 0.5, a[:, 1:]], 1), columns=(1,))
    same = GaussianProcess().fit(values(b, right(b), cheaper=elsewhere)).marginal(at)[0]
    assert torch.allclose(same, some.marginal(at)[0], atol=1e-9)


def test_three_fidelities_are_followed_one_by_the_other():
    a, b, c, at = points(50), points(15, seed=4), points(5, seed=7), points(300, seed=9)
    middle = values(b, cheap(b) + 0.2 * b[:, 0], cheaper=values(a, cheap(a)))
    belief = GaussianProcess(average=False).fit(values(c, dear(c), cheaper=middle))
    assert rms(belief.marginal(at)[0][0], dear(at)) < 0.1
    for level, truth in ((1, cheap(at) + 0.2 * at[:, 0]), (2, cheap(at))):
        assert rms(belief.marginal(with_level(at, level))[0][0], truth) < 0.05
    with pytest.raises(ShapeError, match="cheaper fidelity for levels above 0"):
        belief.view(with_level(at, 3))


@pytest.mark.parametrize("recipe", [GaussianProcess(), MultiTask()], ids=["GaussianProcess", "MultiTask"])
def test_conditioning_on_a_cheaper_level_is_gaussian_algebra(recipe):
    a, b, new, at = points(8), points(4, seed=7), points(3, seed=3), points(10, seed=9)
    belief = recipe.fit(values(b, dear(b), cheaper=values(a, cheap(a))))
    looks = torch.cat([with_level(new[:2], 1), with_level(new[2:], 0)])
    z, noise = torch.tensor([[0.1], [0.4], [-0.3]]).double(), torch.full((3, 1), 0.01, dtype=torch.float64)
    after = belief.condition(looks, z, noise)
    gram = belief.joint(looks)[1][0] + 0.01 * torch.eye(3, dtype=torch.float64)
    gain = torch.linalg.solve(gram, belief.cross(looks, at)[0]).T
    mean, variance = belief.marginal(at)
    assert torch.allclose(
        after.marginal(at)[0][0], mean[0] + gain @ (z[:, 0] - belief.marginal(looks)[0][0]), atol=1e-8
    )
    assert torch.allclose(
        after.marginal(at)[1][0], variance[0] - (gain * belief.cross(looks, at)[0].T).sum(1), atol=1e-8
    )


def test_a_task_with_missing_values_follows_one_that_is_known_there():
    u, at = points(30), points(300, seed=9)
    z = torch.stack([dear(u), 0.8 * dear(u) + 0.2 * u[:, 1]], 1)
    known = torch.ones(30, 2, dtype=torch.bool)
    known[torch.randperm(30, generator=torch.Generator().manual_seed(1))[:18], 1] = False
    belief = GaussianProcess().fit(values(u, z.where(known, 0.0), known=known))
    own = known[:, 1]
    alone = GaussianProcess().fit(values(u[own], z[own, 1]))
    truth = 0.8 * dear(at) + 0.2 * at[:, 1]
    assert rms(belief.marginal(at)[0][1], truth) < 0.4 * rms(alone.marginal(at)[0][0], truth)
    # Fillers are not values.
    filled = GaussianProcess().fit(values(u, z.where(known, 7.0), known=known))
    assert torch.equal(filled.marginal(at)[0], belief.marginal(at)[0])


def test_recipes_without_fidelities_say_so():
    a, b = points(8), points(4, seed=7)
    with pytest.raises(FitError, match="must have one fidelity, got cheaper ones"):
        KernelSearch().fit(values(b, dear(b), cheaper=values(a, cheap(a))))


# ------------------------------------------------------------------------------------------------ the search


SPACE = ParameterSpace((Parameter("a", 0, 1), Parameter("b", 0, 1)))
PAIR = (Fidelity("truth", 1.0), Fidelity("full", 20.0))
PROBLEM = Problem(SPACE, (Task("f", (0.5,)),), fidelities=PAIR)


def evaluate(campaign: Campaign, trials: list) -> None:
    for t in trials:
        u = torch.tensor([[t.x["a"], t.x["b"]]], dtype=torch.float64)
        campaign.tell(t.number, float((cheap if t.fidelity == "truth" else dear)(u)))


def test_a_look_is_worth_its_gain_per_cost():
    a, b = points(8), points(5, seed=7)
    belief = GaussianProcess().fit(values(b, dear(b), cheaper=values(a, cheap(a))))
    target = Target(LEVEL, torch.ones(1).double())
    taken = torch.cat([with_level(a, 1), with_level(b, 0)])

    def best(cost: float) -> tuple[Tensor, Tensor]:
        offers = Offers((Offer(0, cost), Offer(1, 1.0)))
        return select(
            SUR(), belief, SPACE, target, 4, seed=1, taken=taken, search=Search(pool=256, polish=1), offers=offers
        )

    picks, scores = best(1e6)
    assert (picks[:, 2] == 1).all()
    assert (best(1e-3)[0][:, 2] == 0).all()
    assert torch.equal(picks[:, 2], picks[:, 3])  # offer 1 is level 1
    # The first score is the drop of the expected misclassified fraction per cost, looked up the slow way.
    u = SPACE.sample(0, 256, 1)
    p = torch.special.ndtr((belief.marginal(u)[0][0] - 0.5) / belief.marginal(u)[1][0].sqrt())
    before = float(torch.minimum(p, 1 - p).mean())
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    view = belief.view(picks[:1, :3])
    after = 0.0
    for node, weight in zip(nodes, weights / math.sqrt(2 * math.pi)):
        z = view.mean.T + node * (view.variance + view.noise).sqrt()
        mean, variance = belief.condition(picks[:1, :3], z).marginal(u)
        p = torch.special.ndtr((mean[0] - 0.5) / variance[0].sqrt())
        after += weight * float(torch.minimum(p, 1 - p).mean())
    assert float(scores[0]) == pytest.approx(before - after, rel=0.03)
    with pytest.raises(InvalidStrategy, match="a cost needs a criterion that is a gain"):
        select(Straddle(), belief, SPACE, target, 1, seed=1, taken=taken, offers=Offers((Offer(0, 2.0), Offer(1, 1.0))))


def test_noise_is_bought_by_gain_per_cost():
    """Four times the events at four times the cost: worth it only where the fixed cost is large."""
    u = points(12)
    belief = GaussianProcess().fit(values(u, dear(u)))
    target = Target(LEVEL, torch.ones(1).double())

    def events(fixed: float) -> Tensor:
        ways = tuple(Offer(0, fixed + n, torch.tensor([0.3 / n], dtype=torch.float64)) for n in (1, 4, 16))
        picks, _ = select(
            SUR(),
            belief,
            SPACE,
            target,
            3,
            seed=1,
            taken=with_level(u, 0),
            search=Search(pool=512),
            offers=Offers(ways),
        )
        return picks[:, 3]

    assert (events(1000.0) == 2).all()
    assert events(0.01).sum() < 3


@pytest.mark.parametrize("recipe", [GaussianProcess(), MultiTask()], ids=["GaussianProcess", "MultiTask"])
def test_a_campaign_designs_cheap_then_looks_at_what_is_worth_its_cost(recipe):
    campaign = Campaign.create("memory://", "two", PROBLEM, Strategy(seed=1, surrogate=recipe))
    while sum(t.fidelity == "full" for t in campaign.trials) < 10:
        evaluate(campaign, campaign.ask(2))
    trials = campaign.trials
    assert [t.fidelity for t in trials[:16]] == ["truth"] * 16
    assert {t.fidelity for t in trials[16:20]} == {"full"}
    assert {t.events for t in trials} == {None}
    belief = campaign.belief()
    assert belief.levels == (0, 1)
    u = points(4000, seed=11)
    wrong = (belief.posterior.marginal(u)[0][0] > belief.problem.tasks[0].levels[0]) != (dear(u) > 0.5)
    assert wrong.double().mean() < 0.005
    # Replay: every proposal is a function of the history before it.
    told = [replace(t, state="complete") for t in trials]
    for t in trials[16::5]:
        before = told[: t.after]
        again = propose(PROBLEM, campaign.strategy, before, 2)[t.number - t.after]
        assert (again.x, again.fidelity) == (t.x, t.fidelity)


def test_pending_looks_count_at_their_own_level():
    campaign = Campaign.create("memory://", "two", PROBLEM, Strategy(seed=1, design_size=6))
    while sum(t.fidelity == "full" and not t.pending for t in campaign.trials) < 4:
        evaluate(campaign, campaign.ask(1))
    first, second = campaign.ask(3), campaign.ask(3)
    looks = {(t.fidelity, *t.x.values()) for t in first + second}
    assert len(looks) == 6


def test_a_table_is_never_asked_for_and_makes_the_design_small():
    problem = replace(PROBLEM, fidelities=(Fidelity("old scan", None), Fidelity("full", 1.0)))
    campaign = Campaign.create("memory://", "table", problem, Strategy(seed=1))
    u = points(40)
    campaign.warm_start([{"a": float(x[0]), "b": float(x[1]), "f": float(cheap(x[None]))} for x in u], "old scan")
    for _ in range(4):
        evaluate(campaign, campaign.ask(2))
    asked = [t for t in campaign.trials if t.criterion != "table"]
    assert {t.fidelity for t in asked} == {"full"}
    assert [t.criterion for t in asked] == ["design"] * 4 + ["SUR"] * 4
    # Half of the design is where the old scan has its contour.
    at = torch.tensor([list(t.x.values()) for t in asked[:4]], dtype=torch.float64)
    assert int(((cheap(at) - 0.5).abs() < 0.35).sum()) >= 2


def test_levels_without_values_are_left_out():
    problem = replace(PROBLEM, fidelities=(Fidelity("a", 1.0), Fidelity("b", None), Fidelity("c", 9.0)))
    campaign = Campaign.create("memory://", "gap", problem, Strategy(seed=2, design_size=6))
    u = points(20)
    for row in u:
        (trial,) = campaign.add([{"a": float(row[0]), "b": float(row[1])}], fidelity="a")
        campaign.tell(trial.number, float(cheap(row[None])))
    for row in u[:5]:
        (trial,) = campaign.add([{"a": float(row[0]), "b": float(row[1])}], fidelity="c")
        campaign.tell(trial.number, float(dear(row[None])))
    belief = campaign.belief()
    assert belief.levels == (0, 2)
    assert {t.fidelity for t in campaign.ask(4)} <= {"a", "c"}


def test_events_are_chosen_where_variances_are_known():
    fidelity = Fidelity("mc", 1.0, events=(100, 10_000), event_cost=0.001)
    problem = Problem(SPACE, (Task("f", (0.5,), transform="identity"),), fidelities=(fidelity,))
    campaign = Campaign.create("memory://", "events", problem, Strategy(seed=3))
    rng = np.random.default_rng(1)
    for _ in range(12):
        for t in campaign.ask(1):
            u = torch.tensor([[t.x["a"], t.x["b"]]], dtype=torch.float64)
            variance = 25.0 / t.events
            campaign.tell(
                t.number, Outcome.of(float(dear(u)) + math.sqrt(variance) * rng.normal(), variances={"f": variance})
            )
    chosen = [t.events for t in campaign.trials]
    assert chosen[:8] == [1000] * 8
    assert all(100 <= n <= 10_000 for n in chosen)
    assert len(set(chosen)) > 1


def test_points_may_be_repeated_on_a_noisy_grid():
    space = ParameterSpace((Parameter("a", 0, 1, step=0.5), Parameter("b", 0, 1, step=0.5)))
    problem = Problem(space, (Task("f", (0.5,), transform="identity"),))
    campaign = Campaign.create("memory://", "grid", problem, Strategy(seed=3, design_size=4, replicates=True))
    rng = np.random.default_rng(1)
    for _ in range(20):
        for t in campaign.ask(1):
            u = torch.tensor([[t.x["a"], t.x["b"]]], dtype=torch.float64)
            campaign.tell(t.number, Outcome.of(float(dear(u)) + 0.3 * rng.normal(), variances={"f": 0.09}))
    assert len({tuple(t.x.values()) for t in campaign.trials}) <= 9 < len(campaign.trials)


def test_missing_values_and_fidelities_reach_the_observations():
    campaign = Campaign.create(
        "memory://", "missing", Problem(SPACE, (Task("f", (0.5,)), Task("g", (0.5,))), fidelities=PAIR)
    )
    for i, (name, outcome) in enumerate(
        [("truth", {"f": 1.0, "g": 2.0}), ("full", {"f": 3.0, "g": None}), ("full", {"f": 0.1, "g": 4.0})]
    ):
        (trial,) = campaign.add([{"a": 0.1 * i, "b": 0.2}], fidelity=name)
        campaign.tell(trial.number, Outcome.of(outcome))
    plain = replace(campaign.problem, tasks=tuple(replace(t, transform="identity") for t in campaign.problem.tasks))
    data = observations(plain, campaign.trials)
    assert data.known is not None
    assert data.known.tolist() == [[True, False], [True, True]]
    assert data.z.tolist() == [[3.0, 0.0], [0.1, 4.0]]
    assert data.cheaper is not None
    assert data.cheaper.z.tolist() == [[1.0, 2.0]]
    with pytest.raises(FitError, match="needs at least 2 observations, got 1"):
        believe(plain, GaussianProcess(), campaign.trials)


def test_noise_that_tasks_have_in_common_is_taken_away():
    """One simulation gives all tasks: its luck is in all of them."""
    u, at = points(40), points(300, seed=9)
    luck = 0.2 * torch.randn(40, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    z = torch.stack([dear(u) + luck, 0.8 * (dear(u) + luck) + 0.2 * u[:, 1]], 1)
    variance = torch.tensor([0.04, 0.0256], dtype=torch.float64).expand(40, 2)
    known = torch.ones(40, 2, dtype=torch.bool)
    known[torch.randperm(40, generator=torch.Generator().manual_seed(1))[:24], 1] = False
    data = Observations(u, z.where(known, 0.0), variance.where(known, 0.0), 0 * z, LEVEL * 2, known)
    recipe = GaussianProcess(average=False)
    belief = recipe.fit(data)
    first, second = belief.parts
    assert second.source.values is not None
    assert second.link.weight == pytest.approx(0.8, abs=0.02)
    # Where the luck is known to be the same, the difference is known much better than either.
    truth = 0.8 * dear(at) + 0.2 * at[:, 1]
    follows = second.link.weight * (first.marginal(at)[0][0] - dear(at))
    assert rms(second.marginal(at)[0][0] - truth, follows) < 0.02
    alone = recipe.fit(data.task(1)).marginal(at)[0][0]
    assert rms(second.marginal(at)[0][0], truth) < 0.8 * rms(alone, truth)
    # Between the values of the source at the data nothing is left to learn from it there.
    own = second.view(u[known[:, 1]])
    assert (own.variance[0] < second.link.weight**2 * first.view(u[known[:, 1]]).variance[0] + 0.01).all()


def test_status_and_forecast_wait_for_the_design_of_every_fidelity():
    campaign = Campaign.create("memory://", "two", PROBLEM, Strategy(seed=1))
    while len(campaign.trials) < 18:
        evaluate(campaign, campaign.ask(2))
    assert campaign.status("1 % misclassified").readings == ()
    assert campaign.forecast(0.01) is not None
    while len(campaign.trials) < 26:
        evaluate(campaign, campaign.ask(2))
    assert len(campaign.status("1 % misclassified").readings) == 1


def test_a_task_needs_two_values_before_it_is_believed():
    problem = Problem(SPACE, (Task("f", (0.5,)), Task("g", (0.5,))))
    campaign = Campaign.create("memory://", "few", problem, Strategy(seed=1, design_size=4))
    for i in range(10):
        (t,) = campaign.ask(1)
        assert t.criterion == "design"
        campaign.tell(t.number, {"f": float(i % 3), "g": 0.2 if i == 0 else None})
    (t,) = campaign.ask(1)
    campaign.tell(t.number, {"f": 1.0, "g": 0.7})
    assert campaign.ask(1)[0].criterion == "SUR"


def test_what_nobody_can_evaluate_is_not_left_to_do():
    campaign = Campaign.create("memory://", "dead", Problem(SPACE, (Task("f", (0.5,)),)), Strategy(seed=1, retries=0))
    while len(campaign.trials) < 40:
        for t in campaign.ask(4):
            u = torch.tensor([[t.x["a"], t.x["b"]]], dtype=torch.float64)
            dead = t.x["a"] > 0.6
            campaign.tell(t.number, Outcome.failed("crash") if dead else Outcome.of(float(dear(u))))
    belief = campaign.belief()
    everywhere = misclassified(belief.problem, belief.posterior)["f"]
    assert campaign.status().uncertainty["f"] < 0.5 * everywhere


def test_the_same_point_may_be_looked_at_with_another_fidelity():
    space = ParameterSpace((Parameter("a", 0, 1, step=0.25), Parameter("b", 0, 1, step=0.25)))
    campaign = Campaign.create("memory://", "grid", replace(PROBLEM, space=space), Strategy(seed=1, design_size=4))
    evaluate(campaign, campaign.add([space.point(x) for x in space.from_unit(space.lattice())], fidelity="truth"))
    for _ in range(12):
        evaluate(campaign, campaign.ask(1))
    asked = campaign.trials[25:]
    assert {t.fidelity for t in asked} == {"full"}
    assert len({tuple(t.x.values()) for t in asked}) == 12


def test_the_transform_is_that_of_all_fidelities():
    campaign = Campaign.create("memory://", "decades", replace(PROBLEM, tasks=(Task("f", (1.0,)),)))
    for i, x in enumerate(points(44)):
        x = x if i < 40 else 0.45 + 0.05 * x  # a corner in which everything is linear
        (t,) = campaign.add([{"a": float(x[0]), "b": float(x[1])}], fidelity="truth" if i < 40 else "full")
        campaign.tell(t.number, math.exp(12 * float(x[0]) - 6 + float(x[1])) * (1 if i < 40 else 1.1))
    assert campaign.belief().problem.tasks[0].transform in ("log", "log-tanh")
    few = [t for t in campaign.trials if t.fidelity == "full"]
    assert settle(campaign.problem, few).tasks[0].transform == "identity"


# ------------------------------------------------------------------------------------------------ does it help?


def campaign_of(rough: Tensor, n: int = 14) -> Campaign:
    """40 values of a cheap fidelity, n of the dear one; nothing is asked for."""
    campaign = Campaign.create("memory://", "help", PROBLEM, Strategy(seed=1, design_size=6))
    u, at = points(40), points(n, seed=7)
    campaign.warm_start([{"a": x, "b": y, "f": z} for (x, y), z in zip(u.tolist(), rough.tolist())], "truth")
    for x, y in at.tolist():
        (trial,) = campaign.add([{"a": x, "b": y}], fidelity="full")
        campaign.tell(trial.number, float(dear(torch.tensor([[x, y]], dtype=torch.float64))))
    return campaign


NOISE = torch.randn(40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_a_note_says_that_a_cheaper_fidelity_helps():
    campaign = campaign_of(cheap(points(40)))
    status = campaign.status()
    (found,) = status.cheaper
    assert (found.task, found.cheaper, found.dearest, found.count) == ("f", "truth", "full", 14)
    assert found.weight > 0.9
    assert found.error_with < 0.5 * found.error_without
    assert found.density_with > found.density_without
    assert str(found) in status.notes
    assert str(found).startswith("f: 'truth' lowers the leave-one-out error of 'full' (")
    assert str(found) in Result.of(campaign).notes
    text = standing_lines(standing(campaign))
    assert text[0] == "help: truth 40, full 14 (cost 14.0) (54 complete)"
    assert f"  {found}" in text
    data = json.loads(strict_json(standing(campaign)))
    assert (data["spent"], data["fidelities"]) == (14.0, {"truth": 40, "full": 14})
    assert data["cheaper"][0]["weight"] == found.weight
    assert data["cheaper"][0]["text"] == str(found)


def test_a_note_says_that_a_cheaper_fidelity_is_left_out():
    (found,) = campaign_of(NOISE).status().cheaper
    assert found.weight < 0.05
    assert found.error_with > found.error_without
    assert str(found) == (
        f"f: 'truth' does harm (leave-one-out error {found.error_with:.2g} with, {found.error_without:.2g} without) "
        "and is left out"
    )


@pytest.mark.parametrize(
    ("weight", "errors", "says"),
    [
        (0.9, (0.12, 0.25), "m: 'parton' halves the leave-one-out error of 'hadron' (0.12 instead of 0.25)"),
        (0.9, (0.2, 0.25), "m: 'parton' lowers the leave-one-out error of 'hadron' (0.2 instead of 0.25)"),
        (0.0, (0.31, 0.25), "m: 'parton' does harm (leave-one-out error 0.31 with, 0.25 without) and is left out"),
        (0.0, (0.24, 0.25), "m: 'parton' does not help (leave-one-out error 0.24 with, 0.25 without) and is left out"),
        (
            0.3,
            (0.2, 0.25),
            "m: 'parton' is followed by 30 % of the belief (leave-one-out error 0.2 with, 0.25 without)",
        ),
        (
            0.9,
            (0.3, 0.25),
            "m: 'parton' is followed by 90 % of the belief (leave-one-out error 0.3 with, 0.25 without)",
        ),
    ],
)
def test_what_a_cheaper_fidelity_does_in_words(weight, errors, says):
    assert str(Help("m", "parton", "hadron", *errors, 0.0, 0.0, 10, weight)) == says


@pytest.mark.parametrize("follow", [True, False])
def test_the_leave_one_out_error_is_that_of_leaving_one_out(follow):
    """Against the belief's own algebra with a value taken out: its process conditioned on all the others."""
    a, b = points(40), points(9, seed=7)
    rough = cheap(a) if follow else NOISE
    belief = ONE.fit(values(b, dear(b), cheaper=values(a, rough)))
    held_out = belief.held_out
    assert (belief.link is not None) is follow
    assert held_out.weight == float(follow)
    assert held_out.count == 9
    seen, square = belief._seen, belief.scale**2
    gram = square * seen.covariance(seen) + square * belief.nugget * torch.eye(9, dtype=torch.float64)
    off, log_density = [], []
    for i in range(9):
        rest = [j for j in range(9) if j != i]
        gain = torch.linalg.solve(gram[rest][:, rest], gram[rest, i])
        # The mean's coefficients are those of all data.
        off.append(float(dear(b)[i] - seen.mean[i] - gain @ (dear(b) - seen.mean)[rest]))
        variance = float(gram[i, i] - gain @ gram[rest, i])
        log_density.append(-0.5 * (math.log(2 * math.pi * variance) + off[-1] ** 2 / variance))
    kind = 0 if follow else 1
    # With a source, its weight in the covariance is that of least squares before the fit, afterwards the fit's own.
    tolerance = {"rel": 0.1} if follow else {"rel": 1e-6}
    assert held_out.error[kind] == pytest.approx(math.sqrt(np.mean(np.square(off))), **tolerance)
    assert held_out.density[kind] == pytest.approx(np.mean(log_density), **tolerance)


def test_the_status_of_a_cheap_design_needs_no_belief():
    """Half of a campaign's history may be cheap: there is nothing to fit to yet."""
    campaign = campaign_of(cheap(points(40)), 1)
    status = campaign.status("1 % ambiguous")
    assert (status.uncertainty, status.notes, status.readings) == ({}, (), ())
    assert (status.spent, status.fidelities) == (1.0, {"truth": 40, "full": 1})
    assert campaign.forecast("1 % ambiguous").more is None
    assert campaign_of(cheap(points(40)), 3).status().uncertainty["f"] > 0


def test_one_fidelity_has_nothing_to_compare():
    campaign = Campaign.create("memory://", "one", replace(PROBLEM, fidelities=()), Strategy(seed=1, design_size=4))
    for t in campaign.ask(4):
        campaign.tell(t.number, t.x["a"])
    assert campaign.status().cheaper == ()
    assert standing_lines(standing(campaign))[0] == "one: 4 finished (4 complete)"


def test_a_task_that_the_cheaper_fidelity_does_not_give_follows_another_one():
    a, b, at = points(40), points(8, seed=7), points(200, seed=9)
    z = torch.stack([cheap(a), 0 * cheap(a)], 1)
    known = torch.tensor([True, False]).expand(40, 2)
    both = torch.stack([dear(b), 0.9 * dear(b) + 0.1], 1)
    belief = GaussianProcess().fit(values(b, both, cheaper=values(a, z, known=known)))
    assert rms(belief.marginal(at)[0][1], 0.9 * dear(at) + 0.1) < 0.1
    here, there = belief.view(at[:5]), belief.view(with_level(at[:5], 1))
    assert torch.isfinite(here.covariance(there)).all()
    assert (there.noise > 0).all()


def dear_square(point, fidelity):
    return point["x"] ** 2


def broken_when_cheap(point, fidelity):
    if fidelity == "low":
        raise RuntimeError("not installed")
    return point["x"] ** 2


LOW_HIGH = (Fidelity("low", cost=1.0), Fidelity("high", cost=10.0))


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (Strategy(KernelSearch()), "the surrogate must take cheaper fidelities, got KernelSearch for"),
        (Strategy(acquisition=Straddle()), "need a criterion that is a gain, never negative.* got Straddle"),
    ],
)
def test_a_strategy_that_cannot_use_the_fidelities_is_refused_before_anything_is_evaluated(strategy, message):
    problem = Problem({"x": (0, 2)}, Task("y", 1.0), fidelities=LOW_HIGH)
    with pytest.raises(InvalidStrategy, match=message):
        Campaign.create("memory://", "a", problem, strategy)
    one = Problem({"x": (0, 2)}, Task("y", 1.0), fidelities=LOW_HIGH[1:])
    assert Campaign.create("memory://", "a", one, strategy).ask(1)[0].fidelity == "high"


def test_a_broken_cheap_program_does_not_spend_the_budget():
    found = find_level_set(
        broken_when_cheap, {"x": (0, 2)}, threshold=1.0, budget=9, fidelities=LOW_HIGH, workers=1, name="broken"
    )
    states = [t["fidelity"] for t in found.trials if t["state"] == "complete"]
    assert set(states) == {"high"}
    assert len(states) >= 6
    assert float(found.contours().lines[0][0, 0]) == pytest.approx(1.0, abs=0.02)


def test_a_lattice_that_is_used_up_at_the_cheap_fidelity_goes_on_at_the_dear_one():
    lattice = [Parameter("x", 0, 4, step=1)]
    found = find_level_set(dear_square, lattice, threshold=5.0, budget=20, fidelities=LOW_HIGH, workers=1)
    assert sorted((t["fidelity"], t["x"]) for t in found.trials) == [(f, x) for f in ("high", "low") for x in range(5)]
    assert 2 < float(found.contours().lines[0][0, 0]) < 3
