"""What runs in a worker process: one evaluation, whatever happens. Loads neither torch nor the campaign."""

from __future__ import annotations

import functools
import traceback

import cloudpickle

from ..data import Job, Outcome
from ..errors import EvaluationError, ImpossiblePoint, InvalidSpec, MissingExtra
from . import Evaluator


@functools.lru_cache(maxsize=4)
def _load(payload: bytes) -> Evaluator:
    return cloudpickle.loads(payload)


def evaluate_pickled(payload: bytes, job: Job) -> Outcome:
    """`evaluate` in another process, for an evaluator that came by cloudpickle."""
    return evaluate(_load(payload), job)


def evaluate(evaluator: Evaluator, job: Job) -> Outcome:
    """Evaluate one job; whatever goes wrong at this point comes back as a failure with its traceback."""
    try:
        return evaluator.evaluate(job)
    except ImpossiblePoint as error:
        return Outcome.failed(str(error), permanent=True)
    except (InvalidSpec, MissingExtra):
        raise  # wrong at every point: the run stops and nothing is spoilt
    except EvaluationError as error:
        return Outcome.failed(str(error), traceback=tail(error))
    except (Exception, SystemExit) as error:
        return Outcome.failed(f"{type(error).__name__}: {error}", traceback=tail(error))


def tail(error: BaseException) -> str:
    """The end of the traceback, as text."""
    return "".join(traceback.format_exception(error))[-4000:]
