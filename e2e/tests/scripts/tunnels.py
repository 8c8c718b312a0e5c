"""Holds something open on each road, says so, and measures how long each stays after the policy was changed. Argument:
how many seconds it stays itself after that."""

import sys
import threading

from attack import *

OUTSIDE_CA = "/workspace/outside-ca.pem"
ENDED, LOCK = {}, threading.Lock()


def upgrade(host):
    """A WebSocket, after its first echo."""
    connection = inspected(host)
    connection.sendall((f"GET /ws HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n").encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += read_exactly(connection, 1)
    assert b" 101 " in head.split(b"\r\n")[0] + b" ", head
    connection.sendall(b"\x81\x82\x01\x02\x03\x04" + bytes([ord("h") ^ 1, ord("i") ^ 2]))
    assert read_exactly(connection, 4) == b"\x81\x02hi"
    return connection


def drip(connection, host):
    """A long answer, of which the beginning has come."""
    connection.sendall(request(host, "/drip?n=2000&ms=100").encode())
    assert connection.recv(10).startswith(b"HTTP/1.1 2")
    return connection


def raw(address):
    connection = connect(address)
    assert say(connection, request("cidr.example.test")) == "200"
    return connection


OPEN = {
    "passthrough": lambda: drip(secure(connect("through.example.test:443"), "through.example.test", ca=OUTSIDE_CA), "through.example.test"),
    "passthrough, steered": lambda: drip(secure(dial(443), "through.example.test", ca=OUTSIDE_CA), "through.example.test"),
    "inspected": lambda: drip(inspected("long.example.test"), "long.example.test"),
    "websocket": lambda: upgrade("socket.example.test"),
    "address": lambda: raw("93.184.216.50:9000"),
    "plain": lambda: drip(dial(80), "plain.example.test"),
}
connections = {}
for name, make in OPEN.items():
    try:
        connections[name] = make()
    except Exception as error:
        RESULTS[f"{name} opens"] = f"{type(error).__name__}: {error}"
print("OPEN", sorted(connections), flush=True)


def watch(name, connection):
    connection.settimeout(100)
    begun = time.monotonic()
    try:
        while connection.recv(65536):
            pass
    except (TimeoutError, socket.timeout):
        with LOCK:
            ENDED[name] = "still open"
        return
    except OSError:
        pass
    with LOCK:
        ENDED[name] = "closed"
    print(f"CLOSED {name} after {time.monotonic() - begun:.1f} s", flush=True)


threads = [threading.Thread(target=watch, args=item) for item in connections.items()]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
RESULTS.update(ENDED)
attempt("again", get, "long.example.test")
attempt("again, passthrough", lambda: connect("through.example.test:443") and "200")
attempt("again, dns", ask, query("through.example.test"))
attempt("what stayed", get, "seen.example.test")
time.sleep(float(sys.argv[1]))
finish()
