"""The steps of the workflow: ``python -m excursion.examples.recast.steps generate|fit``; files in, files out."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ...data import Job
from ...errors import EvaluationError, ExcursionError
from ...untrusted import json_value, read_text
from ..sleptons import SignalYields, Simulation, background_spec

#: Names of the limits in the file, as the public demonstration of a reinterpretation has them.
NAMES = {
    "observed": "obs",
    "expected": "exp",
    "expected_minus_2": "exp_m2",
    "expected_minus_1": "exp_m1",
    "expected_plus_1": "exp_p1",
    "expected_plus_2": "exp_p2",
}


def generate(m_slepton: float, m_chi: float, events: int, seed: int, out: Path) -> None:
    """Events -> expected yields in the bins of the search, as JSON with "nominal" and "errors"."""
    signal = Simulation(events=events)({"m_slepton": m_slepton, "m_chi": m_chi}, seed)
    print(f"{signal.info['generated']} pairs, acceptance {signal.info['acceptance']:.3f}")
    out.write_text(json.dumps({"nominal": signal.nominal, "errors": signal.errors, "info": signal.info}))


def fit(yields: Path, mu_max: float, out: Path) -> None:
    """Yields -> limits on the signal strength, as JSON with the `NAMES` and "variance", their Monte Carlo variances.

    A limit beyond `mu_max` is written as `mu_max`: who reads the file has to know how far to trust it.
    """
    from ...evaluators.pyhf import CountsModel, PyhfEvaluator

    try:
        found = json_value(read_text(yields, EvaluationError))
        signal = SignalYields(tuple(map(float, found["nominal"])), tuple(map(float, found["errors"])))
    except (ValueError, TypeError, KeyError) as error:
        raise EvaluationError(
            f"{yields}: must hold nominal and errors, got {type(error).__name__}: {error}. Generate it anew"
        ) from error
    outcome = PyhfEvaluator(lambda x, seed: signal, CountsModel(**background_spec()), mu_max=mu_max).evaluate(Job({}))
    limits = {NAMES[task]: value for task, value in outcome.values.items()}
    variances = {NAMES[task]: value for task, value in outcome.variances.items()}
    print(f"observed limit on the signal strength: {limits['obs']:.4g}")
    out.write_text(json.dumps({**limits, "variance": variances}))


def main(words: Sequence[str] | None = None) -> None:
    """Run one step; a failure is one line on the standard error and exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m excursion.examples.recast.steps")
    steps = parser.add_subparsers(required=True)
    one = steps.add_parser("generate", help="masses -> yields")
    one.add_argument("--m-slepton", type=float, required=True, help="GeV")
    one.add_argument("--m-chi", type=float, required=True, help="GeV")
    one.add_argument("--events", type=int, required=True)
    one.add_argument("--seed", type=int, required=True)
    one.set_defaults(step=generate)
    two = steps.add_parser("fit", help="yields -> limits")
    two.add_argument("--yields", type=Path, required=True)
    two.add_argument("--mu-max", type=float, required=True, help="largest signal strength that is tried")
    two.set_defaults(step=fit)
    for each in (one, two):
        each.add_argument("--out", type=Path, required=True)
    given = vars(parser.parse_args(words))
    try:
        given.pop("step")(**given)
    except ExcursionError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
