"""Spends a budget in parallel until nothing is left. Arguments: what to spend, host, threads, requests.

Each model request costs exactly 50 tokens: 4 words in, 46 out."""

import sys
import threading

from attack import *

WHAT, HOST, THREADS, REQUESTS = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
COUNTS, LOCK = {}, threading.Lock()


def once():
    if WHAT == "bytes":
        status, _, body = fetch(HOST, "/bytes?n=100000")
        return verdict(status, body if status != 200 else b"")
    body = json.dumps({
        "model": "tiny", "max_tokens": 46, "stream": WHAT == "stream",
        "messages": [{"role": "user", "content": "please say 46 words"}],
    })
    connection = inspected(HOST)
    headers = f"Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
    headers += f"Content-Length: {len(body)}\r\n"
    connection.sendall(request(HOST, "/v1/chat/completions", "POST", headers, body).encode())
    status, _, answer = read_answer(connection, "POST")
    if status != 200:
        return verdict(status, answer)
    if WHAT == "stream":
        return "200" if answer.rstrip().endswith(b"[DONE]") else "cut"
    return "200" if json.loads(answer)["usage"]["total_tokens"] == 50 else "wrong"


def work():
    for _ in range(REQUESTS):
        try:
            outcome = once()
        except Refused as refused:
            outcome = str(refused)
        except (OSError, EOFError, ValueError, http.client.HTTPException) as error:
            outcome = type(error).__name__
        with LOCK:
            COUNTS[outcome] = COUNTS.get(outcome, 0) + 1
            print("OUTCOME", outcome, flush=True)


print("BURNING", flush=True)
threads = [threading.Thread(target=work) for _ in range(THREADS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
RESULTS.update({outcome: str(count) for outcome, count in COUNTS.items()})
# Whoever has used up a budget is ended from outside: this must not be the end.
if len(sys.argv) > 5:
    time.sleep(float(sys.argv[5]))
finish()
