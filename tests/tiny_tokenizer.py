"""A byte-level tokenizer made in the test: every text has tokens, and every count can be worked out."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

UNK, BOS, EOS = 0, 1, 2
SPECIAL = ["<unk>", "<s>", "</s>"]
SIZE = 259  # three special tokens and 256 bytes


def byte_tokenizer(
    bos: bool = True, eos: bool = False, pairs: bool = False, **special: str | None
) -> PreTrainedTokenizerFast:
    """One token per byte; bos, eos: what it puts around a text; pairs: sentence pairs with type ids."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    single = ["<s>"] * bos + ["$A"] + ["</s>"] * eos
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(single),
        pair="<s> $A </s> $B:1 </s>:1" if pairs else None,
        special_tokens=[("<s>", BOS), ("</s>", EOS)],
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | special
    inputs = ["input_ids", "attention_mask"] + (["token_type_ids"] if pairs else [])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names)
