"""Does honest work for so many seconds, and measures it: look-ups, requests on new connections, requests on one."""

import sys

from attack import *

SECONDS = float(sys.argv[1])
HOST = "seen.example.test"


def look_up(tries=2):
    """As the C library's resolver: what is not answered in time is asked for once more, and that time counts."""
    for left in reversed(range(tries)):
        try:
            return ask(query(HOST)) == "NOERROR gateway"
        except TimeoutError:
            if not left:
                raise


def measure(work):
    """Median and 99th percentile in milliseconds, and failures."""
    times, failures, end = [], 0, time.monotonic() + SECONDS / 3
    while time.monotonic() < end:
        begun = time.monotonic()
        try:
            good = work()
        except (OSError, EOFError, Refused, http.client.HTTPException) as error:
            print("FAILED", type(error).__name__, error, flush=True)
            good = False
        times.append((time.monotonic() - begun) * 1000)
        failures += not good
        time.sleep(0.02)
    times.sort()
    return {"n": len(times), "failures": failures, "p50": times[len(times) // 2], "p99": times[len(times) * 99 // 100]}


found = {
    "dns": measure(look_up),
    "new": measure(lambda: get(HOST) == "200"),
}
kept = inspected(HOST)
found["kept"] = measure(lambda: say(kept, request(HOST)) == "200")
for kind, figures in found.items():
    for name, figure in figures.items():
        RESULTS[f"{kind} {name}"] = f"{figure:.1f}" if isinstance(figure, float) else str(figure)
finish()
