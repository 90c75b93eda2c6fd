"""The type of the products inside the layers: bfloat16 where it is asked for and faster, else float32."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

import torch

log = logging.getLogger(__name__)


def product_type(precision: str, device: torch.device | str = "cpu") -> torch.dtype:
    """Return the type of the products for `training.precision`; a GPU is taken to have both.

    Args:
        precision: "float32" or "bfloat16".
        device: where the products are computed.
    """
    if precision != "bfloat16":
        return torch.float32
    if torch.device(device).type == "cpu" and not multiplies_bfloat16():
        _say_once()
        return torch.float32
    return torch.bfloat16


@cache
def multiplies_bfloat16() -> bool:
    """Return whether the processor multiplies bfloat16 faster than float32.

    It does with AMX, and with AVX512_BF16 on AMD. Intel's AVX512_BF16 alone is slower than float32
    (benchmarks/README.md), as are processors without either, which emulate it.
    """
    if _has("_is_amx_tile_supported"):
        return True
    return _has("_is_avx512_bf16_supported") and _vendor() != "GenuineIntel"


def _has(query: str) -> bool:
    return bool(getattr(torch.cpu, query, lambda: False)())


def _vendor() -> str:
    """Return the vendor as Linux names it; empty where it is not known."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


@cache
def _say_once() -> None:
    log.warning("training.precision = bfloat16: this processor is faster with float32, which is used instead")
