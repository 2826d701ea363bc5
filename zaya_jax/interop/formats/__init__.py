"""Checkpoint files: safetensors, Hugging Face folders, our own Orbax folders, a tensor at a time.

Imports architecture and parallel.
"""
