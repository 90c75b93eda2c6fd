"""Branch and bound for the max-min beam of a fixed set, and for users and beam together.

`radio.beamforming.global_` and `radio.scheduling.branch_and_bound` are thin uses of `search`.
"""

from radio.branching.search import Found, Progress, search

__all__ = ["Found", "Progress", "search"]
