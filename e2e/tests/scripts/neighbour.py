"""Does honest work for so many seconds, and measures it: look-ups, requests on new connections, requests on one."""

import sys

from attack import *

SECONDS = float(sys.argv[1])
HOST = "seen.example.test"
ROUNDS = 3


def look_up(tries=2):
    """As the C library's resolver: what is not answered in 5 seconds is asked for once more, and that time counts."""
    for left in reversed(range(tries)):
        try:
            return ask(query(HOST), timeout=5) == "NOERROR gateway"
        except TimeoutError:
            if not left:
                raise


def measure_round(work, seconds):
    """How long each piece of work took in milliseconds, in order of length, and failures."""
    times, failures, end = [], 0, time.monotonic() + seconds
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
    return sorted(times), failures


def measure(work):
    """Failures in all rounds, and of the best one median and 99th percentile: who starves does so in each, while a
    machine that stands still for a moment disturbs one."""
    rounds = [measure_round(work, SECONDS / 3 / ROUNDS) for _ in range(ROUNDS)]
    best = min((times for times, _ in rounds), key=lambda times: times[len(times) * 99 // 100])
    return {
        "n": sum(len(times) for times, _ in rounds),
        "failures": sum(failures for _, failures in rounds),
        "p50": best[len(best) // 2],
        "p99": best[len(best) * 99 // 100],
    }


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
