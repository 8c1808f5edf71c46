"""TRL's trainers on NeuroAda adapters: they learn, save, and go on from a checkpoint as if never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import pico_llama
from tiny_tokenizer import SIZE, byte_tokenizer
from transformers import AutoModelForCausalLM

pytest.importorskip("trl", reason="trl is not installed")
from datasets import Dataset
from peft import AutoPeftModelForCausalLM
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from neuroada_cli.adapter.folder import read_adapter
from neuroada_cli.commands import merge
from neuroada_cli.delta.index import size
from neuroada_cli.peft_plugin import NeuroAdaConfig

CONFIG = {"k": 2, "task_type": "CAUSAL_LM"}
COMMON: dict[str, Any] = {
    "max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "report_to": "none",
    "logging_steps": 1, "save_steps": 2, "use_cpu": True, "seed": 1, "bf16": False, "disable_tqdm": True,
    "lr_scheduler_type": "constant",
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trl") / "base"
    pico_llama(vocabulary=SIZE, max_position_embeddings=256).save_pretrained(folder)
    byte_tokenizer(pad_token="<unk>").save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def tokenizer(base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


ROWS = Dataset.from_dict({
    "prompt": [f"is {n} a number? " for n in range(8)], "completion": ["yes!"] * 8,
})  # fmt: skip


def sft(base: Path, out: Path, **changes: Any) -> Any:
    arguments = SFTConfig(output_dir=str(out), max_length=64, **(COMMON | changes))
    return SFTTrainer(
        model(base), args=arguments, train_dataset=ROWS, processing_class=tokenizer(base),
        peft_config=NeuroAdaConfig(**CONFIG),
    )  # fmt: skip


def test_supervised_with_checkpoints_and_resume(base: Path, tmp_path: Path) -> None:
    whole = sft(base, tmp_path / "whole")
    whole.train()
    assert losses(whole)[-1] < losses(whole)[0]
    whole.save_model()

    stopped = sft(base, tmp_path / "stopped", max_steps=2)
    stopped.train()
    resumed = sft(base, tmp_path / "stopped")
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed)[2:] == losses(whole)[2:]
    one, two = read_adapter(tmp_path / "whole"), read_adapter(tmp_path / "stopped" / "checkpoint-4")
    assert all(torch.equal(delta_OK, two.deltas[name]) for name, delta_OK in one.deltas.items())
    assert sum(size(index_OK) for index_OK in one.selection.indices.values()) == sum(
        p.numel() for p in whole.model.parameters() if p.requires_grad
    )
    merge.run(tmp_path / "whole", tmp_path / "merged", quiet=True)
    tokens = torch.arange(20)[None]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    tuned = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32).eval()
    with torch.inference_mode():
        assert torch.equal(merged(tokens).logits, tuned(tokens).logits)


def test_recomputing_and_accumulation_are_the_same_training(base: Path, tmp_path: Path) -> None:
    plain = sft(base, tmp_path / "plain", gradient_checkpointing=False)
    plain.train()
    other = sft(
        base, tmp_path / "other", gradient_checkpointing=True, per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
    )  # fmt: skip
    other.train()
    assert losses(other) == pytest.approx(losses(plain), rel=1e-4)


def test_preferences(base: Path, tmp_path: Path) -> None:
    """DPO's reference is the same model with its adapters off."""
    rows = Dataset.from_dict({
        "prompt": [f"{n}: " for n in range(8)], "chosen": ["yes"] * 8, "rejected": ["no"] * 8,
    })  # fmt: skip
    trainer = DPOTrainer(
        model(base), args=DPOConfig(output_dir=str(tmp_path), max_length=64, **COMMON), train_dataset=rows,
        processing_class=tokenizer(base), peft_config=NeuroAdaConfig(**CONFIG),
    )  # fmt: skip
    trainer.train()
    found = losses(trainer)
    assert found[0] == pytest.approx(0.6931, abs=1e-3)  # ln 2: policy and reference are the same at first
    assert found[-1] < found[0]
    assert read_adapter(tmp_path / "checkpoint-4").deltas


def test_rewards(base: Path, tmp_path: Path) -> None:
    """GRPO: answers are drawn from the adapted model, and those with more digits are wanted."""

    def digits(completions: list[str], **_: Any) -> list[float]:
        return [float(sum(letter.isdigit() for letter in text)) for text in completions]

    arguments = GRPOConfig(
        output_dir=str(tmp_path), num_generations=2, max_completion_length=8, beta=0.1,
        **COMMON | {"max_steps": 2},
    )  # fmt: skip
    trainer = GRPOTrainer(
        model(base), reward_funcs=digits, args=arguments,
        train_dataset=Dataset.from_dict({"prompt": [f"{n}: " for n in range(8)]}),
        processing_class=tokenizer(base), peft_config=NeuroAdaConfig(**CONFIG),
    )  # fmt: skip
    trainer.train()
    adapter = read_adapter(tmp_path / "checkpoint-2")
    assert any(bool(delta_OK.any()) for delta_OK in adapter.deltas.values())
