"""Grading for instructors: probes, hidden cells, rubrics, and the commands around nbgrader.

Nothing of it is in a student's bundle.
"""
