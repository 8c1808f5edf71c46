"""Pictures: opened strictly, counted with file and line, and never followed to where a stranger points."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from neuroada_cli.data import images
from neuroada_cli.data.images import Picture, decoded, opened, pictures_in
from neuroada_cli.data.made_pictures import LABELS, QUESTIONS, make_pictures
from neuroada_cli.data.sources import load_rows
from neuroada_cli.errors import DataError
from neuroada_cli.tasks.pictures import with_labels
from neuroada_cli.tasks.registry import get_task
from neuroada_cli.tasks.task import examples_of

PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def encoded(form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(PIXELS).save(out, format=form, **options)
    return out.getvalue()


def picture(value: bytes | str, root: Path | None = None) -> Picture:
    return Picture(value, root, "rows.jsonl:7")


def test_bytes_and_files_give_the_same_pixels(tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(encoded())
    for found in (
        picture(encoded()),
        picture("a b.png", tmp_path),
        picture(str(tmp_path / "a b.png"), tmp_path),
    ):
        assert np.array_equal(np.asarray(found.open()), PIXELS)


@pytest.mark.parametrize("form", images.FORMATS)
def test_every_format_is_read_as_rgb(form: str) -> None:
    found = decoded(encoded(form))
    assert (found.mode, found.size) == ("RGB", (6, 4))


def test_a_camera_held_upright_is_believed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    assert decoded(encoded("PNG", exif=exif)).size == (4, 6)


def of_mode(mode: str) -> bytes:
    out = io.BytesIO()
    Image.new(mode, (2, 2)).save(out, format="TIFF" if mode == "F" else "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"no picture", "image is none of PNG, JPEG"),
        (encoded()[:60], "image is broken"),
        (encoded("JPEG")[:-200], "image is broken"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image is none of"),
        (encoded("PPM"), "image is none of"),
        (of_mode("I;16"), "mode I;16; save it with 8 bits"),
        (of_mode("F"), "mode F; save it with 8 bits"),
    ],
)
def test_what_is_no_whole_picture_is_told(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        decoded(data)


def test_a_huge_picture_is_told_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MOST_PIXELS", 20)
    with pytest.raises(ValueError, match="6 x 4 pixels, more than can be meant"):
        decoded(encoded())
    monkeypatch.setattr(images, "MOST_BYTES", 20)
    with pytest.raises(ValueError, match="image is larger than"):
        picture(encoded()).data()


def test_rows_from_elsewhere_bring_their_pictures_or_none() -> None:
    """They would choose which files of this machine are opened, and whom it asks."""
    for value, kind in (("/etc/hostname", "a path"), ("https://example.org/a.png", "an address")):
        with pytest.raises(ValueError, match=f"image is {kind}, .* rows from elsewhere cannot have followed"):
            picture(value).data()


def test_an_address_with_secrets_is_not_fetched(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a user name, a password or a query"):
        picture("https://me:secret@example.org/a.png", tmp_path).data()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    handler.func.log_message = lambda *_: None  # type: ignore[method-assign,assignment,attr-defined]
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", folder
    httpd.shutdown()
    httpd.server_close()


def test_own_rows_have_addresses_fetched_once(
    tmp_path: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEUROADA_CACHE", str(tmp_path / "cache"))
    address, folder = server
    (folder / "a.png").write_bytes(encoded())
    for _ in range(2):
        assert picture(f"{address}/a.png", tmp_path).data() == encoded()
        (folder / "a.png").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="cannot be fetched"):
        picture(f"{address}/b.png", tmp_path).data()
    assert len(list((tmp_path / "cache" / "pictures").iterdir())) == 1


# ---------------------------------------------------------------------------------------------------
# Rows


def test_bad_pictures_are_counted_with_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(encoded())
    (tmp_path / "bad.png").write_bytes(encoded()[:50])
    names = ["good.png", "bad.png", "missing.png", "good.png"]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"image": n, "label": "cat"}) + "\n\n" for n in names))
    rows = load_rows(str(file), "train")
    task = with_labels(get_task("image_classes"), ["cat", "dog"])
    examples = examples_of(task, rows.rows, "reft", rows.source, rows.lines)
    with pytest.raises(DataError, match=r"rows.jsonl:3: image is broken.*\(2 of 4 pictures are bad\)"):
        opened([p for e in examples for p in e.pictures], lambda *_: None)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"label": "cat"}, "has no field 'image'"),
        ({"image": 3, "label": "cat"}, "image is int, not bytes, a path or an address"),
        ({"image": "", "label": "cat"}, "image is str, not bytes"),
        ({"image": {"bytes": None, "path": None}, "label": "cat"}, "image is NoneType"),
        ({"image": b"x", "label": "cow"}, "label 'cow' is none of the 2"),
        ({"image": b"x", "label": 2}, r"label 2 is outside 0\.\.1"),
        ({"image": b"x", "label": 0.5}, "label is float, not a name or a number"),
    ],
)
def test_rows_that_cannot_be_used_are_told(row: dict[str, Any], said: str) -> None:
    task = with_labels(get_task("image_classes"), ["cat", "dog"])
    with pytest.raises(DataError, match=rf"f.jsonl:4: .*{said}.*\(2 of 2 rows are bad\)"):
        examples_of(task, [row, row], "reft", "f.jsonl", [4, 5])


def test_parquet_holds_bytes_as_the_hub_writes_them(tmp_path: Path) -> None:
    table = pa.table({"image": [{"bytes": encoded(), "path": "a.png"}, {"bytes": encoded(), "path": None}],
                      "label": [1, 0]})  # fmt: skip
    pq.write_table(table, tmp_path / "train.parquet")
    rows = load_rows(str(tmp_path / "train.parquet"), "train")
    assert [pictures_in(row) for row in rows.rows] == [(encoded(),)] * 2
    other = pa.table({"image": [encoded(), encoded()], "label": [1, 0]})
    pq.write_table(other, tmp_path / "plain.parquet")
    plain = load_rows(str(tmp_path / "plain.parquet"), "train")
    assert [pictures_in(row) for row in plain.rows] == [(encoded(),)] * 2
    assert plain.sha256 != rows.sha256 == load_rows(str(tmp_path / "train.parquet"), "train").sha256


def test_class_folders_are_rows(tmp_path: Path) -> None:
    for name in ("train/cat/1.png", "train/cat/2.JPG", "train/dog/1.png", "test/dog/9.png", "train/dog/.x"):
        file = tmp_path / "pets" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded())
    rows = load_rows(str(tmp_path / "pets"), "train")
    assert rows.rows == [
        {"image": "cat/1.png", "label": "cat"},
        {"image": "cat/2.JPG", "label": "cat"},
        {"image": "dog/1.png", "label": "dog"},
    ]
    assert len(load_rows(f"{tmp_path}/pets:test", "train")) == 1
    assert load_rows(str(tmp_path / "pets" / "train"), "train").rows == rows.rows
    assert load_rows("pets", "train", tmp_path).label == "pets/train"
    with pytest.raises(DataError, match=r"has no split validation \(it holds test, train\)"):
        load_rows(str(tmp_path / "pets"), "validation")
    (tmp_path / "pets/train/cat/notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"notes\.txt: 1 entries of the class folders are no pictures"):
        load_rows(str(tmp_path / "pets"), "train")
    task = with_labels(get_task("image_classes"), ["cat", "dog"])
    examples = examples_of(task, rows.rows, "reft", rows.source)
    assert [(e.answer, e.pictures[0].data()) for e in examples] == [(n, encoded()) for n in (0, 0, 1)]


def test_made_pictures_are_the_same_for_the_same_seed_and_hold_what_they_say() -> None:
    first = make_pictures("train", 30)
    assert first == make_pictures("train", 30)
    assert first != make_pictures("train", 30, seed=1) != make_pictures("test", 30)
    colours = {"red": 0, "green": 1, "blue": 2}
    for row in first:
        colour, _, shape = row["label"].partition(" ")
        assert row["label"] in LABELS
        assert row["answer"] == (colour if row["question"] == QUESTIONS["colour"] else shape)
        pixels = np.asarray(decoded(row["image"])).astype(int)
        bright = pixels[pixels.max(axis=2) > 100]
        assert len(bright) > 20
        assert bright.mean(axis=0).argmax() == colours[colour]
