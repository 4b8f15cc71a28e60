"""The method itself: schedule, sampler, networks, scores, and the bundle that carries a trained model.

Imports neither `service` nor `training`. Everything that serving needs is free of torch.
"""
