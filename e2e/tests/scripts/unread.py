"""Passes to the kernel what another process can't read, or can't read in time, and prints what became of it."""

import ctypes
import json
import os
import socket
import stat
import struct
import subprocess

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
PAGE, READ, WRITE = 4096, 1, 2
PRIVATE, SHARED, ANONYMOUS = 2, 1, 32
MEMFD_SECRET, PR_SET_MM, AF_VSOCK = 447, 35, 40
OUTCOMES = {}


def memory(protection, fd=-1, pages=1):
    kind = PRIVATE | ANONYMOUS if fd < 0 else SHARED
    address = LIBC.mmap(None, pages * PAGE, protection, kind, fd, 0)
    assert address != ctypes.c_void_p(-1).value
    return address


def put(address, value):
    ctypes.memmove(address, value, len(value))
    return ctypes.c_void_p(address)


def tell(name, result):
    OUTCOMES[name] = result if result >= 0 else os.strerror(ctypes.get_errno())


def inet(last, family=socket.AF_INET):
    return struct.pack("=HH4s8x", family, socket.htons(53), bytes([203, 0, 113, last]))


def create(name, address):
    path = put(address, f"/workspace/{name}\0".encode())
    tell(name, LIBC.openat(-100, path, os.O_WRONLY | os.O_CREAT, 0o644))


def connect(name, address, peer):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        tell(name, LIBC.connect(datagrams.fileno(), put(address, peer), len(peer)))


def header(name, length=16):
    return struct.pack("=QIIQQQQQQ", name, length, 0, 0, 0, 0, 0, 0, 0)


def send_many(name, address, count):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        tell(name, LIBC.sendmmsg(datagrams.fileno(), ctypes.c_void_p(address), count, 0))


only_written = memory(WRITE)
create("file-only-written", only_written)
connect("peer-only-written", only_written, inet(20))
half = memory(READ | WRITE, pages=2)
LIBC.mprotect(ctypes.c_void_p(half + PAGE), PAGE, WRITE)
connect("peer-half-written", half + PAGE - 4, inet(21))

child = os.fork()
if child == 0:
    texts = [put(only_written + 100 * at, text) for at, text in enumerate([b"/bin/true\0", b"program-only-written\0"])]
    vector = put(only_written + 1000, struct.pack("=QQQ", texts[0].value, texts[1].value, 0))
    LIBC.execve(texts[0], vector, None)
    os._exit(9)
tell("program-only-written", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

secret = LIBC.syscall(MEMFD_SECRET, 0)
if secret >= 0:
    os.ftruncate(secret, PAGE)
    create("file-secret", memory(READ | WRITE, secret))

# Of two messages the second has no header.
two = memory(READ | WRITE, pages=2)
peer = put(two, inet(22)).value
put(two + PAGE - 64, header(peer))
LIBC.munmap(ctypes.c_void_p(two + PAGE), PAGE)
send_many("second message missing", two + PAGE - 64, 2)
# More messages, each to another address, than are told of one call.
many = memory(READ | WRITE, pages=4)
for index in range(100):
    put(many + 64 * index, header(put(many + 2 * PAGE + 16 * index, inet(100 + index)).value))
send_many("a hundred addresses", many, 100)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
    peer = put(half, inet(23, socket.AF_UNSPEC))
    tell("no family", LIBC.sendto(datagrams.fileno(), b"x", 1, 0, peer, 16))

# The same program before and after, with other arguments than were asked for.
with open("script.py", "w") as script:
    script.write("#!/usr/bin/python3\n")
os.chmod("script.py", stat.S_IRWXU)
tell("script", subprocess.run(["./script.py", "by-script"], check=False).returncode)
# It claims what its own memory holds, and executes nothing.
tell("nothing", LIBC.execve(b"/missing", ctypes.pointer((ctypes.c_char_p * 2)(b"never-executed")), None))
tell("PR_SET_MM", LIBC.prctl(PR_SET_MM, 1, 0, 0, 0))
tell("AF_VSOCK", LIBC.socket(AF_VSOCK, 1, 0))
# What it forbids itself to read is its own all the same.
os.mkdir("closed")
with open("closed/file", "w") as closed:
    closed.write("abc")
os.chmod("closed/file", 0)
os.chmod("closed", 0)
print("RESULT " + json.dumps(OUTCOMES))
