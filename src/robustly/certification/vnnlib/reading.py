"""Reading of property files, plain or gzipped, of either version of VNN-LIB."""

import gzip
import re
import zlib
from pathlib import Path

from robustly.certification.vnnlib import parser, version_2
from robustly.certification.vnnlib.formulas import VnnlibError
from robustly.certification.vnnlib.query import Query, query_of

LARGEST_FILE = 2**31
"""Most bytes of a property after unpacking."""

_VERSION = re.compile(r"(?:\s|;[^\n]*(?:\n|$))*\(\s*vnnlib-version\s*<\s*(?P<version>[^>]*?)\s*>")


def read_vnnlib(property_: Path | str, source: str = "property") -> Query:
    """Read a property of VNN-LIB 1 or 2.

    Args:
        property_: path of a file, which may be gzipped, or the text itself as a string.
        source: name for messages if the text is given.

    Raises:
        VnnlibError: a mistake in the text, with line and column, or inputs without bounds.
        UnsupportedQueryError: a correct property of a kind that is not supported.
        OSError: the file cannot be read.
    """
    if isinstance(property_, Path):
        text, source = _text(property_), property_.name
    else:
        text = property_
    match = _VERSION.match(text)
    if match is not None and not match["version"].startswith("1"):
        return version_2.read(text, source)
    parsed = parser.parse(text, source)
    return query_of(parsed.formula, parsed.inputs, parsed.outputs, source, text=text)


def _text(path: Path) -> str:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise VnnlibError(f"{path.name}: larger than {LARGEST_FILE} bytes after unpacking")
        return content.decode("utf-8-sig")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise VnnlibError(f"{path.name}: damaged gzip file ({error})") from error
    except UnicodeDecodeError as error:
        raise VnnlibError(f"{path.name}: not a text file (byte {error.start} is not UTF-8)") from error
