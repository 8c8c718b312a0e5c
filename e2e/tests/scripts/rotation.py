"""Asks again and again with the gateway's credential, until it has become another one."""

from attack import *

HOST = "keyed.example.test"


def digest():
    status, _, body = fetch(HOST, "/digest")
    return body.decode() if status == 200 else verdict(status, body)


first = digest()
print("FIRST", first, flush=True)
begun, failures = time.monotonic(), 0
while time.monotonic() - begun < 110:
    try:
        now = digest()
    except (OSError, EOFError):
        failures += 1
        continue
    if now != first:
        RESULTS["rotated"] = "yes" if len(now) == 64 else now
        break
    time.sleep(0.5)
RESULTS["failures"] = str(failures)
finish()
