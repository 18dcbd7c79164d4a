"""Probes of week 2: what the functions decide on inputs that nobody has seen."""
