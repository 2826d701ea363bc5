"""What a model costs: parameters, FLOPs, bytes, memory, and a roofline from published peaks.

Nothing is run. Imports architecture and training's objective.
"""
