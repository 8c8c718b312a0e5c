"""Fills the action log: far more files than it has room for, then one connection that must still be seen."""

import os
import socket
import sys

for number in range(int(sys.argv[1])):
    os.close(os.open(f"{'x' * 200}{number % 10}", os.O_WRONLY | os.O_CREAT))
with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
    connection.setblocking(False)
    connection.connect_ex(("203.0.113.9", 443))
