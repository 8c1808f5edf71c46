"""Compiled code from the hub that nobody has named: not without a flag.

Several libraries ask the package `kernels`, where it is installed, for compiled code of the hub by
themselves: bitsandbytes when it is imported on some processors (PEFT imports it, for DoRA, too), transformers
for some kinds of attention and state-space layers. For this process the package is as good as not
installed, unless the user trusts code that comes with a model.
"""

from __future__ import annotations

import sys

PACKAGE = "kernels"


def keep_out() -> None:
    """Call it before anything heavy is imported: what asks for the package is told that there is none."""
    sys.modules.setdefault(PACKAGE, None)  # type: ignore[arg-type]


def let_in() -> None:
    """The user trusts remote code. What was imported before has asked already."""
    if PACKAGE in sys.modules and sys.modules[PACKAGE] is None:
        del sys.modules[PACKAGE]
