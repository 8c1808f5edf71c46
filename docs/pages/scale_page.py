"""docs/scale.md: how a run over several processes scales, and what became of runs of one, from scale.json and
one_process.json in benchmarks/results/.
"""

# ruff: noqa: E501  (prose)

from __future__ import annotations

from typing import Any

from performance_page import load, machine_line, markdown

from neuroada_cli.show.numbers import size

COMMAND = "python benchmarks/scale.py"

INTRO = """# How it scales

<!-- written by `make docs` from benchmarks/results/scale.json and one_process.json; edit docs/pages/scale_page.py instead -->

The same recipe runs in one process or in many. Losses are those of one process up to the order in which fp32 is
summed, the selection is the same bit for bit, and the adapter folder is the same files.

```
neuroada train my.yaml --dry-run --processes 32            # memory and messages of each, before any of it
neuroada train my.yaml --processes 8                       # gpu: one machine with eight of them
torchrun --nproc-per-node 8 -m neuroada_cli train my.yaml  # gpu: the same, started by hand
neuroada eval runs/my --processes 8                        # gpu: rows are dealt out, results are one process's

# four machines: the same line on each of them, HOST being one of the four
torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 --rdzv-id RUN \\
    -m neuroada_cli train my.yaml                          # gpu: eight on each of the four
```

All machines need the model, the data and the run's folder under the same paths, on a shared disk; process 0 writes, the others are
silent. `--resume` takes any number of processes, and `merge` needs none of them.

**Stopping.** A signal to any process, or to the command that started them, stops all of them after the same step, with a
checkpoint, one line and 143 (SIGTERM) or 130 (Ctrl-C). torchrun itself, where it was started by hand, ends with a
traceback of its own and exit code 1 whatever its processes made of the signal, and kills them after 30 s: for models
whose step takes longer, give it `--shutdown-timeout 600`. When a process dies, all others end with exit code 8
([how soon](reliability.md)).

## Two ways

`train.parallel: auto` takes the first where the predicted memory fits nine tenths of the device, else the second,
and says which.

| | `replicate` | `shard` |
|---|---|---|
| every process holds | the whole model | its share of every layer's rows (FSDP2): weights, deltas, moments |
| what is sent per step | the gradients of the deltas, [O, K]: with K=1 of LLaMA-7B 0.02 % of full training's | the rows of every block, before its forward and its backward pass |
| grows with more processes | nothing | nothing: its share shrinks |
| takes | every method | `neuroada`, linear layers, also in nf4 and int8 |

What a process needs in the sharded case is the sum of

- **weights and state**: 1/N of the model, and of deltas, places and moments;
- **gathered**: two blocks put together while they are at work. It does not shrink with N: with enough processes it
  is most of what is left;
- **activations**: of its own micro-batch. They grow with rows times tokens; with gradient checkpointing by one
  hidden state per block and token, without it by every layer's inputs.

More layers add weights and messages in proportion, and nothing to what is gathered; a larger K adds 22 bytes per
connection (24 over nf4), divided by N.
"""

LIMITS = """
## Where it stops

- **torch 2.11** shards no tensors of whole numbers, which places and packed weights are: `shard` needs 2.12. `auto`
  and the dry run say so and replicate.
- **Experts that share one tensor** (Mixtral, Qwen-MoE) are frozen in `shard`: FSDP2 cuts a tensor along its first
  dimension, which is the expert there, so neurons of one expert would lie on one process. A recipe that selects them
  is refused by name; attention and everything else trains.
- **FSDP2 fills rows up**: a tensor of 8 experts over 32 processes is cut into pieces of one expert, and 24 of the
  32 have padding in its place, which is sent like the rest. The process with the most rows holds an eighth, not a
  thirty-second: see Mixtral's rows above, whose weights hardly shrink from 8 to 32 processes and whose messages grow
  fourfold. Take as many processes as there are experts, or `replicate` in nf4.
- **GPT-2's transposed layers** need a number of neurons that the processes divide.
- **Small batches**: a step is cut into at least one micro-batch per process. With fewer rows than processes
  (`train.batch_size: 8` on 32 of them) some never have one: with whole models that is refused, with shares of them
  it is said, and they hold their share, send and receive. A larger batch gives them work.
- **The slowest link**: all of the column "sent" passes it in every step. Gradient accumulation (`batch_size` above
  `micro_batch_size` times processes) sends the blocks again for every micro-batch.
"""


def page() -> str:
    result = load("scale")
    return INTRO + _predicted(result) + LIMITS + _checked(result) + _one_process(load("one_process")["pairs"])


def _predicted(result: dict[str, Any]) -> str:
    cells = [
        [
            f"{row['model']}, {row['quantization'] or row['dtype']}",
            f"{row['processes']} x {row['memory_bytes'] / 1e9:.0f} GB",
            *(size(row[name]) for name in ("weights", "state", "gathered", "activations")),
            f"**{size(row['peak'])}**",
            "fits" if row["fits"] else "too much",
            size(row["sent"]),
        ]
        for row in result["predicted"]
    ]
    first = result["predicted"][0]
    headings = [
        "model",
        "devices",
        "weights",
        "state",
        "gathered",
        "activations",
        "peak",
        "",
        "sent per step",
    ]
    return (
        f"\n## Predicted\n\nOf each process, K={first['k']}, micro-batches of {first['rows']} x {first['tokens']} tokens, gradient "
        "checkpointing; from the models' shapes alone. The last device column is what `auto` would say: nine tenths "
        "of the memory have to be enough. 32 processes are four machines of eight.\n\n"
        f"{markdown(headings, cells)}"
        f"{machine_line(result['machine'], COMMAND)}"
    )


def _checked(result: dict[str, Any]) -> str:
    cells = [
        [
            f"{row['blocks']} blocks, {row['quantization'] or row['dtype']}, K={row['k']}"
            + (", checkpointing" if row["gradient_checkpointing"] else ""),
            str(row["processes"]),
            size(row["peak_predicted"]),
            size(row["peak_measured"]),
            f"{100 * (row['peak_predicted'] / row['peak_measured'] - 1):+.1f} %",
            "equal" if row["sent_predicted"] == row["sent_measured"] else "differs",
        ]
        for row in result["checked"]
    ]
    headings = ["model of the same make", "processes", "predicted", "measured", "off by", "bytes sent"]
    return (
        "\n## Checked\n\nThe same prediction beside small models that really trained here, cut in depth, in 2 and 4 "
        "processes over gloo: peak of live tensor bytes of the first process, and every byte handed to a collective.\n\n"
        f"{markdown(headings, cells)}"
    )


def _one_process(pairs: list[dict[str, Any]]) -> str:
    """Runs of one process by pairs of commits, of which the first is around the coming of several."""
    runs = [row["run"] for row in pairs[0]["rows"]]
    rows = {name: [row for pair in pairs for row in pair["rows"] if row["run"] == name] for name in runs}
    cells = [
        [
            name,
            f"{found[0]['step_ms_before']:,.0f} ms",
            *(cell for row in found for cell in (f"{row['ratio']:.2f}", _same(row["differs"]))),
        ]
        for name, found in rows.items()
    ]
    spans = [f"{pair['before']['commit']} to {pair['after']['commit']}" for pair in pairs]
    headings = ["training", "step before", *(cell for span in spans for cell in (span, "files"))]
    rounds = pairs[0]["rows"][0]["rounds"]
    return (
        "\n## What one process lost to it\n\nThe same trainings in one process by the commit before several came "
        f"(`{pairs[0]['before']['commit']}`), by the one that completed them (`{pairs[0]['after']['commit']}`)"
        f"{_until_now(pairs)}, merged and compared bit for bit: losses, gradient norms and learning rates "
        "of the log, selection, adapter, the optimizer's state, the merged weights. stories260K in fp32 where nothing else is "
        f"said, 20 steps of 4 rows (SmolLM2: 6); one goes on from its checkpoint of step 10. Step times are of the processor, after over before, the middle of {rounds} rounds in "
        "which the commits take turns; on a machine that others use they vary by a tenth and more where a step takes "
        f"milliseconds, so look at the last row.\n\n{markdown(headings, cells)}"
        + machine_line(pairs[-1]["machine"], "python benchmarks/one_process.py")
    )


def _same(differs: list[str]) -> str:
    return f"differ: {', '.join(differs)}" if differs else "the same bits"


def _until_now(pairs: list[dict[str, Any]]) -> str:
    if len(pairs) == 1:
        return ""
    return f", and by a later one (`{pairs[1]['after']['commit']}`), whose kernels sum in another order on purpose"
