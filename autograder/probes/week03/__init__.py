"""Probes of week 3: what the functions decide on inputs that nobody has seen."""
