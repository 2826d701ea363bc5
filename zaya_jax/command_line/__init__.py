"""What commands share: flags, one-line errors, files of prompts, output that somebody stops reading.

Imports every package below; only experiments/ imports it.
"""
