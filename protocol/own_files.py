"""Where users keep files of their own: the working directory, with its modules and its ``conf/``.

A policy or scheduler of one's own is named ``my_module:function``, and its yaml lies in ``conf/`` below the
working directory. Processes of an engine or a fleet run elsewhere; they are told the folder by an environment
variable. Own files come last, so that nothing lying around can take the place of the app's modules.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE = "AIRFLOWER_WORKDIR"
_APPS = Path(__file__).resolve().parents[1] / "conf"


def working_directory() -> Path | None:
    """Return the user's working directory; None if it no longer exists."""
    try:
        return Path(os.environ.get(VARIABLE) or Path.cwd())
    except OSError:
        return None


def find_own_modules() -> None:
    """Have the user's modules found by imports, after everything else."""
    folder = working_directory()
    if folder is not None and str(folder) not in sys.path:
        sys.path.append(str(folder))


def own_configuration() -> Path | None:
    """Return the folder with the user's own yaml files, if there is one; the app's, in a clone, is not."""
    folder = working_directory()
    if folder is None or not (folder / "conf").is_dir() or (folder / "conf").resolve() == _APPS:
        return None
    return folder / "conf"


def for_other_processes() -> dict[str, str]:
    """Return the environment variable that tells other processes where the user's files are."""
    folder = working_directory()
    return {VARIABLE: str(folder)} if folder is not None else {}
