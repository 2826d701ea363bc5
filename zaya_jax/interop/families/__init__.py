"""Model families: how another library's configurations and tensors map to ours.

Imports architecture and interop.formats' names.
"""
