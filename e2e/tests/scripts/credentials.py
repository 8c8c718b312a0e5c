"""Hosts to which the gateway adds a credential. Everything that can be seen from inside is printed: the test looks there
for the credential's value, which must not be in it, and in the outside world's journal, where it must be.

Argument: another sandbox's token, or `none`.
"""

import gzip
import subprocess
import sys

from attack import *

KEYED, OTHER = "keyed.example.test", sys.argv[1]


def show(name, host, path="/echo", **named):
    """One request, with its answer printed whole."""
    status, headers, body = fetch(host, path, **named)
    print(f"SEEN {name}: {status} {dict(headers)} {body!r}")
    if body.startswith(b"\x1f\x8b"):
        print(f"SEEN {name}, unpacked: {gzip.decompress(body)!r}")
    return verdict(status, body)


attempt("control", show, "control", KEYED)
attempt("http/2", lambda: subprocess.run(
    ["curl", "-sS", "--http2", f"https://{KEYED}/echo?h2", "-o", "/dev/null", "-w", "%{http_code} %{http_version}"],
    capture_output=True, text=True, timeout=20).stdout)
attempt("own value", show, "own", KEYED, "/echo?own", headers="Authorization: Bearer mine\r\n")
attempt("own value twice", show, "twice", KEYED, "/echo?own2",
        headers="authorization: Bearer mine\r\nAUTHORIZATION: Basic mine\r\nAuthorization : x\r\n")
attempt("own value, listed as hop by hop", show, "hop", KEYED, "/echo?own3",
        headers="Connection: Authorization\r\nAuthorization: Bearer mine\r\n")
attempt("reflected", show, "reflected", KEYED, "/reflect")
attempt("reflected byte by byte", show, "split", KEYED, "/reflect?split")
attempt("compressed reflection", show, "gzip", KEYED, "/reflect?gzip", headers="Accept-Encoding: gzip\r\n")
attempt("compressed answer", show, "gzip", KEYED, "/gzip")
attempt("not compressed", show, "encoding", KEYED, "/echo?enc", headers="Accept-Encoding: gzip\r\n")
attempt("range", show, "range", KEYED, headers="Range: bytes=0-10\r\n")
attempt("if-range", show, "if-range", KEYED, headers="Range: bytes=0-1\r\nIf-Range: x\r\n")
attempt("redirect", show, "redirect", KEYED, "/redirect?to=https%3A%2F%2Fevil.test%2F")
attempt("cookie", lambda: str(fetch(KEYED, "/cookie")[1].get("set-cookie")))
attempt("path", show, "path", "pathed.example.test", "/allowed/x")
attempt("other path", show, "path", "pathed.example.test", "/other")
attempt("own header name", show, "named", "named.example.test")
attempt("two rules", show, "two", "twice.example.test", "/both/x")
attempt("one of two rules", show, "one", "twice.example.test", "/one/x")
attempt("no consent", show, "no consent", "unconsented.example.test")
attempt("consent to another host", show, "other consent", "elsewhere.example.test")
attempt("no secret", show, "no secret", "missing.example.test")
attempt("line break in the secret", show, "broken", "broken.example.test")
attempt("plain http", absolute, f"http://{KEYED}/echo", KEYED)
attempt("plain http, steered", lambda: say(dial(80), request(KEYED)))
attempt("plain http in a tunnel", lambda: say(connect(f"{KEYED}:443"), request(KEYED)))

# Who the caller is: by its address, and by the run's token.
attempt("no token at the proxy", lambda: connect(f"{KEYED}:443", token=False) and "200")
attempt("no token, absolute form", absolute, "http://plain.example.test/echo", "plain.example.test", False)
attempt("empty token", lambda: connect(f"{KEYED}:443", token=False, extra="Proxy-Authorization: Basic cnVuOg==\r\n") and "200")
attempt("wrong token", lambda: connect(f"{KEYED}:443", token="0" * 64) and "200")
attempt("two tokens", lambda: connect(f"{KEYED}:443", extra=authorization("0" * 64)) and "200")
attempt("bearer at the proxy", lambda: connect(
    f"{KEYED}:443", token=False, extra=f"Proxy-Authorization: Bearer {TOKEN}\r\n") and "200")
attempt("other user", lambda: connect(f"{KEYED}:443", token=False, extra="Proxy-Authorization: Basic " +
                                      base64.b64encode(f"root:{TOKEN}".encode()).decode() + "\r\n") and "200")
attempt("steered without token", get, KEYED, steered=True)
attempt("steered with wrong token", get, KEYED, steered=True, headers="Authorization: Bearer " + "0" * 64 + "\r\n")
attempt("steered with token", get, KEYED, "/echo?steered", steered=True, headers=f"Authorization: Bearer {TOKEN}\r\n")
attempt("steered with token as key", get, KEYED, "/echo?steered2", steered=True, headers=f"x-api-key: {TOKEN}\r\n")
attempt("steered, no credential, no token", get, "seen.example.test", steered=True)
if OTHER != "none":
    attempt("another's token", lambda: connect(f"{KEYED}:443", token=OTHER) and "200")
    attempt("another's token, absolute form", absolute, "http://plain.example.test/echo", "plain.example.test", OTHER)
    attempt("another's token, steered", get, KEYED, steered=True, headers=f"Authorization: Bearer {OTHER}\r\n")
    attempt("another's token as key", get, KEYED, steered=True, headers=f"x-api-key: {OTHER}\r\n")

print("ENVIRONMENT", dict(os.environ))
print("FILES", subprocess.run("grep -rIl . /tmp /workspace /.sandbox /var/run /run 2>/dev/null | head -50; cat /proc/self/mountinfo",
                              shell=True, capture_output=True, text=True).stdout)
print("TOKEN", TOKEN)
finish()
