"""Asks models that misbehave, one after the other, and says what came of each. The argument is the host."""

import sys

from attack import *

HOST = sys.argv[1]


def chat(model, stream=False, words=40):
    body = json.dumps({
        "model": model, "max_tokens": 200, "stream": stream,
        "messages": [{"role": "user", "content": f"please say {words} words"}],
    })
    headers = f"Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    connection = inspected(HOST)
    connection.sendall(request(HOST, "/v1/chat/completions", "POST", headers, body).encode())
    status, _, answer = read_answer(connection, "POST")
    if status != 200:
        return verdict(status, answer)
    return "200"


for model in sys.argv[2:]:
    name, _, how = model.partition(":")
    attempt(model, chat, name, how == "stream")
    if name == "endless":
        # Whoever has used up a budget is ended from outside: this must not be the end.
        time.sleep(60)
finish()
