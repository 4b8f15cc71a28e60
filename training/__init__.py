"""Makes checkpoints, and bundles from them. Imports `model`; never `service`."""
