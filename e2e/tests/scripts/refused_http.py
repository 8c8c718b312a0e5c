"""Requests that could be read in two ways, or that ask for what the rule does not allow, to an inspected host and to a
plain one; answers of a server that breaks the protocol; and whoever takes its time, on either side."""

import sys

from attack import *

SEEN, PLAIN, MARK = "seen.example.test", "plain.example.test", sys.argv[1]
BIG, RAW, CAPPED = "big.example.test", "raw.example.test", "raw.capped.example.test"
CEILING = 1_000_000


def cut_off(connection, first, piece, least, most):
    """Sends a beginning, then a piece every second: `ended` if the other side ends that between so many seconds."""
    connection.settimeout(1)
    connection.sendall(first)
    begun, heard = time.monotonic(), b""
    while time.monotonic() - begun < most:
        try:
            connection.sendall(piece)
            more = connection.recv(4096)
            if not more:
                break
            heard += more
        except (TimeoutError, socket.timeout):
            continue
        except OSError:
            break
    took = time.monotonic() - begun
    if heard.startswith(b"HTTP/1.1 2"):
        return "answered"
    return "ended" if least < took < most else f"over after {took:.0f} s"


def broken(path, timeout=TIMEOUT):
    """What an answer of the server that breaks the protocol comes to, and what the next two requests get."""
    connection = inspected(RAW)
    connection.settimeout(timeout)
    try:
        found = [say(connection, request(RAW, path))]
    except (TimeoutError, socket.timeout):
        raise
    except (OSError, EOFError, http.client.HTTPException):
        found = ["closed"]
        connection = inspected(RAW)
    for _ in range(2):
        connection.sendall(request(RAW, "/ok").encode())
        status, headers, body = read_answer(connection)
        smuggled = "x-smuggled" in headers or body != b"ok"
        found.append("smuggled" if smuggled else str(status))
    return ", ".join(found)


def stalled_body():
    """The beginning arrives at once; a body may rest for longer than a head may take."""
    connection = inspected(RAW)
    connection.settimeout(80)
    connection.sendall(request(RAW, "/stalled-body").encode())
    begun = time.monotonic()
    response = http.client.HTTPResponse(connection)
    response.begin()
    found = response.read(9).decode()
    if time.monotonic() - begun > 10:
        return f"{found} late"
    try:
        response.read()
    except http.client.IncompleteRead:
        return f"{found}, cut" if time.monotonic() - begun > 60 else f"{found}, cut too soon"
    return f"{found}, whole"


def endless_body():
    """How much of an answer without end comes through, by a rule with a ceiling."""
    connection = inspected(CAPPED)
    connection.sendall(request(CAPPED, "/endless-body").encode())
    response = http.client.HTTPResponse(connection)
    response.begin()
    got = 0
    try:
        while piece := response.read(65536):
            got += len(piece)
        return f"whole, {got}"
    except http.client.IncompleteRead as error:
        got += len(error.partial)
    # What was under way when the ceiling was met is lost.
    return "cut at the ceiling" if CEILING / 2 < got <= CEILING else f"cut at {got}"


def unread():
    """An answer without end that nobody reads for a minute, and then somebody does."""
    connection = inspected(BIG)
    connection.sendall(request(BIG, "/endless").encode())
    time.sleep(60)
    response = http.client.HTTPResponse(connection)
    response.begin()
    return f"{response.status}, {len(response.read(5_000_000))}"


HEAD = "GET /echo HTTP/1.1\r\nHost: {}\r\n"
STALLED = "POST /echo HTTP/1.1\r\nHost: {}\r\nContent-Length: 100\r\n\r\nabc"
# The client's preface, its settings, and the beginning of a frame of 4,000 bytes of headers.
H2_HEAD = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" + b"\0\x0f\xa0\1\5\0\0\0\1"
# The beginning of a ClientHello of 508 bytes.
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
for road, to, first, piece, least, most in [
    ("inspected", lambda: inspected(SEEN), HEAD.format(SEEN).encode(), b"X-A: a\r\n", 5, 25),
    ("plain", lambda: dial(80), HEAD.format(PLAIN).encode(), b"X-A: a\r\n", 5, 25),
    ("proxy", lambda: dial(PROXY_PORT), f"CONNECT {SEEN}:443 HTTP/1.1\r\n".encode(), b"X-A: a\r\n", 5, 25),
    ("clienthello", lambda: dial(443), HELLO, b"a", 5, 25),
    ("http/2", lambda: secure(connect(f"{SEEN}:443"), SEEN, alpn=("h2",)), H2_HEAD, b"\x82", 5, 35),
]:
    attempt_beside(f"slow head, {road}", lambda to, *more: cut_off(to(), *more), to, first, piece, least, most)
for road, to, host in [("inspected", lambda: inspected(SEEN), SEEN), ("plain", lambda: dial(80), PLAIN)]:
    first = STALLED.format(host).encode()
    attempt_beside(f"slow body, {road}", lambda to, *more: cut_off(to(), *more), to, first, b"", 50, 75)
for number in range(4):
    attempt_beside(f"unread answer {number}", unread)
for path in ("/slow-header", "/no-answer"):
    attempt_beside(f"upstream {path}", broken, path, 80)
attempt_beside("upstream /stalled-body", stalled_body)
attempt("upstream /endless-body", endless_body)
attempt("what a spent ceiling leaves", get, CAPPED, "/ok")


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

for path in ("/ok", "/endless-header", "/endless-interim", "/endless-trailers", "/both-lengths", "/two-lengths",
             "/odd-coding", "/bad-chunk", "/short-body", "/garbage", "/switching", "/unasked", "/bare-lf", "/folded"):
    attempt(f"upstream {path}", broken, path)
finish()
