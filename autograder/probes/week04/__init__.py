"""Probes of week 4: what the functions decide on inputs that nobody has seen."""
