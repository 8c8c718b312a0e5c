"""Waits until it may begin, then does something more often than the log has room for while nobody takes it, and counts."""

import os
import sys
import time


def write(number):
    os.close(os.open(f"{'x' * 200}{number % 10}", os.O_WRONLY | os.O_CREAT))


def signal(_):
    try:
        os.kill(1, 0)
    except PermissionError:
        pass


act = {"write": write, "signal": signal}[sys.argv[1]]
progress = os.open("progress", os.O_WRONLY | os.O_CREAT)
while not os.path.exists("go"):
    time.sleep(0.05)
for number in range(int(sys.argv[2])):
    act(number)
    os.pwrite(progress, str(number + 1).encode(), 0)
