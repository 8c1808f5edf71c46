"""Model folders: what is read is what is there, and everything broken is refused by name."""

from __future__ import annotations

import json
import socket
import struct
from pathlib import Path

import pytest
import torch
from conftest import PICO_MODELS, pico_bert, pico_gpt2, pico_llama
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertModel, GPT2Model, RobertaConfig, RobertaForMaskedLM

from neuroada_cli import hub
from neuroada_cli.delta.layout import Layout
from neuroada_cli.errors import ModelError, ResourceError
from neuroada_cli.files.tensors import DTYPES
from neuroada_cli.hub import resolve
from neuroada_cli.machine import network


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pico_llama().save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    pico_llama().save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    return tmp_path / "sharded"


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# -- reading


def test_every_tensor_is_read_exactly(folder: Path) -> None:
    weights = hub.open_weights(folder)
    expected = load_file(folder / "model.safetensors")
    assert set(weights.names) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(weights.tensor(name), tensor)
        assert weights.info(name).nbytes == tensor.nbytes


def test_sharded_and_single_hold_the_same(folder: Path, sharded: Path) -> None:
    single, parts = hub.open_weights(folder), hub.open_weights(sharded)
    assert set(single.names) == set(parts.names)
    assert all(torch.equal(single.tensor(name), parts.tensor(name)) for name in single)
    assert single.parameters == parts.parameters == pico_llama().num_parameters()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_data_types_and_odd_offsets(tmp_path: Path, dtype: torch.dtype) -> None:
    """A one-byte tensor before it puts the next at an odd offset, which the format allows."""
    values = torch.arange(6).view(2, 3).to(dtype)
    raw = values.view(torch.uint8).numpy().tobytes()
    code = next(code for code, known in DTYPES.items() if known == dtype)
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": code, "shape": [2, 3], "data_offsets": [1, 1 + len(raw)]},
        "c": {"dtype": code, "shape": [0], "data_offsets": [1 + len(raw)] * 2},
    }
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\x07" + raw)
    weights = hub.open_weights(tmp_path)
    assert torch.equal(weights.tensor("b"), values)
    assert weights.tensor("a").tolist() == [7]
    assert weights.tensor("c").shape == (0,)


def test_writing_to_a_tensor_leaves_the_file_alone(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    hub.open_weights(folder).tensor("model.norm.weight").zero_()
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("model", "module", "stored"),
    [
        (lambda: GPT2Model(pico_gpt2().config), "transformer.h.0.attn.c_attn", "h.0.attn.c_attn.weight"),
        (pico_gpt2, "transformer.h.0.attn.c_attn", "transformer.h.0.attn.c_attn.weight"),
        (lambda: BertModel(pico_bert().config), "bert.pooler.dense", "pooler.dense.weight"),
        (pico_llama, "lm_head", "lm_head.weight"),
    ],
)
def test_names_with_and_without_the_prefix(tmp_path: Path, model, module: str, stored: str) -> None:
    built = model()
    built.save_pretrained(tmp_path)
    base = hub.open_base(
        tmp_path, "causal-lm" if module != "bert.pooler.dense" else "sequence-classification"
    )
    assert base.places.names(f"{module}.weight") == [stored] == [base.places.own_name(f"{module}.weight")]
    with pytest.raises(ModelError, match=r"no weight for transformer.nowhere"):
        base.places.copies("transformer.nowhere.weight", Layout(2, 3))


# -- refusing


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def lengthen(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")


def empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type":\n "llama",,}')


def list_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def is_adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def remote_code(folder: Path) -> None:
    edit_config(folder, model_type="made_up", auto_map={"AutoConfig": "code.Config"})


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (truncate, "model.safetensors: was cut short"),
        (lengthen, "bytes behind its tensors"),
        (empty, "not a safetensors file"),
        (only_pickles, "pickled weights \\(pytorch_model.bin\\).*convert them once: neuroada convert"),
        (no_weights, "holds no weights"),
        (no_config, "no config.json"),
        (broken_config, "config.json:2: not valid JSON"),
        (list_config, "not a JSON object"),
        (is_adapter, "is an adapter, not a model"),
        (remote_code, "model.trust_remote_code"),
    ],
)
def test_damaged_folders_are_refused(folder: Path, damage, told: str) -> None:
    hub.resolve_model(str(folder))
    damage(folder)
    with pytest.raises(ModelError, match=told):
        hub.resolve_model(str(folder))


def test_native_models_with_auto_map_need_no_trust(folder: Path) -> None:
    edit_config(folder, auto_map={"AutoConfig": "code.Config"})
    assert hub.resolve_model(str(folder)) == folder
    assert type(hub.skeleton(folder, "causal-lm")).__name__ == "LlamaForCausalLM"


def test_missing_shard_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=f"{shard.name} is missing"):
        hub.resolve_model(str(sharded))


def test_truncated_shard_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ModelError, match=f"{shard.name}: was cut short"):
        hub.resolve_model(str(sharded))


@pytest.mark.parametrize("metadata", [None, "none"])
def test_an_index_without_metadata_is_named_where_transformers_needs_it(
    sharded: Path, metadata: str | None
) -> None:
    file = sharded / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    del index["metadata"]
    file.write_text(json.dumps(index | ({} if metadata is None else {"metadata": metadata})))
    with pytest.raises(ModelError) as caught:
        hub.load_model(sharded, "causal-lm", "fp32")
    told = f'{file}: has no metadata, without which transformers loads no model; add "metadata": {{}} to it'
    assert caught.value.line() == told
    file.write_text(json.dumps(index | {"metadata": {}}))
    assert not hub.load_model(sharded, "causal-lm", "fp32").fresh


@pytest.mark.parametrize("change", ["lost", "moved", "unlisted", "outside", "garbage"])
def test_index_and_shards_must_agree(sharded: Path, change: str) -> None:
    file = sharded / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    names = index["weight_map"]
    shards = list(names.values())
    first = next(name for name, shard in names.items() if shards.count(shard) > 1)
    other = next(shard for shard in shards if shard != names[first])
    if change == "lost":
        names["model.extra.weight"] = other
    elif change == "moved":
        names[first] = other
    elif change == "unlisted":
        del names[first]
    elif change == "outside":
        names[first] = "../model.safetensors"
    file.write_text("{" if change == "garbage" else json.dumps(index))
    with pytest.raises(ModelError, match="index"):
        hub.resolve_model(str(sharded))


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "Q4", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2]},
        {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 16]},
        {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]},
        "nothing",
    ],
)
def test_wrong_header_entries_name_the_tensor(tmp_path: Path, entry: object) -> None:
    text = json.dumps({"the.tensor": entry}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(ModelError, match=r"the.tensor"):
        hub.open_weights(tmp_path)


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 8, struct.pack("<Q", 1 << 60) + b"{}", struct.pack("<Q", 2) + b"[]",
     struct.pack("<Q", 2) + b"{", struct.pack("<Q", 4) + b"\xff\xfe{}",
     struct.pack("<Q", 40_000) + b"[" * 40_000,
     struct.pack("<Q", 14) + b'{"a":1, "a":1}'],
)  # fmt: skip
def test_wrong_headers_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match=r"model.safetensors"):
        hub.open_weights(tmp_path)


# -- the fingerprint


def test_fingerprint_ignores_sharding_and_place(folder: Path, sharded: Path) -> None:
    assert hub.fingerprint(folder) == hub.fingerprint(sharded)
    json.dumps(hub.fingerprint(folder))


def test_any_single_weight_of_a_small_model_changes_the_fingerprint(folder: Path) -> None:
    file = folder / "model.safetensors"
    before, tensors = hub.fingerprint(folder), load_file(file)
    for name in tensors:
        changed = {n: t.clone() for n, t in tensors.items()}
        changed[name].view(-1)[-1] += 1
        save_file(changed, file)
        assert hub.fingerprint(folder) != before, name


def test_fingerprint_samples_all_of_a_large_tensor(tmp_path: Path) -> None:
    edit = tmp_path / "config.json"
    edit.write_text("{}")
    weight = torch.zeros(1024, 1024)
    save_file({"w": weight}, tmp_path / "model.safetensors")
    prints = [hub.fingerprint(tmp_path)]
    for rows in (slice(0, 1), slice(1023, 1024), slice(400, 500)):
        changed = weight.clone()
        changed[rows] = 1
        save_file({"w": changed}, tmp_path / "model.safetensors")
        prints.append(hub.fingerprint(tmp_path))
    assert len({entry["content"] for entry in prints}) == 4
    assert len({entry["layout"] for entry in prints}) == 1


def test_fingerprint_tells_config_dtype_and_name_apart(folder: Path) -> None:
    before = hub.fingerprint(folder)
    edit_config(folder, transformers_version="0", torch_dtype="float16")
    assert hub.fingerprint(folder) == before
    edit_config(folder, rms_norm_eps=0.5)
    assert hub.fingerprint(folder)["config"] != before["config"]
    tensors = load_file(folder / "model.safetensors")
    save_file({n: t.bfloat16() for n, t in tensors.items()}, folder / "model.safetensors")
    assert hub.fingerprint(folder)["layout"] != before["layout"]


# -- loading


@pytest.mark.parametrize("kind", sorted(PICO_MODELS))
def test_skeleton_has_the_modules_of_the_model_and_no_memory(tmp_path: Path, kind: str) -> None:
    model = PICO_MODELS[kind]()
    model.save_pretrained(tmp_path)
    task = "sequence-classification" if kind == "bert" else "causal-lm"
    skeleton = hub.skeleton(tmp_path, task)
    assert [(n, type(m)) for n, m in skeleton.named_modules()] == [
        (n, type(m)) for n, m in model.named_modules()
    ]
    assert all(parameter.is_meta for parameter in skeleton.parameters())


def test_ties_are_seen_on_the_skeleton(tmp_path: Path) -> None:
    pico_llama(tied=True).save_pretrained(tmp_path)
    skeleton = hub.skeleton(tmp_path, "causal-lm")
    assert skeleton.lm_head.weight is skeleton.model.embed_tokens.weight


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_loading_rounds_and_nothing_else(folder: Path, name: str, dtype: torch.dtype) -> None:
    loaded = hub.load_model(folder, "causal-lm", name)
    expected = load_file(folder / "model.safetensors")
    assert loaded.fresh == []
    for parameter, tensor in loaded.model.named_parameters():
        assert torch.equal(tensor, expected[parameter].to(dtype))


def test_fresh_head_depends_on_the_seed_only(folder: Path) -> None:
    def head(seed: int) -> torch.Tensor:
        loaded = hub.load_model(folder, "sequence-classification", "fp32", num_labels=3, seed=seed)
        assert loaded.fresh == ["score.weight"]
        return loaded.model.score.weight.detach()

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = head(7)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's stream is not used up
    torch.manual_seed(2)
    assert torch.equal(head(7), first)
    assert not torch.equal(head(8), first)
    assert first.shape == (3, 32)


def test_head_for_another_number_of_labels_is_fresh(tmp_path: Path) -> None:
    pico_bert().save_pretrained(tmp_path)
    assert hub.load_model(tmp_path, "sequence-classification", "fp32").fresh == []
    loaded = hub.load_model(tmp_path, "sequence-classification", "fp32", num_labels=5)
    assert loaded.fresh == ["classifier.weight", "classifier.bias"]
    assert loaded.model.classifier.out_features == 5


def test_missing_pooler_and_head_are_fresh(tmp_path: Path) -> None:
    config = RobertaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    RobertaForMaskedLM(config).save_pretrained(tmp_path)
    loaded = hub.load_model(tmp_path, "sequence-classification", "fp32", num_labels=2)
    assert loaded.fresh == [
        f"classifier.{part}" for part in ("dense.weight", "dense.bias", "out_proj.weight", "out_proj.bias")
    ]


def test_a_weight_missing_in_the_body_is_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"model.layers.1.mlp.up_proj.weight is missing"):
        hub.load_model(folder, "causal-lm", "fp32")


def test_a_weight_of_another_shape_is_refused(folder: Path) -> None:
    edit_config(folder, intermediate_size=64)
    with pytest.raises(ModelError, match="another shape"):
        hub.load_model(folder, "causal-lm", "fp32")


def test_what_transformers_cannot_build_is_one_line(folder: Path) -> None:
    edit_config(folder, model_type="made_up")
    with pytest.raises(ModelError, match="cannot be loaded"):
        hub.skeleton(folder, "causal-lm")


def test_what_a_library_says_behind_its_first_line_is_told_where_that_only_announces_it(folder: Path) -> None:
    edit_config(folder, num_hidden_layers="two")
    with pytest.raises(ModelError, match=r"field 'num_hidden_layers': .*expected int.*'two'"):
        hub.skeleton(folder, "causal-lm")


def test_tokenizer_missing(folder: Path) -> None:
    with pytest.raises(ModelError, match="no tokenizer"):
        hub.load_tokenizer(folder)


def test_attention_that_needs_a_package(folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("flash attention may be installed where there is a GPU")
    with pytest.raises((ResourceError, ModelError)):
        hub.load_model(folder, "causal-lm", "bf16", attention="flash_attention_2")
    eager = hub.load_model(folder, "causal-lm", "fp32", attention="eager").model
    assert eager.config._attn_implementation == "eager"


def test_loading_is_silent(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    hub.load_model(folder, "sequence-classification", "bf16", num_labels=2)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("kind", "heads"), [("llama", ["lm_head"]), ("gpt2", ["lm_head"]), ("bert", ["classifier"])]
)
def test_heads_are_what_all_linear_leaves_out(kind: str, heads: list[str]) -> None:
    assert hub.default_exclude(PICO_MODELS[kind]()) == heads


# -- the hub


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", "no such model"])
def test_paths_that_do_not_exist(name: str) -> None:
    with pytest.raises(ModelError, match="no such model folder"):
        hub.resolve_model(name)


def test_a_file_is_not_a_model(folder: Path) -> None:
    with pytest.raises(ModelError, match="is a file"):
        hub.resolve_model(str(folder / "config.json"))


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "https://does-not-exist.invalid"])
def test_an_unreachable_hub_is_told_without_a_second_try(
    endpoint: str, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    tries, connect = [], socket.create_connection

    def counted(address: tuple[str, int], *given: object, **named: object) -> socket.socket:
        tries.append(address)
        return connect(address, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "create_connection", counted)
    with pytest.raises(ModelError, match=r"cannot be reached.*give a local folder") as caught:
        hub.resolve_model("somebody/some-model")
    assert (caught.value.exit_code, len(tries)) == (4, 1)


def test_a_hub_that_accepts_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener with a full queue never completes a connection: the probe ends by its own clock."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(address)
        monkeypatch.setattr(network, "PROBE_SECONDS", 0.3)
        assert not network.hub_answers(f"http://127.0.0.1:{address[1]}")
        for client in waiting:
            client.close()


def test_a_hub_that_accepts_and_never_answers_is_given_up(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs for ever where no timeout is given."""
    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(resolve, "ANSWER_SECONDS", 0.2)
        with pytest.raises(ModelError, match=r"the hub failed.*give a local folder"):
            hub.resolve_model("somebody/some-model")


def test_offline_uses_the_cached_snapshot(
    folder: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        hub.resolve_model("somebody/some-model")
    commit = "0" * 40
    repository = empty_cache / "models--somebody--some-model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    (repository / "snapshots").mkdir()
    folder.rename(repository / "snapshots" / commit)
    found = hub.resolve_model("somebody/some-model")
    assert found == repository / "snapshots" / commit
    AutoModelForCausalLM.from_pretrained(found)
