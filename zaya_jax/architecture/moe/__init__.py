"""The mixture of experts: who goes where (router), and exact ways to compute it (experts).

Imports the files beside this folder: layers, layout, precision, sharding.
"""
