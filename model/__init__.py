"""The method: noise schedule, sampler, networks, OOD scores, and bundles of trained models.

This package imports neither `ddaebm.service` nor `ddaebm.training`. Serving with ONNX Runtime needs no torch.
"""

# Imported under another name, this package would define a second set of classes, and `except` would miss its errors.
if __name__ != "ddaebm.model":
    raise ImportError(f"import ddaebm.model, not {__name__}: the package is ddaebm", name=__name__)
