"""Changes to a loaded model: adapters added or merged, a mask token added.

Imports architecture and interop.formats' names.
"""
