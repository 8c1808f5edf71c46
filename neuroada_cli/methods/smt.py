"""SMT (arXiv:2405.15525): whole tiles of the weights train, those with the largest mean |gradient|.

The tiles are chosen by `select` (`select.tile`, `select.criterion: gradient`); what trains in them are deltas
over the frozen weights, the same update as training the tiles themselves without weight decay.
"""

from __future__ import annotations

from neuroada_cli.methods.neuroada import NeuroAda


class Smt(NeuroAda):
    """Every entry of the chosen tiles trains, in fp32 over the frozen weight."""

    name = "smt"
