"""Probes of week 1: what the functions decide on inputs that nobody has seen."""
