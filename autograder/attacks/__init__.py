"""Hostile submissions, each of which has to come to nothing."""
