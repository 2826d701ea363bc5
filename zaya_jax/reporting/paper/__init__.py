"""The figures after TiDAR's and Zyphra's papers, from committed result files.

Imports reporting's results and the plots' style.
"""
