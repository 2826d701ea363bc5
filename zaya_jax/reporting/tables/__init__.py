"""Result rows as Markdown, for README.md and docs/: the numbers there are made here, from committed result files.

Imports reporting's result files and the rows of its figures.
"""
