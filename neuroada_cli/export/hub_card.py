"""What the hub shows of a pushed folder: its card's metadata and results, and `.eval_results` files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from neuroada_cli import hub
from neuroada_cli.adapter.forgetting import NAME as FORGETTING
from neuroada_cli.show.numbers import counted, share
from neuroada_cli.tasks.task import BY_LOSS

RESULTS = "## Results"
# task -> (the hub's id of its data set, the part of it), where the hub has it
BENCHMARKS: dict[str, tuple[str, str]] = {
    "boolq": ("google/boolq", "default"),
    "piqa": ("ybisk/piqa", "plain_text"),
    "social_i_qa": ("allenai/social_i_qa", "default"),
    "hellaswag": ("Rowan/hellaswag", "default"),
    "winogrande": ("allenai/winogrande", "winogrande_xl"),
    "ARC-Easy": ("allenai/ai2_arc", "ARC-Easy"),
    "ARC-Challenge": ("allenai/ai2_arc", "ARC-Challenge"),
    "openbookqa": ("allenai/openbookqa", "main"),
    "gsm8k": ("openai/gsm8k", "main"),
    "AQuA": ("deepmind/aqua_rat", "raw"),
    "textvqa": ("lmms-lab/textvqa", "default"),
    **{
        name: ("nyu-mll/glue", name)
        for name in ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
    },
}


def card(
    text: str,
    name: str,
    base: str | None,
    relation: str,
    results: Mapping[str, Mapping[str, Any]],
    report: Mapping[str, Any] | None = None,
) -> str:
    """README.md as it is pushed: the folder's own card, perhaps its owner's words, with metadata and results.

    base      the base's hub id, if it has one;  relation  "adapter" or "finetune"
    results   task -> what `eval` kept of it
    report    what `merge` measured against the model as trained, of a quantised base
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    forgotten = results.get(FORGETTING)  # no task: rules of prompts and answers do not apply to it
    results = {task: entry for task, entry in results.items() if task != FORGETTING}
    found = ModelCard(text, ignore_metadata_errors=True)
    given = found.data.to_dict()
    given |= {"base_model": base, "base_model_relation": relation} if base else {}
    given.pop("model-index", None)
    if results:
        given |= {"model_name": name, "eval_results": [EvalResult(**each) for each in _index(results)]}
        given["metrics"] = sorted({str(entry["metric"]) for entry in results.values()})
    data = ModelCardData(**given)
    words = found.content.split("---\n", 2)[-1].partition(f"\n{RESULTS}\n")[0].rstrip("\n")
    parts = [f"---\n{data.to_yaml()}\n---\n\n{words.lstrip()}\n"]
    if results or report or forgotten:
        parts.append(f"\n{RESULTS}\n")
    if results:
        parts.append(f"\n{_table(results)}\n")
    if forgotten:
        parts.append(f"\n{_forgetting(forgotten)}\n")
    if report:
        parts.append(
            f"\nMerge error: against the model as trained on its quantised base ({report['rows']} rows), "
            f"logits differ by {report['mean_difference']:.3g} on average (their spread is "
            f"{report['logit_spread']:.3g}); the first choice is the same at "
            f"{report['same_first_choice']:.1%} of positions.\n"
        )
    return "".join(parts)


def eval_results(results: Mapping[str, Mapping[str, Any]]) -> dict[str, bytes]:
    """`.eval_results/TASK.yaml` for every task whose data set is on the hub, scored on all of its rows."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    found = {}
    for task, entry in results.items():
        if task in BENCHMARKS and not entry["data"].get("rows"):
            dataset, part = BENCHMARKS[task]
            told = EvalResultEntry(dataset, part, round(entry["score"], 6), notes=_notes(entry))
            text = yaml.safe_dump(eval_result_entries_to_yaml([told]), sort_keys=False, allow_unicode=True)
            found[f".eval_results/{task}.yaml"] = text.encode()
    return found


def _index(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For the card's `model-index`."""
    return [
        {
            "task_type": "text-classification" if entry["max_length"] else "text-generation",
            "dataset_type": BENCHMARKS.get(task, (task, ""))[0],
            "dataset_name": task,
            "dataset_config": BENCHMARKS.get(task, (task, None))[1],
            "metric_type": entry["metric"],
            "metric_value": round(entry["score"], 6),
            "metric_name": _notes(entry),
        }
        for task, entry in results.items()
    ]


def _notes(entry: Mapping[str, Any]) -> str:
    """Under which rules a score was made."""
    parts = [f"{entry['metric']}, protocol {entry['protocol']}", counted(int(entry["n"]), "row")]
    parts += [f"loss on {entry['loss_mask']}"] if entry.get("loss_mask") else []
    parts += [str(entry["decoding"])] if entry.get("decoding") else []
    return ", ".join([*parts, str(entry["dtype"])])


def _table(results: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        "| task | score | metric | rows | no answer found | protocol | data |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {task} | {_score(entry)} | {entry['protocol']} | sha256 `{entry['data']['sha256'][:12]}` |"
        for task, entry in results.items()
    ]
    return "\n".join(lines)


def _score(entry: Mapping[str, Any]) -> str:
    """The cells from the score to the rows without an answer; a share in %, a perplexity as it is."""
    by_loss = entry["metric"] in BY_LOSS
    score = f"{entry['score']:.3f}" if by_loss else f"{100 * entry['score']:.2f}"
    unanswered = "" if by_loss else share(entry["unparsed"], entry["n"])
    return f"{score} | {entry['metric']} | {entry['n']} | {unanswered}"


def _forgetting(entry: Mapping[str, Any]) -> str:
    told, data = entry["metrics"], entry["data"]
    rows = f"{counted(int(entry['n']), 'row')} of {data['source']}, sha256 `{data['sha256'][:12]}`"
    before, after = f"{told['loss_before']:.4f}", f"{told['loss_after']:.4f}"
    return f"On general text ({rows}) the loss per token is {after}; the base's is {before}."


def base_id(base: str) -> str | None:
    """A base as others can look it up; None for a folder of one machine."""
    return base if hub.is_hub_id(base) else None
