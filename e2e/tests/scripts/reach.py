"""Tries whatever could end, change or silence process 1 and its log, by system calls alone; prints each outcome as JSON."""

import ctypes
import errno
import glob
import json
import mmap
import os
import resource
import socket
import struct
import subprocess
import sys

libc = ctypes.CDLL(None, use_errno=True)
RESULTS = {}
NULL = ctypes.c_void_p(0)
CLONE_UNTRACED = 0x00800000


def named(things):
    return " ".join(sorted(things)) or "none"


# What was inherited beside the standard ones. The folder itself is open while it is read, and no more when looked at.
inherited = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd") if int(number) > 2]
RESULTS["inherited descriptors"] = named(os.readlink(path) for path in inherited if os.path.exists(path))


def call(name, number, *arguments):
    """A system call; its outcome is `done` or the name of its error."""
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *arguments)
    RESULTS[name] = "done" if result >= 0 else errno.errorcode[ctypes.get_errno()]
    return result


page = ctypes.create_string_buffer(4096)
vector = struct.pack("QQ", ctypes.addressof(page), 8)
threads = [int(path.rsplit("/", 1)[1]) for path in glob.glob("/proc/1/task/*")] or [1]
call("kill", 62, 1, 9)
call("kill with a high half", 62, ctypes.c_long((1 << 32) | 1), 9)
for thread in threads:
    call(f"tkill {'first' if thread == 1 else 'other'}", 200, thread, 9)
call("tgkill", 234, 1, 1, 9)
call("rt_sigqueueinfo", 129, 1, 15, page)
call("rt_tgsigqueueinfo", 297, 1, 1, 15, page)
call("pidfd_open", 434, 1, 0)
call("ptrace attach", 101, 16, 1, NULL, NULL)
call("ptrace seize", 101, 0x4206, 1, NULL, NULL)
call("process_vm_readv", 310, 1, vector, 1, vector, 1, 0)
call("process_vm_writev", 311, 1, vector, 1, vector, 1, 0)
call("prlimit64", 302, 1, resource.RLIMIT_NOFILE, struct.pack("QQ", 0, 0), NULL)
call("setpriority of process 1", 141, 0, 1, 19)
call("setpriority of the user", 141, 2, 0, 19)
call("sched_setaffinity", 203, 1, 8, struct.pack("Q", 1))
call("sched_setscheduler", 144, 1, 5, struct.pack("i", 0))
call("ioprio_set", 251, 1, 1, 3 << 13)
call("prctl PR_SET_DUMPABLE", 157, 4, 0, 0, 0, 0)
call("io_uring_setup", 425, 8, page)
call("openat2", 437, -100, b"new", struct.pack("QQQ", os.O_WRONLY | os.O_CREAT, 0o600, 0), 24)
call("userfaultfd", 323, 0)
call("x32 getpid", 0x40000000 | 39)
# A second listener would answer in the first one's place.
program = struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)
instructions = ctypes.create_string_buffer(program)
call("seccomp listener", 317, 1, 1 << 3, struct.pack("HxxxxxxQ", 1, ctypes.addressof(instructions)))

# Signals without a call that sends them: a descriptor's owner gets those of its events, by whatever way it is named.
ours, theirs = socket.socketpair()
descriptor = ours.fileno()
call("pidfd_send_signal to a folder of /proc", 424, os.open("/proc/1", os.O_RDONLY), 9, NULL, 0)
call("F_SETOWN", 72, descriptor, 8, 1)
call("F_SETOWN_EX", 72, descriptor, 15, struct.pack("ii", 1, 1))
call("FIOSETOWN", 16, descriptor, 0x8901, struct.pack("i", 1))
call("SIOCSPGRP", 16, descriptor, 0x8902, struct.pack("i", 1))
call("F_SETSIG", 72, descriptor, 10, 9)
call("O_ASYNC", 72, descriptor, 4, os.O_NONBLOCK | 0o20000)
theirs.send(b"an event")
call("F_SETOWN of oneself", 72, descriptor, 8, os.getpid())
ours.close()
call("process_madvise", 440, 0, NULL, 0, 4, 0)

call("unshare user and mount", 272, 0x10020000)
# A child that nobody traces, or that another one traces, would get the answers of process 1 from that one.
child = call("CLONE_UNTRACED", 56, CLONE_UNTRACED | 17, NULL, NULL, NULL, NULL)
if child == 0:
    os._exit(0)
if child > 0:
    os.waitpid(child, 0)
call("clone3", 435, NULL, 0)
child = os.fork()
if child == 0:
    libc.pause()
call("ptrace seize of a child", 101, 0x4206, child, NULL, NULL)
os.kill(child, 9)
os.waitpid(child, 0)

# int 0x80 with the number of kill(2) of the 32-bit ABI: kill(1, 9). In a child, as not every kernel survives it.
code = b"\x53\xb8\x25\x00\x00\x00\xbb\x01\x00\x00\x00\xb9\x09\x00\x00\x00\xcd\x80\x5b\xc3"
child = os.fork()
if child == 0:
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    os._exit(-ctypes.CFUNCTYPE(ctypes.c_int)(address)() & 0xFF)
ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
RESULTS["32-bit kill"] = errno.errorcode.get(ended, str(ended)) if ended else "done"

# Programs that have no path are seen as well: from memory, and by descriptor.
for name, flags in [("memfd", None), ("execveat", os.O_PATH)]:
    if flags is None:
        descriptor = os.memfd_create("hidden", 0)
        os.write(descriptor, open("/bin/true", "rb").read())
    else:
        descriptor = os.open("/bin/true", flags)
    child = os.fork()
    if child == 0:
        argv = (ctypes.c_char_p * 3)(b"true", f"by-{name}".encode(), None)
        libc.syscall(322, descriptor, b"", argv, NULL, 0x1000)
        os._exit(99)
    RESULTS[f"program by {name}"] = str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

# Files and sockets by which process 1 or the recorder could be spoken to.
def opened(path):
    """Opens a file, or one of a folder's: a kernel may list what it does not open."""
    if not os.path.isdir(path):
        return os.close(os.open(path, os.O_RDWR))
    for name in os.listdir(path):
        try:
            return os.close(os.open(os.path.join(path, name), os.O_RDONLY | os.O_NONBLOCK))
        except OSError as error:
            last = error
    raise last


def writable(folder):
    """Files below a folder of /proc that take a write."""
    for path, folders, files in os.walk(folder):
        if path.endswith("/net"):
            folders.clear()
            continue
        for name in files:
            try:
                descriptor = os.open(os.path.join(path, name), os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                continue
            try:
                os.write(descriptor, b"0")
                yield os.path.join(path, name)
            except OSError:
                pass
            os.close(descriptor)


def table(path):
    try:
        with open(path) as lines:
            return [line.split() for line in lines][1:]
    except OSError:
        return []


def connectable(names):
    """Local sockets that can be spoken to; those of the abstract namespace begin with @."""
    for name in names:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
            with socket.socket(socket.AF_UNIX, kind) as connection:
                connection.settimeout(1)
                try:
                    connection.connect(name.replace("@", "\0", 1))
                    yield name
                except OSError:
                    pass


RESULTS["files of process 1"] = named(set(writable("/proc/1")))
RESULTS["local sockets"] = named(set(connectable(line[7] for line in table("/proc/net/unix") if len(line) > 7)))
listening = [line[1] for kind in ("tcp", "tcp6") for line in table(f"/proc/net/{kind}") if line[3] == "0A"]
RESULTS["listening ports"] = named({str(int(address.rsplit(":", 1)[1], 16)) for address in listening})

for path in ["/proc/1/mem", "/proc/1/fd", "/proc/1/environ", "/proc/1/root", "/proc/1/exe", "/dev/termination-log"]:
    try:
        opened(path)
        RESULTS[path] = "done"
    except OSError as error:
        RESULTS[path] = errno.errorcode[error.errno]
try:
    with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=2) as connection:
        connection.sendall(b'{"type":"ended"}\n')
        RESULTS["recorder"] = "answered" if connection.recv(1) else "closed"
except OSError as error:
    RESULTS["recorder"] = errno.errorcode.get(error.errno, "closed")
subprocess.run(["true", "after-all"], check=True)
print("RESULT " + json.dumps(RESULTS), flush=True)
raise SystemExit(7)
