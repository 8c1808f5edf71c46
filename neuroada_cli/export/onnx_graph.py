"""A model's forward as an ONNX graph: python -m neuroada_cli.export.onnx_graph MODEL FILE DTYPE TRUST

input_ids and attention_mask int64 [B, S] -> logits [B, S, V] (of a classifier [B, C]); B and S are free.
B = rows, S = tokens per row, V = vocabulary, C = classes
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neuroada_cli import hub
from neuroada_cli.errors import NumericsError, UserError
from neuroada_cli.export.engines import LARGE

TOLERANCE = 1e-3  # of the logits' spread, in fp32
EXAMPLE = (2, 7)  # rows and tokens of the traced example; neither is a number that a graph would keep


class Logits(nn.Module):
    """The model with nothing but logits coming out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found: Any = self.model(input_ids=input_ids, attention_mask=attention_mask)
        logits: Tensor = found.logits
        return logits


def write(folder: Path, file: Path, dtype: str, trust_remote_code: bool = False) -> None:
    """Trace, write, and compare with the model itself where ONNX Runtime is installed.

    Raises ModelError for a model that cannot be loaded, NumericsError for a graph that answers otherwise.
    """
    task: hub.ModelTask = "sequence-classification" if _classifies(folder) else "causal-lm"
    labels = len(hub.read_config(folder).get("id2label") or {}) or None
    kept = labels if task == "sequence-classification" else None
    model = hub.load_model(
        folder, task, dtype, num_labels=kept, attention="eager", trust_remote_code=trust_remote_code
    ).model.eval()
    cast: Any = model
    cast.config.use_cache = False
    tokens_BS = torch.arange(1, 1 + EXAMPLE[0] * EXAMPLE[1]).view(EXAMPLE)
    names = ("input_ids", "attention_mask")
    rows, length = torch.export.Dim("rows"), torch.export.Dim("length")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            Logits(model),
            (tokens_BS, torch.ones_like(tokens_BS)),
            dynamo=True,
            verbose=False,
            input_names=list(names),
            output_names=["logits"],
            dynamic_shapes={name: {0: rows, 1: length} for name in names},
        )
    nbytes = sum(p.numel() * p.element_size() for p in model.parameters())
    program.save(str(file), external_data=nbytes > LARGE)
    _compare(model, file, dtype)


def _classifies(folder: Path) -> bool:
    return any("SequenceClassification" in str(n) for n in hub.read_config(folder).get("architectures") or ())


def _compare(model: nn.Module, file: Path, dtype: str) -> None:
    """On rows of another number and length than were traced, one of them padded."""
    try:
        import onnxruntime
    except ImportError:
        return
    session: Any = onnxruntime.InferenceSession(str(file))
    tokens_BS = torch.arange(2, 2 + 3 * 11).view(3, 11)
    mask_BS = torch.ones_like(tokens_BS)
    mask_BS[1, -4:] = 0
    found = session.run(None, {"input_ids": tokens_BS.numpy(), "attention_mask": mask_BS.numpy()})[0]
    with torch.no_grad():
        wanted = Logits(model)(tokens_BS, mask_BS).float()
    kept = mask_BS.bool() if wanted.ndim == 3 else ...
    difference = float((torch.from_numpy(found).float() - wanted)[kept].abs().max() / wanted.std())
    allowed = TOLERANCE if dtype == "fp32" else 100 * TOLERANCE
    if not difference <= allowed:
        raise NumericsError(
            f"the graph's logits differ from the model's by {difference:.2g} of their spread",
            fix="name --dtype fp32, or use another format",
        )


if __name__ == "__main__":
    try:
        write(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4] == "1")
    except UserError as error:
        sys.exit(error.line())
