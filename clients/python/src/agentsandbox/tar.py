"""Files on their way into and out of a sandbox, as tar streams.

What comes from a sandbox is hostile: exactly one regular file is taken, its name is ignored, and nothing is ever
written to this machine's disk. Python's `tarfile` understands far more than that (links, sparse files, sizes hidden in
extended headers), so it only writes here.
"""

from __future__ import annotations

import io
import posixpath
import tarfile
import time

from agentsandbox.errors import UnexpectedTar
from agentsandbox.models import WORKSPACE

BLOCK = 512
OVERHEAD_BYTES = 64 << 10
"""Most bytes of a tar stream beside the content of its one file."""

_HEADERS_MAX = 8
_REGULAR = (b"0", b"\0")
_LONG_NAME = b"L"
_EXTENDED = (b"x", b"g")
_LONG_NAME_MAX = 8 << 10
_HARMLESS = (b"path", b"mtime", b"atime", b"ctime", b"uid", b"gid", b"uname", b"gname", b"comment")
_ROOTS = (WORKSPACE, "/tmp")  # noqa: S108 - a folder of the sandbox


def place(path: str) -> tuple[str, str]:
    """Split a path into the sandbox's own folder it lies in, which exists, and the rest.

    Relative paths start at the workspace.
    """
    if "\0" in path or not path or path.endswith("/") or ".." in path.split("/"):
        raise ValueError(f"{path!r} is no path of a file")
    full = posixpath.normpath(posixpath.join(WORKSPACE, path))
    for root in _ROOTS:
        if full.startswith(f"{root}/"):
            return root, full[len(root) + 1 :]
    raise ValueError(f"{path!r} is in none of the folders that a sandbox can write: {', '.join(_ROOTS)}")


def pack(name: str, content: bytes, mode: int) -> bytes:
    """Return a tar stream with one file, and the folders that it lies in."""
    stream = io.BytesIO()
    # Of 1970, tarfile's own default, zip takes no file and make takes none for new.
    now = int(time.time())
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        parts = name.split("/")
        for depth in range(1, len(parts)):
            folder = tarfile.TarInfo("/".join(parts[:depth]))
            folder.type, folder.mode, folder.mtime = tarfile.DIRTYPE, 0o755, now
            tar.addfile(folder)
        file = tarfile.TarInfo(name)
        file.size, file.mode, file.mtime = len(content), mode & 0o777, now
        tar.addfile(file, io.BytesIO(content))
    return stream.getvalue()


def unpack(stream: bytes, max_bytes: int) -> bytes:
    """Return the content of the one regular file in a tar stream."""
    position = 0
    content: bytes | None = None
    for _ in range(_HEADERS_MAX):
        header = stream[position : position + BLOCK]
        if not header.strip(b"\0"):
            break
        size, kind = _header(header)
        position += BLOCK
        body = stream[position : position + size]
        if len(body) < size:
            raise UnexpectedTar("the file is cut short")
        position += -(-size // BLOCK) * BLOCK
        if kind in _REGULAR and content is None:
            if size > max_bytes:
                raise UnexpectedTar(f"the file has {size} bytes, more than {max_bytes}")
            content = body
        elif kind == _LONG_NAME and size <= _LONG_NAME_MAX:
            continue
        elif kind in _EXTENDED and size <= _LONG_NAME_MAX:
            _extended(body)
        else:
            raise UnexpectedTar("the path is not one regular file")
    if stream[position:].strip(b"\0"):
        raise UnexpectedTar("something follows the file")
    if content is None:
        raise UnexpectedTar("there is no regular file")
    return content


def _header(block: bytes) -> tuple[int, bytes]:
    """Return size and kind of an entry, whose header must be whole."""
    if len(block) < BLOCK:
        raise UnexpectedTar("the header is cut short")
    blank = block[:148] + b" " * 8 + block[156:]
    if _octal(block[148:156]) != sum(blank):
        raise UnexpectedTar("the header's checksum is wrong")
    return _octal(block[124:136]), block[156:157]


def _octal(number: bytes) -> int:
    digits = number.strip(b" \0")
    if not digits or digits.strip(b"01234567"):
        raise UnexpectedTar("a number in the header is not octal")
    return int(digits, 8)


def _extended(body: bytes) -> None:
    """Refuse extended headers that change what the entry after them is, such as its size."""
    while body:
        length, space, _ = body.partition(b" ")
        if not space or not length.isdigit() or len(length) > len(str(_LONG_NAME_MAX)):
            raise UnexpectedTar("an extended header is malformed")
        record, body = body[: int(length)], body[int(length) :]
        key, equals, _ = record[len(length) + 1 :].partition(b"=")
        if not equals or not record.endswith(b"\n") or key not in _HARMLESS:
            raise UnexpectedTar("an extended header says more than names and times")
