"""Fills the action log: far more files than it has room for, then one connection that must still be seen."""

import os
import socket
import sys

# A long path makes a large record.
folder = "/".join("x" * 200 for _ in range(4))
os.makedirs(folder)
for number in range(int(sys.argv[1])):
    os.close(os.open(f"{folder}/{number % 10}", os.O_WRONLY | os.O_CREAT))
with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
    connection.setblocking(False)
    connection.connect_ex(("203.0.113.9", 443))
