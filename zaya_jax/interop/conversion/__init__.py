"""From any checkpoint to any other, streamed; and what goes along with the weights.

Imports interop.formats and interop.families.
"""
