"""Takes all memory, or all processes, that it may have: first most of it, for a while, then the rest."""

import os
import subprocess
import sys
import time

resource, limit = sys.argv[1], int(sys.argv[2])
subprocess.run(["true", "before-all"], check=True)
held = []


def take():
    if resource == "memory":
        held.append(b"x" * (1 << 20))
    elif os.fork() == 0:
        time.sleep(60)
        os._exit(0)


for _ in range(limit * 83 // 100):
    take()
time.sleep(2)
for _ in range(limit):
    try:
        take()
    except OSError:
        break
time.sleep(2)
