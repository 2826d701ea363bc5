"""Runs a program that nobody has read: a model's answer to a coding problem.

Standard library only.
"""
