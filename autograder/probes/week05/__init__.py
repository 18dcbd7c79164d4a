"""Probes of week 5: what names, lookups, the law and the FP8 cache decide on unseen inputs."""
