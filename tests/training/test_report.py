"""report.html: one file without anything from elsewhere, true to the run, safe with hostile rows."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_run import one_thread, tiny_llama_folder, tiny_recipe  # noqa: F401

from neuroada_cli.adapter.folder import read_adapter
from neuroada_cli.commands import eval as eval_command
from neuroada_cli.commands import train
from neuroada_cli.show import page as report_page
from neuroada_cli.training.report import sizes_of

HOSTILE = "</td><script>alert(1)</script><img src='http://x.test/p'>"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on own rows, one of them hostile, and its evaluation."""
    folder = tmp_path_factory.mktemp("reported")
    rows = [{"prompt": f"{n} {HOSTILE}", "completion": str(n)} for n in range(20)]
    (folder / "rows.json").write_text(json.dumps(rows))
    recipe = tiny_recipe(
        tiny_llama_folder(folder / "model"),
        folder / "run",
        data={"task": "instruct", "train": str(folder / "rows.json"), "validation_rows": 4,
              "limit": None, "validation_limit": None},
        train={"max_steps": 5, "eval_every": 2},
        eval={"max_new_tokens": 4},
    )  # fmt: skip
    train.run(recipe, quiet=True)
    eval_command.run(str(recipe.run_path), quiet=True)
    return recipe.run_path


def pages(run_dir: Path) -> list[Path]:
    return [run_dir / "report.html", run_dir / "eval" / "report.html"]


def test_nothing_comes_from_elsewhere_and_rows_are_text(run_dir: Path) -> None:
    for file in pages(run_dir):
        text = file.read_text(encoding="utf-8")
        assert "default-src 'none'" in text
        found = re.findall(r"""(?:src|href)=["'](?!#|data:)([^"']*)""", text)
        assert all((file.parent / each).resolve() in map(Path.resolve, pages(run_dir)) for each in found)
        assert not re.findall(r"url\((?!#)[^)]*\)", text)
        assert "<script" not in text
        assert "<img" not in text
    assert html.escape(HOSTILE) in pages(run_dir)[1].read_text(encoding="utf-8")


def test_run_and_scores_lead_to_each_other(run_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "run", symlinks=True)
    run, scores = (page.read_text(encoding="utf-8") for page in pages(copy))
    assert run.count('<a href="eval/report.html">Scores</a>') == 1
    assert scores.count('<a href="../report.html">The training run</a>') == 1
    again = report_page.with_link(run, "eval/report.html", "Scores")
    assert again == run
    other = report_page.with_link(run, "merged/eval/report.html", "Scores of merged")
    assert '<a href="merged/eval/report.html">Scores of merged</a>' in other


def test_the_run_is_told(run_dir: Path) -> None:
    text = pages(run_dir)[0].read_text(encoding="utf-8")
    log = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [entry for entry in log if entry["kind"] == "train"]
    assert f"<b>{steps[-1]['loss']:.4f}</b><span>loss of the last step" in text
    for entry in log:
        if entry["kind"] == "eval":
            assert f">{entry['loss']:.4f}</td>" in text
    assert text.count("<svg") == 2
    for said in ("q_proj", "gradient norm", "validation loss", "max_steps: 5", "loss on target only"):
        assert said in text
    scored = json.loads((run_dir / "eval" / "results.json").read_text())["instruct"]
    text = pages(run_dir)[1].read_text(encoding="utf-8")
    assert f"<td class=number>{100 * scored['score']:.1f}</td>" in text
    assert scored["data"]["sha256"] in text
    rows = [
        json.loads(line) for line in (run_dir / "eval/predictions/instruct.jsonl").read_text().splitlines()
    ]
    wrong = sum(not row["correct"] for row in rows)
    assert f"{wrong:,} of {len(rows)} rows are wrong" in text


def test_sizes_are_of_the_deltas_that_are_connections(run_dir: Path) -> None:
    adapter = read_adapter(run_dir / "best")
    found = sizes_of(adapter)
    for name, value_OK in adapter.deltas.items():
        index_N = adapter.selection.indices[name].flatten()
        kept = [v for v, i in zip(value_OK.flatten(), index_N, strict=True) if i >= 0]
        assert found[name] == pytest.approx(float(torch.stack(kept).double().square().mean().sqrt()))
    assert found


def test_a_new_run_takes_the_old_ones_report_away(run_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "run", symlinks=True)
    from neuroada_cli.training import folder

    folder.clear(copy)
    assert not (copy / "report.html").exists()


MEASURE = """<!doctype html><iframe id=f src="{page}" style="width:360px;height:900px;border:0"></iframe>
<script>onload = () => {{ const d = document.getElementById("f").contentDocument.documentElement;
document.title = [d.scrollWidth, d.clientWidth, d.querySelectorAll("figure svg").length].join(" "); }}
</script>"""


@pytest.mark.slow
def test_a_browser_shows_it_on_a_phone_and_in_the_dark(run_dir: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    base = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]

    def go(*words: str) -> str:
        done = subprocess.run([*base, *words], capture_output=True, text=True, timeout=120, check=True)
        return done.stdout

    for place, file in enumerate(pages(run_dir)):
        (tmp_path / "m.html").write_text(MEASURE.format(page=file.as_uri()))
        dom = go("--allow-file-access-from-files", "--dump-dom", (tmp_path / "m.html").as_uri())
        measured = re.search(r"<title>(\d+) (\d+) (\d+)</title>", dom)
        assert measured is not None, dom
        wide, shown, drawings = map(int, measured.groups())
        assert wide == shown == 360, "the page does not scroll sideways on a phone"
        assert drawings == (2 if place == 0 else 0)
        brightness = {}
        for scheme, number in (("light", 1), ("dark", 0)):
            shot = tmp_path / f"{scheme}.png"
            setting = f"--blink-settings=preferredColorScheme={number}"
            go(setting, "--window-size=800,1200", f"--screenshot={shot}", file.as_uri())
            picture = Image.open(shot).convert("L")
            brightness[scheme] = picture.getpixel((2, 2))
            darkest, lightest = picture.getextrema()
            assert lightest - darkest > 150, "words stand out from the page"
        assert brightness["light"] > 200 > 60 > brightness["dark"]
