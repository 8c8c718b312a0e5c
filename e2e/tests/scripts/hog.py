"""Takes everything that it can get of the gateway, for so many seconds: connections, half-open handshakes and heads that
never end, look-ups, and downloads."""

import sys
import threading

from attack import *

SECONDS = float(sys.argv[1])
END = time.monotonic() + SECONDS
COUNTS = {"connections": 0, "refused": 0, "queries": 0, "answers": 0, "bytes": 0}


def connections():
    """10,000 connections, none of which is closed as long as the gateway keeps it."""
    held = []
    for number in range(10_000):
        if time.monotonic() > END:
            break
        try:
            connection = socket.create_connection((GATEWAY, (PROXY_PORT, 443, 80)[number % 3]), timeout=2)
            connection.sendall((b"CONNECT seen.example.test:443 HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.1\r\n")[number % 3])
            held.append(connection)
            COUNTS["connections"] += 1
        except OSError:
            COUNTS["refused"] += 1
            if len(held) > 900:
                for connection in held[:300]:
                    connection.close()
                del held[:300]
    while time.monotonic() < END:
        time.sleep(0.5)


def queries():
    connection = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    connection.setblocking(False)
    while time.monotonic() < END:
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
    while time.monotonic() < END:
        try:
            connection = inspected("big.example.test")
            connection.sendall(request("big.example.test", "/endless").encode())
            while time.monotonic() < END:
                more = connection.recv(1 << 20)
                if not more:
                    break
                COUNTS["bytes"] += len(more)
        except (OSError, EOFError, Refused):
            time.sleep(0.05)


def start(work):
    threading.Thread(target=work, daemon=True).start()


# One after the other, so that each is as fast as this sandbox's processor share lets it be when it meets its ceiling:
# connections (a gateway keeps a silent one for seconds), then look-ups, then bytes.
start(connections)
while COUNTS["connections"] + COUNTS["refused"] < 400:
    time.sleep(0.05)
start(queries)
while COUNTS["queries"] < 400:
    time.sleep(0.05)
start(downloads)
start(downloads)
print("HOGGING", flush=True)
time.sleep(SECONDS)
RESULTS.update({name: str(count) for name, count in COUNTS.items()})
print("RESULT " + json.dumps(RESULTS), flush=True)
os._exit(0)
