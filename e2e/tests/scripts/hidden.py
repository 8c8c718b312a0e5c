"""Executes a program that nobody may read: its memory can't be read either, not even by process 1."""

import os
import shutil
import subprocess

shutil.copy("/bin/sh", "unreadable")
os.chmod("unreadable", 0o111)
subprocess.run(["./unreadable", "-c", "echo hidden > file"], check=True)
