"""The HTTP service. Imports `model`; never `training`, never torch."""
