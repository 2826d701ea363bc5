"""The report of a run: one HTML page with inline CSS.

Imports reporting's results and plots.
"""
