"""One run: its configuration, its folder, what it was made with, its stages.

Imports every package but command_line.
"""
