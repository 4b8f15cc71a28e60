"""The HTTP service. Imports `ddaebm.model`; never `ddaebm.training`, never torch unless it is asked for."""

# A second copy of this package under another name would have classes and errors of its own.
if __name__ != "ddaebm.service":
    raise ImportError(f"import ddaebm.service, not {__name__}: the package is ddaebm", name=__name__)
