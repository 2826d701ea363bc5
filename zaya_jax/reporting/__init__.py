"""Result files in and out, and what is made of them: tables, pages, plots, figures, report.

Imports costs, sampling, training and what is below them; runs no model.
"""
