"""Small networks that draft for a frozen or jointly trained target: one file each. Imports `architecture` alone.

Each is a linen module over the target's `Features`, with a training form (a whole row at once) and an inference form (a
cache of its own). `Zaya` makes its parameters, as params/drafter, where `ZayaConfig.drafter` names one.
"""
