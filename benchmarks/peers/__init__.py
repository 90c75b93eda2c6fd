"""Rounds of federated averaging beside the simulators that a user might take instead.

`python -m benchmarks.peers` sets each up in a virtual environment of its own, has all of them do the same
rounds (same images, first weights, mini-batches, participants), checks that their weights agree, and prints
one table.
"""
