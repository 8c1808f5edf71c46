"""The model as lm-evaluation-harness asks it, which counts the prompts that it cuts to the model's length.

The harness cuts them from the left and goes on. The arithmetic stays its own (`HFLM`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from neuroada_cli.errors import DataError

WARNED = (
    "sequence-length-is-longer-than-the-specified-maximum"  # transformers' key of a warning that was given
)
FIX = "choose other tasks, or a model that takes more"
# What a model's generation_config.json may hold that changes the most likely text, and the value that does
# nothing. How it draws (temperature, top_p) is not among them: the harness says itself whether to draw.
SHAPING: dict[str, Any] = {
    "max_new_tokens": None, "min_new_tokens": 0, "min_length": 0, "num_beams": 1, "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0,
    "length_penalty": 1.0, "exponential_decay_length_penalty": None, "bad_words_ids": None,
    "sequence_bias": None, "suppress_tokens": None, "begin_suppress_tokens": None, "guidance_scale": 1.0,
    "forced_eos_token_id": None, "stop_strings": None,
}  # fmt: skip


def shaping_settings(model: nn.Module) -> dict[str, Any]:
    """Settings of the model's own under which the harness lets it write: `generate` takes from them what a
    task's `generation_kwargs` leave open, and the most tokens in any case. The scores are comparable with
    others made by the harness with transformers, and not with those of engines that do not read the file.
    """
    found = {key: getattr(model.generation_config, key, None) for key in SHAPING}
    return {key: value for key, value in found.items() if value not in (None, [], SHAPING[key])}


def counting_model(model: nn.Module, tokenizer: Any, batch_size: int) -> Any:
    """An HFLM with `cut`: (task, row) of every prompt that was cut.

    Raises DataError, while it is asked, for answers that alone are longer than what the model takes.
    """
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import normalize_gen_kwargs

    class Counting(HFLM):  # type: ignore[misc]
        def __init__(self) -> None:
            self.cut: set[tuple[str, int]] = set()
            self._asked: Sequence[Any] = ()
            self._long: set[str] = set()
            super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
            # it says that the model will fail, which does not see what is too long
            self.tokenizer.deprecation_warnings[WARNED] = True

        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> Any:
            self._asked = requests
            try:
                return super().loglikelihood(requests, disable_tqdm)
            finally:
                self._asked = ()

        def _loglikelihood_tokens(self, requests: Sequence[Any], *args: Any, **options: Any) -> Any:
            """Nothing is cut of texts that are scored as a whole, in windows."""
            for asked, (_, prompt, answer) in zip(self._asked, requests, strict=False):
                self._refuse_longer(asked.task_name, len(answer), self.max_length)
                if self.backend == "causal":
                    over = len(prompt) + len(answer) - 1 > self.max_length  # the last token is not read
                else:
                    over = len(prompt) > self.max_length
                if over:
                    self.cut.add((asked.task_name, asked.doc_id))
            return super()._loglikelihood_tokens(requests, *args, **options)

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> Any:
            if self.backend == "causal":
                for asked in requests:
                    most = normalize_gen_kwargs(asked.args[1], self.max_gen_toks)["max_gen_toks"]
                    self._refuse_longer(asked.task_name, most, self.max_length - 1)
            self._long.clear()
            found = super().generate_until(requests, disable_tqdm)
            self.cut |= {(asked.task_name, asked.doc_id) for asked in requests if asked.args[0] in self._long}
            return found

        def tok_batch_encode(
            self,
            strings: list[str],
            padding_side: str = "left",
            left_truncate_len: int | None = None,
            truncation: bool = False,
        ) -> Any:
            tokens_BS, mask_BS = super().tok_batch_encode(strings, padding_side, None, truncation)
            if left_truncate_len:
                lengths = mask_BS.sum(dim=1).tolist()
                self._long |= {s for s, n in zip(strings, lengths, strict=True) if n > left_truncate_len}
                tokens_BS, mask_BS = tokens_BS[:, -left_truncate_len:], mask_BS[:, -left_truncate_len:]
            return tokens_BS, mask_BS

        @staticmethod
        def _refuse_longer(task: str, answer: int, most: int) -> None:
            if answer > most:
                raise DataError(
                    f"an answer of up to {answer} tokens leaves a model that takes {most} no prompt",
                    f"--harness {task}",
                    FIX,
                )

    return Counting()
