"""Which branch points and which sampler pay: expected tokens, measured cost, the choice.

`branch_points` imports no model; the others import the sampler that they measure.
"""
