"""The OOD score: its statistics, fitting, calibration, explanations and drift detection, in NumPy."""

from ddaebm.model.ood.calibration import fit as fit
from ddaebm.model.ood.conformal import false_alarm_interval as false_alarm_interval
from ddaebm.model.ood.conformal import fdr_threshold as fdr_threshold
from ddaebm.model.ood.drift import Drift as Drift
from ddaebm.model.ood.explain import Explainer as Explainer
from ddaebm.model.ood.levels import Scores as Scores
from ddaebm.model.ood.pixels import Pixels as Pixels
from ddaebm.model.ood.scoring import Scorer as Scorer
