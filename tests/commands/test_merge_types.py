"""What a merge writes in which data type, where a model does not load all of itself in one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_choice import selected
from tiny_run import one_thread  # noqa: F401
from tiny_tokenizer import byte_tokenizer
from transformers import T5Config, T5ForConditionalGeneration

from neuroada_cli import files
from neuroada_cli.adapter import folder as adapters
from neuroada_cli.adapter import load as adapted
from neuroada_cli.adapter.folder import Adapter
from neuroada_cli.commands import merge


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_what_a_model_keeps_in_fp32_is_written_as_it_was_trained(stored: torch.dtype, tmp_path: Path) -> None:
    """T5 computes with `wo` in fp32 when all the rest is fp16."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, decoder_start_token_id=0
    )
    T5ForConditionalGeneration(config).to(stored).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    selection = selected(tmp_path / "base", k=2, task="seq2seq-lm")
    chance = torch.Generator().manual_seed(1)
    deltas = {name: 1e-3 * torch.randn(i.shape, generator=chance) for name, i in selection.indices.items()}
    settings = {"dtype": "fp16", "task": "due_dates"}
    adapter = Adapter(selection, deltas, {}, str(tmp_path / "base"), None, "seq2seq-lm", settings)
    with files.atomic_folder(tmp_path / "adapter") as folder:
        adapters.write_adapter(folder, adapter)
    merge.run(tmp_path / "adapter", tmp_path / "out", quiet=True)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    kept = {name for name, tensor in tensors.items() if tensor.dtype == torch.float32}
    assert kept == {name for name in tensors if name.endswith("wo.weight")}
    subject = adapted.load(str(tmp_path / "adapter")).model
    merged = T5ForConditionalGeneration.from_pretrained(tmp_path / "out", dtype=torch.float16).eval()
    for name, parameter in merged.named_parameters():
        assert torch.equal(parameter, subject.get_parameter(name)), name
