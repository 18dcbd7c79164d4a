"""Probes of week 6: what trees and policies decide on inputs that nobody has seen."""
