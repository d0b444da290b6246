import copy
import math
import subprocess
import sys
import warnings
from dataclasses import replace

import cloudpickle
import numpy as np
import pyhf
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from excursion.data import Job
from excursion.errors import EvaluationError, ImpossiblePoint, InvalidProblem, MissingExtra, ShapeError
from excursion.evaluators import histfactory
from excursion.evaluators.pyhf import (
    TASKS,
    CountsModel,
    Limits,
    PyhfEvaluator,
    Signal,
    WorkspaceModel,
    limits,
)

# pyhf 0.7 uses an old interface of jsonschema.
pytestmark = pytest.mark.filterwarnings("ignore:jsonschema.RefResolver is deprecated:DeprecationWarning")

# ATLAS-SUSY-2018-32, same-flavour regions (arXiv:1908.08215).
SLEPTONS = CountsModel(
    observed=[14, 15, 24, 37, 20, 12, 12, 5, 8, 12, 13, 30, 21, 15, 11, 8, 5, 5],
    background=[15.8, 13.9, 26.9, 33.3, 17.4, 10.4, 13.4, 6.7, 6.8, 17.0, 13.7, 17.0, 23.3, 17.0, 9.4, 12.3, 6.5, 8.0],
    background_error=[2.3, 1.9, 3.2, 3.4, 2.4, 1.2, 1.6, 1.1, 1.0, 4.0, 2.5, 4.0, 2.8, 2.3, 1.9, 1.6, 1.4, 2.7],
    channels={"SR-SF-0J": 9, "SR-SF-1J": 9},
)
EXCESS = [0, 0, 5, 4, 0, 0, 0, 0, 0, 0, 0, 10, 3, 0, 0, 0, 0, 0]


def hard_signal(events=15.0):
    edges = np.array([100, 105, 110, 120, 140, 160, 180, 220, 260, 400.0])
    one = np.diff(edges) * np.exp(-((edges[:-1] + edges[1:]) / 2 - 100) / 300)
    flat = np.concatenate([one, 0.6 * one]) / (one.sum() * 1.6) * events
    return Signal(flat, flat / np.sqrt(2000 * flat / flat.sum()))


def numbers(result: Limits) -> np.ndarray:
    return np.array(list(result.values.values()))


def by_pyhf(model, data, low, high, **more):
    bounds = model.config.suggested_bounds()
    bounds[model.config.poi_index] = (0, 2 * high)
    observed, expected = pyhf.infer.intervals.upper_limits.toms748_scan(
        data, model, low, high, rtol=1e-6, atol=1e-6, par_bounds=bounds, **more
    )
    return np.array([float(observed), *map(float, expected)])


def shifts(high, low):
    return {"hi_data": high, "lo_data": low}


# Every kind of modifier HistFactory has, shared and not, with asymmetric shifts.
CORRELATED = {
    "channels": [
        {
            "name": "signal_region",
            "samples": [
                {
                    "name": "signal",
                    "data": [4.0, 9.0, 6.0],
                    "modifiers": [
                        {"name": "mu", "type": "normfactor", "data": None},
                        {"name": "lumi", "type": "lumi", "data": None},
                        {"name": "scale", "type": "histosys", "data": shifts([3.6, 9.5, 7.0], [4.5, 8.7, 5.2])},
                        {"name": "theory", "type": "normsys", "data": {"hi": 1.12, "lo": 0.91}},
                    ],
                },
                {
                    "name": "top",
                    "data": [30.0, 21.0, 9.0],
                    "modifiers": [
                        {"name": "top_norm", "type": "normfactor", "data": None},
                        {"name": "scale", "type": "histosys", "data": shifts([33.0, 22.0, 9.9], [28.5, 20.5, 7.9])},
                        {"name": "scale", "type": "normsys", "data": {"hi": 1.05, "lo": 0.97}},
                        {"name": "staterror_signal_region", "type": "staterror", "data": [1.5, 1.2, 0.8]},
                    ],
                },
                {
                    "name": "other",
                    "data": [8.0, 5.0, 3.0],
                    "modifiers": [
                        {"name": "lumi", "type": "lumi", "data": None},
                        {"name": "fakes", "type": "shapesys", "data": [2.0, 1.0, 0.9]},
                        {"name": "staterror_signal_region", "type": "staterror", "data": [0.8, 0.5, 0.6]},
                    ],
                },
            ],
        },
        {
            "name": "control_region",
            "samples": [
                {
                    "name": "top",
                    "data": [120.0, 80.0],
                    "modifiers": [
                        {"name": "top_norm", "type": "normfactor", "data": None},
                        {"name": "scale", "type": "histosys", "data": shifts([128.0, 83.0], [114.0, 76.0])},
                    ],
                },
                {
                    "name": "other",
                    "data": [10.0, 6.0],
                    "modifiers": [
                        {"name": "theory", "type": "normsys", "data": {"hi": 1.3, "lo": 0.8}},
                        {"name": "free_shape", "type": "shapefactor", "data": None},
                    ],
                },
            ],
        },
    ],
    "observations": [
        {"name": "signal_region", "data": [44.0, 26.0, 13.0]},
        {"name": "control_region", "data": [140.0, 79.0]},
    ],
    "measurements": [
        {
            "name": "limit",
            "config": {
                "poi": "mu",
                "parameters": [
                    {"name": "lumi", "auxdata": [1.0], "sigmas": [0.02], "inits": [1.0], "bounds": [[0.5, 1.5]]}
                ],
            },
        }
    ],
    "version": "1.0.0",
}  # fmt: skip


def correlated(drop=("free_shape",)):
    spec = copy.deepcopy(CORRELATED)
    for channel in spec["channels"]:
        for sample in channel["samples"]:
            sample["modifiers"] = [m for m in sample["modifiers"] if m["name"] not in drop]
    return spec


# ---------------------------------------------------------------------------------------- equal to pyhf


@pytest.mark.parametrize(
    ("signal", "background", "error", "observed"),
    [
        ([12.0, 11.0], [50.0, 52.0], [3.0, 7.0], [51, 48]),
        ([12.0, 11.0], [50.0, 52.0], [3.0, 7.0], [70, 66]),
        ([0.5, 2.0, 1.0], [3.0, 1.0, 0.4], [1.0, 0.5, 0.3], [0, 0, 0]),
    ],
)
def test_limits_equal_pyhf_on_simple_models(signal, background, error, observed):
    model = pyhf.simplemodels.uncorrelated_background(signal, background, error)
    ours = limits(model, observed)
    theirs = by_pyhf(model, observed + model.config.auxdata, 0.01, 20)
    np.testing.assert_allclose(numbers(ours), theirs, rtol=1e-3)
    assert not ours.bounds


def test_limits_equal_the_documented_example():
    # pyhf's documentation of upper_limits: observed 1.01156939, expected 0.5598, 0.7573, 1.0648 (mu_95 by toms748).
    model = pyhf.simplemodels.uncorrelated_background([12.0, 11.0], [50.0, 52.0], [3.0, 7.0])
    ours = limits(model, [51, 48])
    assert ours.observed == pytest.approx(1.01156939, rel=1e-4)
    assert ours.expected == pytest.approx((0.55988001, 0.75702336, 1.06234693, 1.50116923, 2.05078596), rel=1e-3)


@pytest.mark.slow
def test_limits_equal_pyhf_with_correlated_systematics():
    workspace = pyhf.Workspace(correlated())
    model = workspace.model()
    theirs = by_pyhf(model, workspace.data(model), 0.1, 8)
    np.testing.assert_allclose(numbers(limits(correlated())), theirs, rtol=2e-3)


# toms748_scan of pyhf 0.7.6 with minuit takes 20 to 50 s a point: `reference` of benchmarks/pyhf_limits.py.
MINUIT = {
    "hard": (hard_signal(), {}, [1.2489075, 0.7460869, 1.0194111, 1.4527172, 2.0950797, 2.9288471]),
    "excess": (
        Signal(EXCESS, [0.15 * s for s in EXCESS]),
        {},
        [1.7051193, 0.5665721, 0.7670272, 1.0817022, 1.5474310, 2.1605428],
    ),
    "correlated": (
        hard_signal(),
        {"signal_error": "staterror", "signal_uncertainty": 0.1, "luminosity_uncertainty": 0.017},
        [1.2705457, 0.7501817, 1.0295049, 1.4804895, 2.1724597, 3.1176204],
    ),
}


@pytest.mark.parametrize("name", MINUIT)
def test_limits_equal_pyhf_with_minuit_on_the_slepton_model(name):
    signal, changes, theirs = MINUIT[name]
    np.testing.assert_allclose(numbers(limits(replace(SLEPTONS, **changes).workspace(signal))), theirs, rtol=2e-4)


def test_compiled_likelihood_equals_pyhf_with_every_modifier():
    workspace = pyhf.Workspace(CORRELATED)
    model = workspace.model()
    data = np.array(workspace.data(model))
    likelihood = histfactory.compile_model(model, pyhf.tensorlib)
    where = {i: j for j, i in enumerate(histfactory.auxiliary_parameters(model))}
    aux = data[model.config.nmaindata :]
    measured = histfactory.Data(
        data[: model.config.nmaindata],
        aux[[where[i] for i in likelihood.gauss]],
        aux[[where[i] for i in likelihood.poisson]],
    )
    rng = np.random.default_rng(1)
    start, gap = likelihood.start, []
    for size in (0.0, 0.1, 0.3, 0.6, 0.9):
        theta = np.where(start > 0.5, start * np.exp(0.5 * size * rng.normal(size=start.size)), 2 * size * rng.normal())
        theta = np.clip(theta, likelihood.lower, likelihood.upper)
        expected = model.expected_data(theta.tolist(), include_auxdata=False)
        np.testing.assert_allclose(histfactory.expected_rates(likelihood, theta), expected, rtol=1e-10)
        gap.append(
            histfactory.half_deviance(likelihood, measured, theta)
            + float(model.logpdf(theta.tolist(), data.tolist())[0])
        )
        gradient, hessian, _ = histfactory.derivatives(likelihood, measured, theta)
        for i in range(theta.size):
            step = np.zeros(theta.size)
            step[i] = 1e-5
            values = [histfactory.half_deviance(likelihood, measured, theta + s * step) for s in (1, -1)]
            gradients = [histfactory.derivatives(likelihood, measured, theta + s * step)[0] for s in (1, -1)]
            assert gradient[i] == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-4)
            slope = (gradients[0] - gradients[1]) / 2e-5
            np.testing.assert_allclose(hessian[i], slope, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(gap, gap[0], rtol=1e-9)


def test_derivative_by_mu_exists_at_zero():
    model = pyhf.simplemodels.uncorrelated_background([12.0, 11.0], [50.0, 52.0], [3.0, 7.0])
    likelihood = histfactory.compile_model(model, pyhf.tensorlib)
    data = histfactory.Data(np.array([51.0, 48.0]), np.array([]), likelihood.tau)
    theta = likelihood.start.copy()
    theta[likelihood.poi] = 0.0
    gradient, hessian, _ = histfactory.derivatives(likelihood, data, theta)
    assert gradient[likelihood.poi] == pytest.approx(12 * (1 - 51 / 50) + 11 * (1 - 48 / 52), rel=1e-12)
    assert hessian[likelihood.poi, likelihood.poi] == pytest.approx(51 * (12 / 50) ** 2 + 48 * (11 / 52) ** 2)


# ------------------------------------------------------------------------------- equal to direct counting


def counting_limits(s, b, n, alpha=0.05):
    """One bin, no uncertainty: q-tilde and CLs written out."""

    def q(mu, count):
        best = max(0.0, (count - b) / s)
        if mu <= best:
            return 0.0

        def nll(rate):
            return rate - (count * math.log(rate) if count else 0.0)

        return 2 * (nll(mu * s + b) - nll(best * s + b))

    def cls(mu, n_sigma=None):
        qa = q(mu, b)
        if n_sigma is not None:
            t = n_sigma
        else:
            qo = q(mu, n)
            t = math.sqrt(qa) - math.sqrt(qo) if qo <= qa else -(qo - qa) / (2 * math.sqrt(qa))
        return norm.cdf(t - math.sqrt(qa)) / norm.cdf(t)

    low = 1e-6 / s
    return [
        brentq(lambda mu, k: cls(mu, k) - alpha, low, 100 * (b + 10) / s, xtol=1e-10, args=(k,))
        for k in (None, -2, -1, 0, 1, 2)
    ]


@pytest.mark.parametrize(
    ("s", "b", "n"), [(5.0, 20.0, 20), (5.0, 20.0, 31), (5.0, 20.0, 11), (1e-3, 0.5, 0), (3e4, 2.0, 5)]
)
@pytest.mark.parametrize("alpha", [0.05, 0.1])
def test_no_background_uncertainty_is_poisson_counting(s, b, n, alpha):
    model = CountsModel([n], [b], [0.0])
    ours = limits(model.workspace(Signal([s])), level=1 - alpha, mu_max=1e6)
    np.testing.assert_allclose(numbers(ours), counting_limits(s, b, n, alpha), rtol=1e-4)


def test_small_background_uncertainty_tends_to_poisson_counting():
    model = CountsModel([31], [20.0], [0.01])
    np.testing.assert_allclose(
        numbers(limits(model.workspace(Signal([5.0])))), counting_limits(5.0, 20.0, 31), rtol=1e-3
    )


def test_best_fit_is_the_excess():
    assert limits(CountsModel([31], [20.0], [0.0]).workspace(Signal([5.0]))).best_fit == pytest.approx(2.2, rel=1e-6)
    assert limits(CountsModel([11], [20.0], [0.0]).workspace(Signal([5.0]))).best_fit == 0


# ----------------------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("factor", [1e-6, 0.3, 1e6])
def test_limits_scale_with_the_inverse_of_the_signal(factor):
    one, other = hard_signal(), hard_signal(15 * factor)
    reference = limits(SLEPTONS.workspace(one))
    scaled = limits(SLEPTONS.workspace(other), mu_max=1e9)
    np.testing.assert_allclose(numbers(scaled) * factor, numbers(reference), rtol=1e-4)
    assert not scaled.bounds


def test_expected_limits_are_ordered_and_data_like_background_give_the_median():
    result = limits(SLEPTONS.workspace(hard_signal()))
    assert list(result.expected) == sorted(result.expected)
    asimov = replace(SLEPTONS, observed=SLEPTONS.background)
    result = limits(asimov.workspace(hard_signal()))
    assert result.observed == pytest.approx(result.expected[2], rel=1e-4)
    assert result.best_fit == pytest.approx(0, abs=1e-3)


def test_more_uncertainty_weakens_the_limits():
    signal = hard_signal()
    plain = numbers(limits(replace(SLEPTONS, signal_error="none").workspace(signal)))
    for change in ({"signal_error": "staterror"}, {"signal_uncertainty": 0.2}, {"luminosity_uncertainty": 0.1}):
        model = replace(SLEPTONS, **({"signal_error": "none"} | change))
        assert (numbers(limits(model.workspace(signal)))[1:] > plain[1:] * 1.0001).all()


def test_order_of_channels_does_not_matter():
    signal = hard_signal()
    swapped = CountsModel(
        *(v[9:] + v[:9] for v in (SLEPTONS.observed, SLEPTONS.background, SLEPTONS.background_error)),
        channels={"SR-SF-1J": 9, "SR-SF-0J": 9},
    )
    other = Signal({"SR-SF-0J": signal.nominal[:9], "SR-SF-1J": signal.nominal[9:]}, np.roll(signal.errors, 9))
    one, two = limits(SLEPTONS.workspace(signal)), limits(swapped.workspace(other))
    np.testing.assert_allclose(numbers(one), numbers(two), rtol=1e-6)
    np.testing.assert_allclose(
        one.elasticities["observed"]["SR-SF-1J"], two.elasticities["observed"]["SR-SF-1J"], rtol=1e-4
    )


def test_elasticities_are_the_derivatives_of_the_limits():
    signal = Signal(hard_signal().nominal)
    for model in (SLEPTONS, replace(SLEPTONS, observed=SLEPTONS.background[::-1])):
        result = limits(model.workspace(signal), rtol=1e-10)
        for i in (3, 8, 11):
            moved = []
            for sign in (1, -1):
                nominal = signal.nominal.copy()
                nominal[i] *= 1 + sign * 1e-3
                moved.append(np.log(numbers(limits(model.workspace(Signal(nominal)), rtol=1e-10))))
            slope = (moved[0] - moved[1]) / 2e-3
            for task, expected in zip(TASKS, slope):
                ours = np.concatenate([result.elasticities[task][c] for c in SLEPTONS.channels])
                assert ours.sum() == pytest.approx(-1)
                assert ours[i] == pytest.approx(expected, rel=1e-3, abs=1e-5)


# --------------------------------------------------------------------------------- no or little sensitivity


def test_no_signal_is_censored():
    result = limits(SLEPTONS.workspace(Signal(np.zeros(18), np.zeros(18))), mu_max=50.0)
    assert result.bounds == dict.fromkeys(TASKS, "above")
    assert set(result.values.values()) == {50.0}
    assert not result.elasticities


def test_limits_beyond_the_largest_mu_are_censored_one_by_one():
    full = limits(SLEPTONS.workspace(hard_signal()))
    largest = (full.expected[2] + full.expected[3]) / 2
    result = limits(SLEPTONS.workspace(hard_signal()), mu_max=largest)
    assert set(result.bounds) == {"expected_plus_1", "expected_plus_2"}
    assert result.expected[3:] == (largest, largest)
    np.testing.assert_allclose(numbers(result)[:4], numbers(full)[:4], rtol=1e-4)


def test_signal_of_one_simulated_event_may_be_unlimited():
    # A Gaussian of relative width 1 lets the signal vanish at the price of 1 unit of q: no strength is excluded.
    signal = Signal([4.0], [4.0])
    result = limits(CountsModel([5], [5.0], [1.0], signal_error="staterror").workspace(signal))
    assert set(result.bounds) == set(TASKS) - {"expected_minus_2"} or set(result.bounds) == set(TASKS)
    assert all(math.isfinite(v) for v in result.values.values())


def test_bins_without_background():
    model = CountsModel([0, 3], [0.0, 2.0], [0.0, 0.5])
    result = limits(model.workspace(Signal([2.0, 0.0], [0.1, 0.0])))
    # Nothing seen where nothing is expected: q = q_A = 2 mu s, and CLs = 2 Phi(-sqrt(2 mu s)).
    assert result.observed == pytest.approx(norm.ppf(0.025) ** 2 / 4, rel=0.01)
    assert result.expected[2] == pytest.approx(result.observed, rel=1e-4)


def test_events_without_background_are_an_error():
    model = CountsModel([2, 3], [0.0, 2.0], [0.0, 0.5])
    with pytest.raises(EvaluationError, match=r"mu = 0\): must converge, got -ln L = inf.*observed events but no back"):
        limits(model.workspace(Signal([2.0, 1.0])))


def test_best_fit_beyond_the_largest_mu():
    result = limits(CountsModel([500], [20.0], [1.0]).workspace(Signal([1.0])), mu_max=100.0)
    assert result.best_fit > 100
    assert set(result.bounds) == {"observed"}
    assert result.observed == 100
    assert result.fits < 100


def test_second_maximum_of_the_likelihood_is_found():
    # Data at odds with the background: the climb from the highest conditional fit ends on a lower peak.
    observed = [0, 0, 4, 0, 4, 733, 3, 1, 910, 115, 0, 0, 5440, 0, 10268, 27, 2, 0, 0, 1, 664, 2111, 106, 0]
    background = [
        0.00514,
        0.514,
        0.611,
        0.262,
        0.425,
        249.0,
        0.958,
        0.561,
        284.0,
        29.4,
        0.0232,
        0.3,
        2220.0,
        0.0779,
        3420.0,
        6.81,
        0.962,
        0.0035,
        0.00882,
        0.289,
        264.0,
        712.0,
        36.0,
        0.00101,
    ]
    error = [
        4.39e-05,
        0.0015,
        0.02,
        0.00855,
        0.00552,
        0.585,
        1.03,
        0.479,
        30.4,
        0.152,
        0.000161,
        0.0558,
        388.0,
        0.000961,
        76.6,
        0.0279,
        0.0352,
        0.00483,
        1.15e-05,
        0.000616,
        47.4,
        1.26,
        0.0813,
        0.00153,
    ]
    signal = [
        1.48e-05,
        0.000152,
        1.05e-06,
        0.00126,
        1.77e-05,
        0.000289,
        8.74e-06,
        2e-07,
        0.00372,
        3.71e-05,
        0.00121,
        1.82e-07,
        0.000773,
        4.12e-05,
        1.19e-09,
        0.00359,
        0.00195,
        0.00103,
        3.04e-06,
        4.52e-08,
        0.00121,
        1.35e-07,
        1.26e-07,
        0.000202,
    ]
    signal_error = [
        2.37e-07,
        1.92e-06,
        1.7e-07,
        0.000107,
        7.57e-07,
        5.83e-06,
        3.43e-06,
        1.98e-08,
        0.00205,
        5.59e-07,
        3.13e-05,
        6.24e-09,
        5.01e-05,
        6.27e-06,
        8.26e-11,
        0.00122,
        0.00151,
        2.29e-05,
        9.49e-08,
        4.34e-09,
        0.000816,
        8.74e-09,
        5.97e-08,
        0.000112,
    ]
    model = CountsModel(observed, background, error, signal_uncertainty=0.1, luminosity_uncertainty=0.3)
    result = limits(model.workspace(Signal(signal, signal_error)), mu_max=1e7)
    assert result.best_fit == pytest.approx(11900, rel=0.02)
    assert result.observed > result.best_fit


def test_fit_without_any_counts():
    model = pyhf.Workspace(
        CountsModel([0, 0], [5.0, 3.0], [1.0, 0.5]).workspace(Signal([2.0, 1.0], [0.2, 0.1]))
    ).model()
    likelihood = histfactory.compile_model(model, pyhf.tensorlib)
    data = histfactory.Data(np.zeros(2), np.array([]), likelihood.tau)
    fit = histfactory.minimise(likelihood, data, np.array([2.0, 1, 1, 1, 1]), None)
    # d/dgamma (b gamma + tau gamma - tau ln gamma) = 0, tau = (b / error)^2
    np.testing.assert_allclose(fit.theta, [0, 25 / 30, 36 / 39, 1, 1], atol=1e-6)


def test_nothing_observed_anywhere():
    result = limits(replace(SLEPTONS, observed=[0] * 18).workspace(hard_signal()))
    assert 0 < result.observed < result.expected[0]
    assert not result.bounds


# --------------------------------------------------------------------------------------------- workspaces


def test_workspace_model_replaces_the_signal():
    spec = correlated()
    model = WorkspaceModel(spec)
    same = model.workspace(Signal([4.0, 9.0, 6.0]))
    assert numbers(limits(same)) == pytest.approx(numbers(limits(spec)), rel=1e-6)
    double = limits(model.workspace(Signal({"signal_region": [8.0, 18.0, 12.0]})))
    assert numbers(double) * 2 == pytest.approx(numbers(limits(spec)), rel=1e-4)
    assert spec == correlated()


def test_workspace_model_replaces_errors_and_keeps_ratios():
    spec = correlated()
    signal = spec["channels"][0]["samples"][0]
    signal["modifiers"].append({"name": "mc", "type": "shapesys", "data": [0.4, 0.9, 0.6]})
    model = WorkspaceModel(spec)
    kept = model.workspace(Signal([8.0, 18.0, 0.0]))["channels"][0]["samples"][0]
    assert kept["modifiers"][-1]["data"] == pytest.approx([0.8, 1.8, 0.0])
    assert kept["modifiers"][2]["data"]["hi_data"] == pytest.approx([7.2, 19.0, 0.0])
    new = model.workspace(Signal([8.0, 18.0, 0.0], [1.0, 2.0, 0.0]))["channels"][0]["samples"][0]
    assert new["modifiers"][-1]["data"] == [1.0, 2.0, 0.0]


def test_workspace_model_gives_empty_bins_no_shift():
    spec = correlated()
    spec["channels"][0]["samples"][0]["data"][2] = 0.0
    sample = WorkspaceModel(spec).workspace(Signal([4.0, 9.0, 6.0]))["channels"][0]["samples"][0]
    assert sample["modifiers"][2]["data"]["hi_data"] == pytest.approx([3.6, 9.5, 6.0])


def test_background_only_workspace_gets_the_signal():
    background = SLEPTONS.workspace(hard_signal())
    for channel in background["channels"]:
        channel["samples"] = [s for s in channel["samples"] if s["name"] != "signal"]
    model = WorkspaceModel(background)
    ours = limits(model.workspace(hard_signal()))
    assert numbers(ours) == pytest.approx(numbers(limits(SLEPTONS.workspace(hard_signal()))), rel=1e-6)


def test_workspace_model_with_a_patch():
    def patch(spec, signal):
        spec["channels"][0]["samples"][0]["data"] = [2 * s for s in signal.nominal]
        return spec

    spec = SLEPTONS.workspace(Signal(np.ones(18)))
    del spec["channels"][1], spec["observations"][1]
    model = WorkspaceModel(spec, patch=patch)
    plain = WorkspaceModel(spec)
    ones = np.ones(9)
    assert numbers(limits(model.workspace(Signal(ones)))) == pytest.approx(
        numbers(limits(plain.workspace(Signal(2 * ones)))), rel=1e-6
    )


def test_data_may_contain_auxiliary_measurements():
    model = pyhf.simplemodels.uncorrelated_background([12.0, 11.0], [50.0, 52.0], [3.0, 7.0])
    aux = [1.2 * model.config.auxdata[0], 0.9 * model.config.auxdata[1]]
    ours = limits(model, [51, 48, *aux])
    theirs = by_pyhf(model, [51, 48, *aux], 0.05, 8)
    np.testing.assert_allclose(numbers(ours), theirs, rtol=1e-3)


def test_fixed_parameters_stay_fixed():
    spec = correlated()
    spec["measurements"][0]["config"]["parameters"] += [
        {"name": "scale", "inits": [0.5], "fixed": True},
        {"name": "top_norm", "inits": [1.1], "fixed": True},
    ]
    workspace = pyhf.Workspace(spec)
    model = workspace.model()
    ours = limits(spec)
    at_observed = pyhf.infer.hypotest(ours.observed, workspace.data(model), model)
    assert float(at_observed) == pytest.approx(0.05, rel=5e-3)
    *_, at_expected = pyhf.infer.hypotest(ours.expected[3], workspace.data(model), model, return_expected_set=True)
    assert float(at_expected[3]) == pytest.approx(0.05, rel=5e-3)


# ------------------------------------------------------------------------------------------- the evaluator


def simulate(x, seed):
    if x["m"] < 0:
        raise ImpossiblePoint("simulate: the mass must not be negative")
    rng = np.random.default_rng(seed)
    shape = np.exp(-np.linspace(0, 1, 18) * x["m"])
    generated = rng.poisson(4000 * shape / shape.sum())
    weight = x["events"] / 4000
    return Signal(weight * generated, weight * np.sqrt(generated), info={"generated": int(generated.sum())})


def test_evaluator_returns_all_tasks():
    evaluator = PyhfEvaluator(simulate, SLEPTONS)
    outcome = evaluator.evaluate(Job({"m": 1.0, "events": 20.0}, seed=3))
    direct = limits(SLEPTONS.workspace(simulate({"m": 1.0, "events": 20.0}, 3)))
    assert tuple(outcome.values) == TASKS
    assert outcome.values == direct.values
    assert outcome.state == "complete"
    assert set(outcome.variances) == set(TASKS)
    assert outcome.info["generated"] == pytest.approx(
        sum(simulate({"m": 1.0, "events": 20.0}, 3).nominal) / (20 / 4000)
    )
    assert sum(map(sum, outcome.info["yields"].values())) == pytest.approx(20, rel=0.1)
    assert outcome.info["seconds_limits"] > 0


def test_evaluator_variance_is_that_of_repeated_simulations():
    evaluator = PyhfEvaluator(simulate, SLEPTONS)
    outcomes = [evaluator.evaluate(Job({"m": 5.0, "events": 10.0}, seed=seed)) for seed in range(100)]
    for task in TASKS:
        values = np.log([o.values[task] for o in outcomes])
        claimed = np.mean([o.variances[task] / o.values[task] ** 2 for o in outcomes])
        # The relative error of a variance from 100 draws is 14 %.
        assert values.var(ddof=1) == pytest.approx(claimed, rel=0.45)


def test_evaluator_passes_its_level_on():
    job = Job({"m": 1.0, "events": 20.0}, seed=3)
    loose = PyhfEvaluator(simulate, SLEPTONS, level=0.9).evaluate(job)
    assert loose.values == limits(SLEPTONS.workspace(simulate(job.x, 3)), level=0.9).values
    assert loose.values["expected"] < PyhfEvaluator(simulate, SLEPTONS).evaluate(job).values["expected"]


def test_evaluator_censors_without_signal():
    outcome = PyhfEvaluator(simulate, SLEPTONS, mu_max=200.0).evaluate(Job({"m": 1.0, "events": 0.0}))
    assert outcome.state == "censored"
    assert set(outcome.values.values()) == {200.0}
    assert not outcome.variances


def test_evaluator_without_errors_has_no_variances():
    outcome = PyhfEvaluator(lambda x, seed: Signal(hard_signal().nominal), SLEPTONS).evaluate(Job({"m": 1.0}))
    assert not outcome.variances
    assert outcome.state == "complete"


def test_evaluator_lets_errors_of_the_simulation_through():
    with pytest.raises(ImpossiblePoint, match="mass must not be negative"):
        PyhfEvaluator(simulate, SLEPTONS).evaluate(Job({"m": -1.0, "events": 1.0}))


@pytest.mark.parametrize(
    ("signal", "error", "message"),
    [
        (Signal([1.0] * 17), ShapeError, r"signal yields: must have shape \(18,\), got \(17,\)"),
        (Signal([1.0] * 18, [0.1] * 3), ShapeError, r"signal errors: must have shape \(18,\), got \(3,\)"),
        (Signal({"SR-SF-0J": [1.0] * 9}), ShapeError, "must name the channels .*SR-SF-1J.*got .*SR-SF-0J"),
        (Signal({"SR-SF-0J": [1.0] * 9, "SR-SF-1J": [1.0]}), ShapeError, r"SR-SF-1J.*shape \(9,\), got \(1,\)"),
        (Signal(["x"] * 18), ShapeError, "must be one number per bin, got"),
        (Signal([math.nan] * 18), EvaluationError, "finite and not negative, got nan in bin 0"),
        (Signal([1.0] * 17 + [-1.0]), EvaluationError, "SR-SF-1J.*got -1.0 in bin 8"),
    ],
)
def test_bad_signals_are_clear_errors(signal, error, message):
    with pytest.raises(error, match=message):
        PyhfEvaluator(lambda x, seed: signal, SLEPTONS).evaluate(Job({}))


def test_recipe_travels_to_other_processes():
    scale = 2.0
    evaluator = PyhfEvaluator(lambda x, seed: Signal([scale * x["s"]], [0.1]), CountsModel([5], [4.0], [1.0]))
    there = cloudpickle.loads(cloudpickle.dumps(evaluator))
    one, two = (e.evaluate(Job({"s": 3.0})) for e in (evaluator, there))
    assert one.values == two.values
    assert one.variances == two.variances


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"observed": [1, 2]}, ShapeError, r"background: must have shape \(2,\), got \(1,\)"),
        ({"background": [-1.0]}, InvalidProblem, "background: must be finite and not negative"),
        ({"observed": [math.nan]}, InvalidProblem, "observed: must be finite"),
        ({"background": [0.0]}, InvalidProblem, "must be 0 where the background is 0, got 1.0 in bin 0"),
        ({"channels": {"a": 2}}, ShapeError, r"must have shape \(2,\), got \(1,\)"),
        ({"channels": {"a": 1, "b": 0}}, ShapeError, "at least one bin"),
        ({"signal_error": "gauss"}, InvalidProblem, "must be 'shapesys', 'staterror' or 'none', got 'gauss'"),
        ({"signal_uncertainty": 1.0}, InvalidProblem, r"signal_uncertainty: must be relative and in \[0, 1\)"),
        ({"luminosity_uncertainty": -0.1}, InvalidProblem, "luminosity_uncertainty: must be relative"),
    ],
)
def test_bad_counts_models(arguments, error, message):
    with pytest.raises(error, match=message):
        CountsModel(**({"observed": [3], "background": [2.0], "background_error": [1.0]} | arguments))


def test_bad_workspaces():
    spec = correlated()
    with pytest.raises(InvalidProblem, match="must have measurement 'other', got \\['limit'\\]"):
        WorkspaceModel(spec, measurement="other")
    with pytest.raises(InvalidProblem, match="got none of \\['observations'\\]"):
        WorkspaceModel({k: v for k, v in spec.items() if k != "observations"})
    broken = copy.deepcopy(spec)
    del broken["channels"][0]["samples"][0]["data"]
    with pytest.raises(InvalidProblem, match="pyhf must accept the specification, got InvalidSpecification"):
        limits(broken)
    with pytest.raises(InvalidProblem, match="pyhf must accept the specification, got InvalidMeasurement"):
        limits(spec, measurement="other")
    other = copy.deepcopy(spec)
    other["measurements"][0]["config"]["poi"] = "theory"
    with pytest.raises(InvalidProblem, match="must be a normfactor of a sample, got 'theory'"):
        limits(other)
    other["measurements"][0]["config"]["poi"] = ""
    with pytest.raises(InvalidProblem, match="needs a parameter of interest, got none"):
        limits(other)


@pytest.mark.parametrize(
    ("data", "more", "error", "message"),
    [
        (None, {}, InvalidProblem, "needs data, got None"),
        ([1, 2, 3], {}, ShapeError, r"must have shape \(2,\) or, with auxiliary data, \(4,\), got \(3,\)"),
        ([1, -2], {}, InvalidProblem, "counts must be finite and not negative"),
        ([1, 2], {"level": 95}, InvalidProblem, r"level: must lie in \(0, 1\), got 95"),
        ([1, 2], {"mu_max": math.inf}, InvalidProblem, "mu_max: must be positive and finite, got inf"),
        ([1, 2], {"rtol": 0.5}, InvalidProblem, "rtol: must lie in"),
    ],
)
def test_bad_arguments(data, more, error, message):
    model = pyhf.simplemodels.uncorrelated_background([12.0, 11.0], [50.0, 52.0], [3.0, 7.0])
    with pytest.raises(error, match=message):
        limits(model, data, **more)
    with pytest.raises(error, match=message):
        limits({"channels": model.spec["channels"]}, data, **more)


def test_bad_models():
    with pytest.raises(InvalidProblem, match=r"must be a workspace, a specification or a pyhf\.Model, got str"):
        limits("workspace.json")
    settings = {"normsys": {"interpcode": "code4"}, "histosys": {"interpcode": "code2"}}
    workspace = pyhf.Workspace(correlated())
    with pytest.raises(InvalidProblem, match=r"interpolation of histosys must be 'code4p', got 'code2'"):
        limits(workspace.model(modifier_settings=settings), workspace.data(workspace.model()))


def test_a_translation_unlike_pyhf_is_refused():
    model = pyhf.simplemodels.uncorrelated_background([12.0, 11.0], [50.0, 52.0], [3.0, 7.0])
    model.spec["channels"][0]["samples"][1]["data"][1] = 53.0  # pyhf has built its tensors already
    with pytest.raises(InvalidProblem, match="compiled likelihood must equal pyhf's, got rates"):
        limits(model, [51, 48])


def test_fits_that_do_not_converge_are_errors():
    # Only a normalisation without constraint could make these events, and its bounds forbid it.
    model = pyhf.simplemodels.uncorrelated_background([12.0, 11.0], [50.0, 52.0], [3.0, 7.0])
    likelihood = histfactory.compile_model(model, pyhf.tensorlib)
    data = histfactory.Data(np.array([math.nan, 48.0]), np.array([]), likelihood.tau)
    with pytest.raises(EvaluationError, match="must converge, got -ln L = nan"):
        histfactory.minimise(likelihood, data, likelihood.start, 1.0)


# ---------------------------------------------------------------------------------------- good manners


@pytest.mark.filterwarnings("ignore:Creating a tensor from a list:UserWarning")  # pyhf's
def test_global_backend_is_left_alone():
    before = pyhf.get_backend()
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about its own import
        pyhf.set_backend("pytorch", pyhf.optimize.scipy_optimizer(maxiter=123))
    try:
        torch_backend = pyhf.get_backend()
        limits_with_torch = limits(SLEPTONS.workspace(hard_signal()))
        seen.append(pyhf.get_backend() == torch_backend)
    finally:
        pyhf.set_backend(*before)
    assert seen == [True]
    assert numbers(limits_with_torch) == pytest.approx(numbers(limits(SLEPTONS.workspace(hard_signal()))), rel=1e-6)
    assert pyhf.get_backend() == before


def test_missing_pyhf_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyhf", None)
    with pytest.raises(MissingExtra, match=r'pip install "excursion\[pyhf\]"'):
        limits(SLEPTONS.workspace(hard_signal()))


def test_import_does_not_load_pyhf():
    code = "import sys, excursion.evaluators.pyhf; assert 'pyhf' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_slepton_model_takes_less_than_a_second_a_point():
    limits(SLEPTONS.workspace(hard_signal()))
    seconds = [limits(SLEPTONS.workspace(hard_signal(n))).seconds for n in (0.1, 3, 15, 50, 200)]
    assert np.mean(seconds) < 1.0
