"""The method: schedule, sampler, networks, scores, and the bundle that carries a trained model.

Imports neither `ddaebm.service` nor `ddaebm.training`. Everything that serving needs is free of torch.
"""

# A second copy of this package under another name would have classes and errors of its own.
if __name__ != "ddaebm.model":
    raise ImportError(f"import ddaebm.model, not {__name__}: the package is ddaebm", name=__name__)
