"""What a model's host must not be used for: other endpoints, other models, fields that make the provider reach out or
remember, bodies that could be read in two ways; and providers that lie about what they cost."""

import gzip
import sys

from attack import *

OPENAI, ANTHROPIC = sys.argv[1:]
PROMPT = [{"role": "user", "content": "please say 12 words"}]


def post(host, path, body, headers="", method="POST", version=True):
    """The outcome of a request with a JSON body (or bytes as they are)."""
    data = body if isinstance(body, (bytes, str)) else json.dumps(body)
    data = data if isinstance(data, bytes) else data.encode()
    key = f"x-api-key: {TOKEN}\r\nanthropic-version: 2023-06-01\r\n" if host == ANTHROPIC else f"Authorization: Bearer {TOKEN}\r\n"
    connection = inspected(host)
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{key}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n{headers}\r\n"
    connection.sendall(head.encode() + data)
    status, _, answer = read_answer(connection, method)
    if b"unmetered" in answer:
        return f"{status} UNMETERED"
    return verdict(status, answer)


def chat(**fields):
    return post(OPENAI, "/v1/chat/completions", {"model": "tiny", "messages": PROMPT, **fields})


def respond(**fields):
    return post(OPENAI, "/v1/responses", {"model": "tiny", "input": "say 5", **fields})


def message(**fields):
    return post(ANTHROPIC, "/v1/messages", {"model": "small", "max_tokens": 50, "messages": PROMPT, **fields})


attempt("control chat", chat)
attempt("control responses", respond)
attempt("control messages", message)
attempt("control tools", chat, tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}])
attempt("control n", chat, n=3)
attempt("control models", get, OPENAI, "/v1/models", headers=f"Authorization: Bearer {TOKEN}\r\n")

for method, path in [
    ("GET", "/v1/files"), ("POST", "/v1/files"), ("POST", "/v1/batches"), ("GET", "/v1/assistants"), ("POST", "/v1/threads"),
    ("POST", "/v1/fine_tuning/jobs"), ("POST", "/v1/images/generations"), ("POST", "/v1/audio/speech"),
    ("POST", "/v1/vector_stores"), ("GET", "/v1/responses/resp_1"), ("POST", "/v1/responses/resp_1/cancel"),
    ("DELETE", "/v1/responses/resp_1"), ("GET", "/v1/chat/completions"), ("GET", "/v1/realtime"), ("POST", "/v1/realtime/sessions"),
    ("POST", "/v1/chat/completions/"), ("POST", "/v1/chat/completions/x"), ("POST", "/v1/completions"), ("GET", "/"), ("GET", "/echo"),
    ("POST", "/v1/containers"), ("POST", "/v1/conversations"), ("GET", "/v1/organization/projects"), ("DELETE", "/v1/models/tiny"),
    ("POST", "/v1/messages"),
]:
    attempt(f"endpoint {method} {path}", post, OPENAI, path, {"model": "tiny", "messages": PROMPT}, "", method)
for method, path in [("POST", "/v1/messages/batches"), ("GET", "/v1/files"), ("POST", "/v1/complete"), ("POST", "/v1/chat/completions")]:
    attempt(f"endpoint {method} {path} of anthropic", post, ANTHROPIC, path, {"model": "small", "max_tokens": 5, "messages": PROMPT}, "", method)

attempt("model", chat, model="gpt-expensive")
attempt("model in other case", chat, model="TINY")
attempt("no model", post, OPENAI, "/v1/chat/completions", {"messages": PROMPT})
attempt("model of the other provider", message, model="tiny")
for name, field in {
    "background": {"background": True}, "previous": {"previous_response_id": "resp_1"}, "conversation": {"conversation": "conv_1"},
    "stored prompt": {"prompt": {"id": "pmpt_1"}},
    "web search": {"tools": [{"type": "web_search"}]}, "web search preview": {"tools": [{"type": "web_search_preview"}]},
    "mcp": {"tools": [{"type": "mcp", "server_label": "x", "server_url": "https://evil.test/"}]},
    "code": {"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}, "file search": {"tools": [{"type": "file_search", "vector_store_ids": ["v"]}]},
    "file": {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "https://evil.test/x"}]}]},
    "picture": {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "https://evil.test/x.png"}]}]},
    "item reference": {"input": [{"type": "item_reference", "id": "msg_1"}]}, "unknown": {"callback_url": "https://evil.test/"},
}.items():
    attempt(f"responses field {name}", lambda: respond(**field))
for name, field in {
    "picture": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://evil.test/x.png"}}]}]},
    "web search": {"web_search_options": {}}, "unknown": {"callback_url": "https://evil.test/"},
    "file": {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}]},
}.items():
    attempt(f"chat field {name}", lambda: chat(**field))
for name, field in {
    "mcp": {"mcp_servers": [{"type": "url", "url": "https://evil.test/", "name": "x"}]}, "container": {"container": "c"},
    "web search": {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
    "web fetch": {"tools": [{"type": "web_fetch_20250910", "name": "web_fetch"}]},
    "code": {"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]},
    "picture": {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "https://evil.test/x.png"}}]}]},
    "file": {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "file", "file_id": "f"}}]}]},
    "unknown": {"callback_url": "https://evil.test/"},
}.items():
    attempt(f"messages field {name}", lambda: message(**field))

whole = json.dumps({"model": "tiny", "messages": PROMPT})
attempt("body twice", post, OPENAI, "/v1/chat/completions", whole[:-1] + ', "model": "large"}')
attempt("body escaped twice", post, OPENAI, "/v1/chat/completions", whole[:-1] + ', "mo\\u0064el": "large"}')
attempt("body nested twice", post, OPENAI, "/v1/chat/completions", whole.replace('"role"', '"role": "user", "role"'))
attempt("body cut", post, OPENAI, "/v1/chat/completions", whole[:-2])
attempt("body with a tail", post, OPENAI, "/v1/chat/completions", whole + whole)
attempt("body list", post, OPENAI, "/v1/chat/completions", f"[{whole}]")
attempt("body deep", post, OPENAI, "/v1/chat/completions", whole[:-1] + ', "x": ' + "[" * 100000 + "]" * 100000 + "}")
attempt("body not utf-8", post, OPENAI, "/v1/chat/completions", whole.encode().replace(b"please", b"\xff\xfe"))
attempt("body empty", post, OPENAI, "/v1/chat/completions", "")
attempt("body compressed", post, OPENAI, "/v1/chat/completions", gzip.compress(whole.encode()), "Content-Encoding: gzip\r\n")
attempt("body large output", chat, max_tokens=10**12)
attempt("body negative output", chat, max_tokens=-5)
attempt("body many answers", chat, n=10**9)
attempt("body fraction", chat, max_tokens=1.5)
attempt("websocket", lambda: say(inspected(OPENAI), request(
    OPENAI, "/v1/realtime?model=tiny", headers=f"Authorization: Bearer {TOKEN}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n")))
attempt("no token", lambda: say(inspected(OPENAI, steered=True), request(
    OPENAI, "/v1/chat/completions", "POST", "Content-Type: application/json\r\nContent-Length: %d\r\n" % len(whole), whole), "POST"))
attempt("own key", lambda: say(inspected(OPENAI, steered=True), request(
    OPENAI, "/v1/chat/completions", "POST", "Authorization: Bearer sk-real-mine\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % len(whole), whole), "POST"))
attempt("plain http", lambda: say(dial(80), request(OPENAI, "/v1/models")))
finish()
