"""Plots of a run, and the style that all figures share.

Imports reporting's results.
"""
