"""Why a network does not learn: findings on any Keras model, and a model in which what can be mended is."""

from groupwise.diagnosis.diagnosing import diagnose
from groupwise.diagnosis.finding import Diagnosis, Finding, LayerRow, Weight
from groupwise.diagnosis.mending import mend

__all__ = ["Diagnosis", "Finding", "LayerRow", "Weight", "diagnose", "mend"]
