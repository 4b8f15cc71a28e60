"""Torch: the networks, the diffusion around them, and the engine that runs a bundle on them."""
