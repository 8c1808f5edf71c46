"""Whether padding beside a row changes what a model makes of it: tried, since no config says it.

B = rows, C = classes
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from torch import nn

from neuroada_cli.data.batch import Encoded, Features, collate
from neuroada_cli.loop.loss import row_logits
from neuroada_cli.loop.modes import evaluating

READS_PADDING = (
    "reads the padding beside a row as if it were text: in training and validation a row's logits depend on "
    "its batch (train.micro_batch_size: 1 has no padding); eval puts rows of one length together"
)
LOOKED_AT = 256  # rows, among which two lengths are looked for
# of the largest logit; what masks leave of padding is roundings
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}


@torch.no_grad()
def reads_padding(
    model: nn.Module, rows: Sequence[Encoded], pad: int, features: Features | None = None
) -> bool:
    """Whether a classifier or regressor of texts gives a row other logits beside a longer one.

    Convolutions (ConvBERT, CANINE), pooling (Funnel), hashes (YOSO) and Fourier transforms (FNet) run over
    all places of a batch, whatever the mask says. False where all rows looked at are of one length.
    """
    some = sorted(islice(rows, LOOKED_AT), key=len)
    if not some or len(some[0]) == len(some[-1]):
        return False
    parameter = next(each for each in model.parameters() if each.is_floating_point())
    with evaluating(model):
        alone_1C = row_logits(model, collate(some[:1], pad, features).to(parameter.device))
        beside_2C = row_logits(model, collate([some[0], some[-1]], pad, features).to(parameter.device))
    change = float((beside_2C[0] - alone_1C[0]).abs().max())
    return change > TOLERANCE.get(parameter.dtype, 0) * float(alone_1C.abs().max())
