"""Pictures of rows: files beside the rows, bytes in them, or addresses; opened strictly.

A path is looked for beside the file that holds the row, and an address is fetched, only where that file lies
on this machine: rows from elsewhere bring their pictures as bytes, or they would choose what is read and
fetched here. What is fetched is kept in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroada_cli.data.fetching import fetched
from neuroada_cli.data.formats import Row
from neuroada_cli.errors import DataError, ResourceError, UserError
from neuroada_cli.foreign_text import HAS_SECRETS, has_secrets

if TYPE_CHECKING:
    from PIL.Image import Image

# Decoders that a file may ask for; Pillow knows many more, which rows have no need of.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Modes of 8 bits per value: what turns into RGB without losing anything but an alpha channel.
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
MOST_BYTES, MOST_PIXELS = 64 << 20, 1 << 26
ADDRESS = ("https://", "http://")


@dataclass(frozen=True)
class Picture:
    """One picture of a row, not opened yet.

    value  its bytes, its path or its address, as the row has it
    root   the folder of the file that holds the row; None: the row came from elsewhere
    place  of the row, for errors
    """

    value: bytes | str
    root: Path | None
    place: str

    def data(self) -> bytes:
        """Its bytes. Raises ValueError, told in a line, for what cannot be had or may not be."""
        if isinstance(self.value, bytes):
            return _within(self.value)
        name = self.value
        if self.root is None:
            kind = "an address" if name.startswith(ADDRESS) else "a path"
            raise ValueError(
                f"image is {kind}, {name[:80]!r}, which rows from elsewhere cannot have followed here"
            )
        if name.startswith(ADDRESS):
            if has_secrets(name):
                raise ValueError(f"image {HAS_SECRETS}")
            try:
                return _within(fetched(name, "pictures").read_bytes())
            except DataError as error:
                raise ValueError(str(error)) from None
        file = self.root / Path(name).expanduser()
        try:
            if file.stat().st_size > MOST_BYTES:
                raise ValueError(f"image {name[:80]} is larger than {MOST_BYTES >> 20} MiB")
            return file.read_bytes()
        except OSError as error:
            raise ValueError(f"image {name[:80]} cannot be read: {error.strerror}") from None

    def open(self) -> Image:
        """RGB, turned the way its camera was held. Raises ValueError for what is no whole picture."""
        return decoded(self.data())


def decoded(data: bytes) -> Image:
    """A picture as RGB. Raises ValueError for bytes that are none, or are cut short, huge, or of 16 bits."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as found:
            if found.width * found.height > MOST_PIXELS:
                raise ValueError(f"image has {found.width} x {found.height} pixels, more than can be meant")
            if found.mode not in MODES:
                raise ValueError(f"image has values of mode {found.mode}; save it with 8 bits per value")
            found.load()
            rgb = ImageOps.exif_transpose(found).convert("RGB")
        with Image.open(io.BytesIO(data), formats=FORMATS) as again:
            again.verify()  # of a PNG its check sums, which loading lets pass at the end of a file
        return rgb
    except UnidentifiedImageError:
        raise ValueError(f"image is none of {', '.join(FORMATS)}") from None
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"image is broken: {(str(error).splitlines() or ['no whole picture'])[0]}") from None


def pictures_in(row: Row, key: str = "image") -> tuple[bytes | str, ...]:
    """The pictures of a row as it has them: one or a list of bytes, paths, addresses, or the hub's
    {"bytes", "path"}.

    Raises KeyError for a missing field, TypeError for a field of another kind.
    """
    value = row[key]
    return tuple(_value(each, key) for each in (value if isinstance(value, list) else [value]))


def _value(value: Any, key: str) -> bytes | str:
    if isinstance(value, dict) and {"bytes", "path"} >= value.keys() and value:
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, bytes | str) or not value:
        raise TypeError(f"{key} is {type(value).__name__}, not bytes, a path or an address")
    return value


def root_of(source: str) -> Path | None:
    """The folder that paths in the rows of a source start from; None for a source that is not on this
    machine.
    """
    path = Path(source)
    return path if path.is_dir() else path.parent.resolve() if path.is_file() else None


def opened(pictures: Sequence[Picture], use: Callable[[int, Image, bytes], None]) -> None:
    """Call `use` with the number, the pixels and the bytes of every picture.

    Raises DataError counting those that cannot be used, naming the first; what `use` raises as ValueError is
    such a case. ResourceError without Pillow.
    """
    require_pillow()
    bad: list[tuple[str, str]] = []
    for number, picture in enumerate(pictures):
        try:
            data = picture.data()
            use(number, decoded(data), data)
        except ValueError as error:
            bad.append((picture.place, str(error)))
    if bad:
        place, problem = bad[0]
        more = f" ({len(bad)} of {len(pictures)} pictures are bad)" if len(bad) > 1 else ""
        raise DataError(f"{problem}{more}", place, "mend or remove it")


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Whatever a model's processor of pictures raises, as one line."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise ResourceError(f"{what} needs a package: {str(error).splitlines()[0][:200]}") from error
    except Exception as error:  # the processor is foreign: anything may come out of it
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DataError(f"{what} refuses a picture: {reason}") from error


@cache
def require_pillow() -> None:
    """Raises ResourceError where Pillow is not installed."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise ResourceError(
            "pictures need a package that is not installed", fix="pip install 'neuroada-cli[pictures]'"
        ) from None


def content_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _within(data: bytes) -> bytes:
    if len(data) > MOST_BYTES:
        raise ValueError(f"image is larger than {MOST_BYTES >> 20} MiB")
    return data
