"""Tar streams of a hostile sandbox."""

import contextlib
import io
import tarfile
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsandbox.errors import UnexpectedTar
from agentsandbox.tar import pack, place, unpack

LIMIT = 1000


def tar(*entries: tarfile.TarInfo, content: bytes = b"", format_: int = tarfile.GNU_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format_) as archive:
        for entry in entries:
            entry.size = len(content) if entry.isreg() else 0
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def entry(
    name: str = "f", kind: bytes = tarfile.REGTYPE, link: str = "", pax: dict[str, str] | None = None
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.pax_headers = kind, link, pax or {}
    return info


@given(st.binary(max_size=LIMIT), st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT]))
def test_one_regular_file_is_taken(content: bytes, format_: int) -> None:
    assert unpack(tar(entry(), content=content, format_=format_), LIMIT) == content


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["n" * 300, "../../etc/passwd", "/etc/passwd", "\u00fc" * 80])
def test_the_name_means_nothing(name: str, format_: int) -> None:
    assert unpack(tar(entry(name), content=b"x", format_=format_), LIMIT) == b"x"


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"\0" * 1024,
        b"x" * 512,
        tar(entry(kind=tarfile.DIRTYPE)),
        tar(entry(kind=tarfile.SYMTYPE, link="/etc/passwd")),
        tar(entry(kind=tarfile.LNKTYPE, link="/etc/passwd")),
        tar(entry(kind=tarfile.FIFOTYPE)),
        tar(entry(kind=tarfile.CHRTYPE)),
        tar(entry(kind=tarfile.BLKTYPE)),
        tar(entry("a"), entry("b"), content=b"two"),
        tar(entry(), content=b"x" * (LIMIT + 1)),
        tar(entry(), content=b"x" * 600)[:900],
        tar(entry(), content=b"x") + b"more",
        tar(entry(pax={"size": "5"}), content=b"x", format_=tarfile.PAX_FORMAT),
        tar(entry(pax={"GNU.sparse.size": "99999999999"}), content=b"x", format_=tarfile.PAX_FORMAT),
        tar(entry(pax={"path": "p" * 9000}), content=b"x", format_=tarfile.PAX_FORMAT),
    ],
)
def test_anything_else_is_refused(stream: bytes) -> None:
    with pytest.raises(UnexpectedTar):
        unpack(stream, LIMIT)


def test_sizes_that_are_not_octal_are_refused() -> None:
    header = bytearray(tar(entry(), content=b"x")[:512])
    header[124:136] = b"\x80" + b"\xff" * 11
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(UnexpectedTar, match="octal"):
        unpack(bytes(header) + b"x" * 512, LIMIT)


def test_a_wrong_checksum_is_refused() -> None:
    stream = bytearray(tar(entry(), content=b"x"))
    stream[0] ^= 1
    with pytest.raises(UnexpectedTar, match="checksum"):
        unpack(bytes(stream), LIMIT)


@given(st.binary(max_size=3000), st.integers(0, 1500), st.binary(max_size=40))
def test_no_bytes_get_past_the_bound(noise: bytes, position: int, change: bytes) -> None:
    stream = bytearray(tar(entry(), content=b"x" * 500))
    stream[position : position + len(change)] = change
    for hostile in (noise, bytes(stream)):
        with contextlib.suppress(UnexpectedTar):
            assert len(unpack(hostile, LIMIT)) <= LIMIT


@given(st.binary(max_size=LIMIT))
def test_what_is_sent_holds_the_file_and_its_folders(content: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(pack("a/b/c", content, 0o4755))) as archive:
        assert archive.getnames() == ["a", "a/b", "a/b/c"]
        file = archive.extractfile("a/b/c")
        assert file is not None
        assert file.read() == content
        assert archive.getmember("a/b/c").mode == 0o755


def test_what_is_sent_was_changed_now() -> None:
    before = int(time.time())
    with tarfile.open(fileobj=io.BytesIO(pack("a/b", b"", 0o644))) as archive:
        for member in archive:
            assert before <= member.mtime <= time.time()
            assert not member.pax_headers


def test_paths_lie_in_the_folders_of_the_sandbox() -> None:
    assert place("a/b") == ("/workspace", "a/b")
    assert place("/workspace/./x") == ("/workspace", "x")
    assert place("/tmp/x") == ("/tmp", "x")
    for path in ("", ".", "/", "/etc/passwd", "../x", "a/../../x", "/workspace", "/tmp/", "a\0b", "/workspacex/y"):
        with pytest.raises(ValueError, match=r"path|folders"):
            place(path)
