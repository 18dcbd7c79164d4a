"""The probes of each week, in a module named after it."""
