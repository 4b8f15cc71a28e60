"""Makes checkpoints, and bundles from them. Imports `ddaebm.model`; never `ddaebm.service`."""

# A second copy of this package under another name would have classes and errors of its own.
if __name__ != "ddaebm.training":
    raise ImportError(f"import ddaebm.training, not {__name__}: the package is ddaebm", name=__name__)
