"""Says who it is, and stays for a while: the sandbox whose token another one tries, or whose end is looked at."""

import sys

from attack import *

print("TOKEN", TOKEN, flush=True)
print("ADDRESS", socket.gethostbyname(socket.gethostname()), flush=True)
attempt("control", get, "seen.example.test")
time.sleep(float(sys.argv[1]))
finish()
