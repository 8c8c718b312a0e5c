"""Does one of each thing that the action log tells of."""

import os
import socket
import subprocess
import threading

with open("made", "w") as made:
    made.write("text")
os.rename("made", "moved")
os.mkdir("folder")
with open("/etc/hostname") as read_only:
    read_only.read()
subprocess.run(["sh", "-c", "exit 3", "--token=sk-aaaaaaaaaaaaaaaaaaaaaaaa"], check=False)


def attempt(address):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        connection.connect_ex(address)


attempt(("203.0.113.9", 443))
# A thread's actions are its process's.
thread = threading.Thread(target=attempt, args=(("203.0.113.10", 80),))
thread.start()
thread.join()
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
    try:
        datagrams.sendto(b"question", ("203.0.113.53", 53))
    except OSError:
        pass
# A send that opens a connection.
with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
    connection.setblocking(False)
    try:
        connection.sendto(b"first", socket.MSG_FASTOPEN, ("203.0.113.54", 443))
    except OSError:
        pass
os.unlink("moved")
with open("kept", "w") as kept:
    kept.write("abc")
print(os.getpid())
