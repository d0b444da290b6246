"""Everything this package raises on purpose.

* ExcursionError
  - InvalidSpace          a parameter space that contradicts itself               (ValueError)
  - InvalidProblem        tasks, thresholds or transforms that make no sense       (ValueError)
  - InvalidStrategy       a recipe with settings outside their range               (ValueError)
  - InvalidSpec           a YAML file that does not describe a campaign            (ValueError)
  - InvalidTable          a table of known points that cannot be used              (ValueError)
  - InvalidPoint          a point with unknown, missing or forbidden parameters    (ValueError)
  - InvalidOutcome        values that do not fit the problem's tasks               (ValueError)
  - ShapeError            an array whose shape breaks the convention               (ValueError)
  - SpaceExhausted        every allowed point of a quantised space has been asked
  - FitError              the surrogate could not be fitted
  - ScoreError            a belief or a criterion gave something that is not a finite number
  - EvaluationError       the expensive function failed at one point; may be retried
    · ImpossiblePoint     ... and always will, at this point; do not retry
  - EngineError           what runs the evaluations cannot be started or reached, or has stopped
  - MissingExtra          an optional dependency is not installed                  (ImportError)
  - StoreError
    · UnknownCampaign     (KeyError)
    · UnknownTrial        (KeyError)
    · DuplicateCampaign   (ValueError)
    · SchemaMismatch      the store was written by another schema version
    · StaleHistory        someone else added trials since the history was read; ask again
    · TrialFinished       a finished trial cannot change

Messages read ``{where}: {rule}, got {values}. {what to do}``.
"""

from __future__ import annotations


class ExcursionError(Exception):
    """Root of all errors of this package."""

    def __str__(self) -> str:
        # KeyError would show repr(message); a user wants the sentence itself.
        return str(self.args[0]) if self.args else ""


class InvalidSpace(ExcursionError, ValueError):
    """A parameter space that contradicts itself."""


class InvalidProblem(ExcursionError, ValueError):
    """Tasks, thresholds or transforms that make no sense."""


class InvalidStrategy(ExcursionError, ValueError):
    """A recipe with settings outside their range."""


class InvalidSpec(ExcursionError, ValueError):
    """A YAML file that does not describe a campaign."""


class InvalidTable(ExcursionError, ValueError):
    """A table of known points that cannot be used."""


class InvalidPoint(ExcursionError, ValueError):
    """A point with unknown, missing or forbidden parameters."""


class InvalidOutcome(ExcursionError, ValueError):
    """Values that do not fit the problem's tasks."""


class ShapeError(ExcursionError, ValueError):
    """An array whose shape breaks the convention."""


class SpaceExhausted(ExcursionError):
    """Every allowed point of a quantised space has been asked."""


class FitError(ExcursionError):
    """The surrogate could not be fitted."""


class ScoreError(ExcursionError):
    """A belief or a criterion gave something that is not a finite number."""


class EvaluationError(ExcursionError):
    """The expensive function failed at one point; another try may succeed."""


class ImpossiblePoint(EvaluationError):
    """The expensive function can never succeed at this point."""


class EngineError(ExcursionError):
    """What runs the evaluations cannot be started or reached, or has stopped as a whole."""


class MissingExtra(ExcursionError, ImportError):
    """An optional dependency is not installed."""


class StoreError(ExcursionError):
    """The store refused."""


class UnknownCampaign(StoreError, KeyError):
    """No campaign of this name is in the store."""


class UnknownTrial(StoreError, KeyError):
    """No trial of this number is in the campaign."""


class DuplicateCampaign(StoreError, ValueError):
    """A campaign of this name is in the store already."""


class SchemaMismatch(StoreError):
    """The store was written by another schema version."""


class StaleHistory(StoreError):
    """Someone else added trials since the history was read."""


class TrialFinished(StoreError):
    """A finished trial cannot change."""
