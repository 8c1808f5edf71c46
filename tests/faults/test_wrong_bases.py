"""A thousand bases that the adapter was not trained on: `merge` refuses each, and writes nothing."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from counting import record
from tiny_choice import selected
from tiny_run import tiny_llama_folder, tiny_recipe
from torch import Tensor

from neuroada_cli import files
from neuroada_cli.adapter.folder import Adapter, write_adapter
from neuroada_cli.commands import merge, train
from neuroada_cli.errors import ModelError
from neuroada_cli.hub.fingerprint import WHOLE_BYTES

BASES = 1_000
Tensors = dict[str, Tensor]


def other_training(tensors: Tensors, config: dict[str, object], chance: random.Random) -> None:
    """The same architecture, everything a little elsewhere: another checkpoint of the same model."""
    generator = torch.Generator().manual_seed(chance.randrange(1 << 30))
    for tensor in tensors.values():
        tensor += 1e-4 * torch.randn(tensor.shape, generator=generator)


def one_weight(tensors: Tensors, config: dict[str, object], chance: random.Random) -> None:
    """The smallest step there is, in one weight."""
    flat = chance.choice(list(tensors.values())).view(-1)
    at = chance.randrange(len(flat))
    flat[at] = torch.nextafter(flat[at], torch.tensor(torch.inf))


def two_layers_swapped(tensors: Tensors, config: dict[str, object], chance: random.Random) -> None:
    first = [name for name in tensors if "layers.0." in name and name.endswith("proj.weight")]
    name = chance.choice(first)
    other = name.replace("layers.0.", "layers.1.")
    tensors[name], tensors[other] = tensors[other], tensors[name]


def other_name(tensors: Tensors, config: dict[str, object], chance: random.Random) -> None:
    name = chance.choice(list(tensors))
    tensors[chance.choice(("x." + name, name + "_", name.replace("weight", "w")))] = tensors.pop(name)


def missing(tensors: Tensors, config: dict[str, object], chance: random.Random) -> None:
    del tensors[chance.choice(list(tensors))]


def one_more(tensors: Tensors, config: dict[str, object], chance: random.Random) -> None:
    tensors[f"model.extra_{chance.randrange(100)}"] = torch.zeros(chance.randrange(1, 9))


def other_shape(tensors: Tensors, config: dict[str, object], chance: random.Random) -> None:
    name = chance.choice([name for name, tensor in tensors.items() if tensor.ndim == 2])
    tensor = tensors[name]
    if tensor.shape[0] == tensor.shape[1]:
        tensors[name] = tensor.reshape(2 * len(tensor), -1)
    else:
        tensors[name] = tensor.T.contiguous()


def other_dtype(tensors: Tensors, config: dict[str, object], chance: random.Random) -> None:
    name = chance.choice(list(tensors))
    tensors[name] = tensors[name].to(chance.choice((torch.bfloat16, torch.float16, torch.float64)))


def other_config(tensors: Tensors, config: dict[str, object], chance: random.Random) -> None:
    """Another number or switch, of those that decide what is computed, in the config or deeper in it."""
    rope = config["rope_parameters"]
    assert isinstance(rope, dict)
    there = [key for key, value in config.items() if isinstance(value, (int, float)) and key != "use_cache"]
    key = chance.choice([*there, "rope_theta"])
    if key == "rope_theta":
        config["rope_parameters"] = {**rope, key: rope[key] * chance.choice((2, 3))}
        return
    value = config[key]
    config[key] = (not value) if isinstance(value, bool) else value * chance.choice((2, 3)) or 1  # type: ignore[operator]


def one_more_key(tensors: Tensors, config: dict[str, object], chance: random.Random) -> None:
    """What a base of the same tensors may have and this one has not."""
    key, value = chance.choice(
        [
            ("sliding_window", chance.randrange(2, 99)),
            ("hidden_activation", "gelu"),
            ("attn_logit_softcapping", chance.uniform(1, 99)),
            ("logit_scale", chance.uniform(0.01, 0.9)),
            ("num_experts_per_tok", chance.randrange(1, 9)),
            ("position_embedding_type", "alibi"),
            ("partial_rotary_factor", chance.uniform(0.1, 0.9)),
            ("rope_scaling", {"rope_type": "linear", "factor": chance.uniform(1.5, 9)}),
        ]
    )
    config[key] = value


KINDS = (
    other_training, one_weight, two_layers_swapped, other_name, missing, one_more, other_shape, other_dtype,
    other_config, one_more_key,
)  # fmt: skip


def refusal(kind: Callable[..., None]) -> str:
    """What the line must say; a config that its own files contradict is refused before that."""
    told = "is not the base that was selected and trained on"
    return f"{told}|vocab_size is .* but the largest stored tensor" if kind is other_config else told


@pytest.mark.filterwarnings("ignore")
def test_a_thousand_wrong_bases_are_refused(tmp_path: Path) -> None:
    good = tiny_llama_folder(tmp_path / "llama")
    small = {"limit": 8, "validation_limit": 4}
    run = train.run(tiny_recipe(good, tmp_path / "run", data=small, train={"epochs": 1}), quiet=True)
    assert run.last is not None
    config = json.loads((good / "config.json").read_text(encoding="utf-8"))
    tensors, metadata = files.read_tensors(good / "model.safetensors")

    wrong, out = tmp_path / "wrong", tmp_path / "out"
    wrong.mkdir()
    refused: Counter[str] = Counter()
    for seed in range(BASES):
        chance, kind = random.Random(seed), KINDS[seed % len(KINDS)]
        changed, settings = {name: tensor.clone() for name, tensor in tensors.items()}, dict(config)
        kind(changed, settings, chance)
        files.write_tensors(wrong / "model.safetensors", changed, metadata)
        (wrong / "config.json").write_text(json.dumps(settings), encoding="utf-8")
        with pytest.raises(ModelError, match=refusal(kind)) as caught:
            merge.run(run.last, out, base=str(wrong), quiet=True)
        assert caught.value.exit_code == 4
        assert len(caught.value.line()) < 600
        assert not out.exists()
        refused[kind.__name__.replace("_", " ")] += 1
    assert sum(refused.values()) == BASES
    record("wrong bases", {"refused": BASES})

    merge.run(run.last, out, base=str(good), quiet=True)  # the right one is taken
    assert out.is_dir()


def large_only(tensors: Tensors, chance: random.Random) -> None:
    """Another training of the same model, told only by its large tensors: all else is the same to the bit."""
    generator = torch.Generator().manual_seed(chance.randrange(1 << 30))
    for tensor in tensors.values():
        if tensor.nbytes > WHOLE_BYTES:
            tensor += 1e-5 * torch.randn(tensor.shape, generator=generator)


def one_large_tensor(tensors: Tensors, chance: random.Random) -> None:
    """The smallest steps there are, in one weight of a hundred of one tensor."""
    tensor = chance.choice([tensor for tensor in tensors.values() if tensor.nbytes > WHOLE_BYTES]).view(-1)
    chosen = (
        torch.rand(len(tensor), generator=torch.Generator().manual_seed(chance.randrange(1 << 30))) < 0.01
    )
    tensor[chosen] = torch.nextafter(tensor[chosen], torch.tensor(torch.inf))


def test_tensors_so_large_that_only_samples_of_them_are_hashed(tmp_path: Path) -> None:
    good = tiny_llama_folder(tmp_path / "llama", num_hidden_layers=1, intermediate_size=32_768)
    tensors, metadata = files.read_tensors(good / "model.safetensors")
    assert sum(tensor.nbytes == 4 << 20 for tensor in tensors.values()) == 3
    folder, out = adapter_of(good, tmp_path / "adapter"), tmp_path / "out"
    shutil.copytree(good, tmp_path / "wrong")

    def is_refused(base: Path) -> None:
        with pytest.raises(ModelError, match="its weights differ in content") as caught:
            merge.run(folder, out, base=str(base), quiet=True)
        assert caught.value.exit_code == 4
        assert not out.exists()

    cases = 0
    for seed in range(12):
        for kind in (large_only, one_large_tensor):
            changed = {name: tensor.clone() for name, tensor in tensors.items()}
            kind(changed, random.Random(seed))
            files.write_tensors(tmp_path / "wrong" / "model.safetensors", changed, metadata)
            is_refused(tmp_path / "wrong")
            cases += 1
    # our own result, of which one weight a neuron is another one, is no base to merge into once more
    merged = merge.run(folder, tmp_path / "merged", base=str(good), quiet=True).out
    is_refused(merged)
    record("wrong bases with large tensors", {"refused": cases + 1})


def adapter_of(base: Path, folder: Path) -> Path:
    """One connection per neuron of one layer whose weight takes 4 MiB."""
    selection = selected(base, ["up_proj"])
    deltas = {name: torch.full(index_OK.shape, 1e-3) for name, index_OK in selection.indices.items()}
    with files.atomic_folder(folder) as temporary:
        write_adapter(temporary, Adapter(selection, deltas, {}, str(base), None, "causal-lm"))
    return folder
