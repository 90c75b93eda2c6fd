"""Settings of what a job leaves behind: every key declared once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schema import key
from schema.uses import MLFLOW


@dataclass(frozen=True, kw_only=True)
class TrackerSettings:
    """Where metrics go beside the CSV records."""

    name: str = key("none, tensorboard, mlflow, or package.module:callable", decides=False)
    options: Mapping[str, Any] = key("keyword-only parameters of the tracker", decides=False)
    database: str | None = key(
        "of MLflow, unless MLFLOW_TRACKING_URI names a server", path=True, used=MLFLOW, decides=False
    )
