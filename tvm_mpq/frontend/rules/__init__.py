"""The rules of normalisation; ``normalize.py`` shows their order.

Each takes a graph and one of its nodes, changes the graph where its pattern fits, and says whether it did.
"""
