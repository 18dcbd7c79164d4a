"""Submissions that are right in an unusual way, and some that are nearly right."""
