"""Joint bandwidth and pruning: `allocate` is the exact optimum, a policy is one function.

| module | what it is |
|---|---|
| `shares`, `ratio` | what an allocation is; the least pruning ratio at a share |
| `problem` | the inputs, and the floors and caps that follow from them |
| `optimum` | the optimum where noise does not depend on the share, in O(K log K) |
| `proportional_noise` | the optimum where noise grows with the share |
| `policies` | what the `allocation` key of a scheme names |
| `uploaders`, `chains`, `waterfill` | who uploads; whom that need not be asked of; sharing one unit exactly |
| `certificates`, `reference` | evidence: KKT residuals and duality gap; the same problem by cvxpy |
"""

from radio.allocation.optimum import allocate, least_max_pruning_ratio
from radio.allocation.ratio import least_pruning_ratio, ratio_at_rate
from radio.allocation.shares import Allocation, AllocationStatus, InfeasibleAllocationError, WhenInfeasible

__all__ = [
    "Allocation",
    "AllocationStatus",
    "InfeasibleAllocationError",
    "WhenInfeasible",
    "allocate",
    "least_max_pruning_ratio",
    "least_pruning_ratio",
    "ratio_at_rate",
]
