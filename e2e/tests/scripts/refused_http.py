"""Requests that could be read in two ways, or that ask for what the rule does not allow, to an inspected host and to a
plain one; and answers of a server that breaks the protocol."""

import sys

from attack import *

SEEN, PLAIN, MARK = "seen.example.test", "plain.example.test", sys.argv[1]


def proxied(text):
    """The same request, in absolute form and with the run's token, on the proxy's port."""
    first, rest = text.split("\n", 1)
    return f"{first.replace(' /', f' http://{PLAIN}/', 1)}\n{authorization()}{rest}"


ROADS = {
    "inspected": (SEEN, lambda: inspected(SEEN), lambda text: text),
    "steered": (SEEN, lambda: inspected(SEEN, steered=True), lambda text: text),
    "plain": (PLAIN, lambda: dial(80), lambda text: text),
    "absolute": (PLAIN, lambda: dial(PROXY_PORT), proxied),
}
SMUGGLED = f"GET /smuggled-{MARK}-{{name}} HTTP/1.1\r\nHost: {{host}}\r\n\r\n"
MALFORMED = {
    "length and coding": "POST /echo HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "coding and length": "POST /echo HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    "two lengths": "POST /echo HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nContent-Length: 40\r\n\r\n",
    "listed lengths": "POST /echo HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0, 40\r\n\r\n",
    "signed length": "POST /echo HTTP/1.1\r\nHost: {host}\r\nContent-Length: +0\r\n\r\n",
    "negative length": "POST /echo HTTP/1.1\r\nHost: {host}\r\nContent-Length: -1\r\n\r\n",
    "odd coding": "POST /echo HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "coding twice": "POST /echo HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "coding in 1.0": "POST /echo HTTP/1.0\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "tab before coding": "POST /echo HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "space before colon": "POST /echo HTTP/1.1\r\nHost: {host}\r\nContent-Length : 0\r\n\r\n",
    "folded line": "GET /echo HTTP/1.1\r\nHost: {host}\r\nX-A: one\r\n two\r\n\r\n",
    "bare line feed": "GET /echo HTTP/1.1\nHost: {host}\n\n",
    "one bare line feed": "GET /echo HTTP/1.1\r\nHost: {host}\r\nX-A: a\nX-B: b\r\n\r\n",
    "bare carriage return": "GET /echo HTTP/1.1\r\nHost: {host}\r\nX-A: a\rX-B: b\r\n\r\n",
    "two hosts": "GET /echo HTTP/1.1\r\nHost: {host}\r\nHost: evil.test\r\n\r\n",
    "the same host twice": "GET /echo HTTP/1.1\r\nHost: {host}\r\nHost: {host}\r\n\r\n",
    "no host": "GET /echo HTTP/1.1\r\nX-A: a\r\n\r\n",
    "zero byte": "GET /echo HTTP/1.1\r\nHost: {host}\r\nX-A: a\0b\r\n\r\n",
    "two words as version": "GET /echo HTTP/1.1 HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "no version": "GET /echo\r\n\r\n",
    "version 2": "GET /echo HTTP/2.0\r\nHost: {host}\r\n\r\n",
    "chunk size with sign": "POST /echo HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n+1\r\na\r\n0\r\n\r\n",
    "chunk size with 0x": "POST /echo HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
    "large chunk size": "POST /echo HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\na\r\n",
    "many headers": "GET /echo HTTP/1.1\r\nHost: {host}\r\n" + "X-A: a\r\n" * 200 + "\r\n",
    "large headers": "GET /echo HTTP/1.1\r\nHost: {host}\r\nX-A: " + "a" * 70000 + "\r\n\r\n",
    "long path": "GET /echo?" + "a" * 70000 + " HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "connect inside": "CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test:443\r\n\r\n",
    "trace": "TRACE /echo HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "upgrade": "GET /ws HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    "upgrade to h2c": "GET /echo HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
}
PATHS = {
    "not listed": "/other", "prefix without slash": "/belowx", "prefix itself": "/below", "dots": "/below/../echo",
    "one dot": "/below/./x", "encoded dots": "/below/%2e%2e/echo", "half encoded dots": "/below/.%2E/echo",
    "double slash": "/below//x", "slashes at the start": "//echo", "backslash": "/below\\..\\echo", "encoded slash": "/below/%2f",
    "encoded backslash": "/below/%5c", "zero": "/below/%00", "semicolon": "/below/x;y", "not ascii": "/below/\xe9",
    "encoded twice": "/below/%252e%252e/echo", "fragment": "/below/x#y", "asterisk": "*", "no slash": "echo",
}
for road, (host, to, shape) in ROADS.items():
    attempt(f"control, {road}", lambda: say(to(), shape(request(host))))
    for name, text in MALFORMED.items():
        # What is refused must end the connection, or the rest of it could be a second request. After a TRACE, which is
        # well-formed, it is one.
        text = shape(text.format(host=host))
        if name != "trace":
            text += SMUGGLED.format(host=host, name=name.replace(" ", "-"))
        attempt(f"{name}, {road}", lambda: say(to(), text))
for road in ("inspected", "steered"):
    host, to, _ = ROADS[road]
    attempt(f"control below, {road}", lambda: say(to(), request(host, "/below/x")))
    attempt(f"control query, {road}", lambda: say(to(), request(host, "/echo?x=/../y")))
    for name, path in PATHS.items():
        attempt(f"path {name}, {road}", lambda: say(to(), request(host, path)))
    attempt(f"method, {road}", lambda: say(to(), request(host, method="DELETE")))
    attempt(f"lower case method, {road}", lambda: say(to(), request(host, method="get")))
    attempt(f"control body, {road}", lambda: say(to(), request(host, method="POST", body="x" * 1000), "POST"))
    attempt(f"large body, {road}", lambda: say(to(), request(host, method="POST", body="x" * 1001), "POST"))
    chunks = "".join("64\r\n" + "x" * 100 + "\r\n" for _ in range(11)) + "0\r\n\r\n"
    attempt(f"large body in chunks, {road}", lambda: say(
        to(), f"POST /echo HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}", "POST"))

# Headers that would tell the host another method, host or client than the rules saw do not arrive.
SECRET = [
    "X-HTTP-Method-Override: DELETE", "X-Method-Override: DELETE", "X-Original-URL: /other", "X-Rewrite-URL: /other",
    "X-Forwarded-For: 1.2.3.4", "X-Forwarded-Host: evil.test", "Forwarded: host=evil.test", "Via: 1.1 a", "Keep-Alive: 5",
    "Proxy-Authorization: Basic abc", "X-Hop: hop", "Connection: X-Hop", "TE: trailers",
]
_, _, body = fetch(SEEN, headers="".join(line + "\r\n" for line in SECRET))
arrived = {name for name, _ in json.loads(body)["headers"]}
RESULTS["headers that arrived"] = ",".join(sorted(arrived & {line.split(":")[0].lower() for line in SECRET}))
RESULTS["token that arrived"] = str(TOKEN in body.decode())


def slow_head():
    """A request whose header block never ends."""
    connection = inspected(SEEN)
    connection.sendall(f"GET /echo HTTP/1.1\r\nHost: {SEEN}\r\n".encode())
    begun = time.monotonic()
    for number in range(40):
        try:
            connection.settimeout(1)
            connection.sendall(f"X-{number}: a\r\n".encode())
            if not connection.recv(4096):
                break
            break
        except (TimeoutError, socket.timeout):
            continue
        except OSError:
            break
    return "ended" if time.monotonic() - begun < 25 else "still open"


attempt("slow head", slow_head)
for path in ("endless-header", "endless-interim", "endless-trailers", "both-lengths", "two-lengths", "odd-coding",
             "bad-chunk", "short-body", "garbage", "switching", "unasked", "bare-lf", "folded"):
    def broken():
        connection = inspected("raw.example.test")
        first = say(connection, request("raw.example.test", f"/{path}"))
        try:
            second = say(connection, request("raw.example.test", "/ok"))
        except (OSError, EOFError, http.client.HTTPException):
            second = "closed"
        return f"{first}, {second}"

    attempt(f"upstream {path}", broken)


def smuggled():
    connection = inspected("raw.example.test")
    for path in ("/unasked", "/ok", "/both-lengths", "/ok", "/two-lengths", "/ok"):
        connection.sendall(request("raw.example.test", path).encode())
        status, headers, body = read_answer(connection)
        if "x-smuggled" in headers or b"smuggled" in body:
            return f"smuggled by {path}"
    return "clean"


attempt("smuggled answer", smuggled)
finish()
