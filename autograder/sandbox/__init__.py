"""Runs what students wrote where it can read, reach and break nothing."""
