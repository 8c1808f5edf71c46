"""What to write instead of an option that a command does not have."""

from __future__ import annotations

from typing import Any

from neuroada_cli.errors import RecipeError, nearest

# what other tools call it -> the recipe's key, or an option of ours
ELSEWHERE = {
    "learning_rate": "optim.lr",
    "lr_scheduler_type": "optim.schedule",
    "num_train_epochs": "train.epochs",
    "per_device_train_batch_size": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.batch_size",
    "max_seq_length": "data.max_length",
    "max_seq_len": "data.max_length",
    "cutoff_len": "data.max_length",
    "load_in_4bit": "model.quantization",
    "model_name_or_path": "--model",
    "base_model": "--model",
    "dataset": "--data",
    "output_dir": "--out",
    "output": "--out",
}


def explained(error: BaseException) -> BaseException:
    """A usage error of an unknown option as one that says what is meant; any other as it is."""
    name = getattr(error, "option_name", None)
    context: Any = getattr(error, "ctx", None)
    if type(error).__name__ != "NoSuchOption" or not isinstance(name, str) or context is None:
        return error
    word = name.lstrip("-").replace("-", "_")
    options = [opt for each in context.command.params for opt in each.opts if opt.startswith("--")]
    fix = f"see `{context.command_path} --help`"
    key = _key(word)
    if key is not None and key in options:
        fix = f"it is {key} here"
    elif key is not None and not key.startswith("--") and "--set" in options:
        fix = f"a recipe's keys are set by --set {key}=VALUE"
    elif close := nearest(name, options, "", cutoff=0.75):
        fix = close
    return RecipeError("no such option", name, fix)


def _key(word: str) -> str | None:
    """The recipe's key that a word names, also by its last part alone where that is one key's."""
    from neuroada_cli.recipe.keys import all_keys

    keys = list(all_keys())
    if word in ELSEWHERE or word in keys:
        return ELSEWHERE.get(word, word)
    found = [key for key in keys if key.rpartition(".")[2] == word]
    return found[0] if len(found) == 1 or (found and word == "batch_size") else None
