"""What the scripts of the egress tests share: the ways to the gateway, byte by byte, and results as JSON.

An outcome is a short text: `403 HostNotAllowed` for an answer with a reason, `200` for one without, `closed` for a
connection that ended without an answer, `silence` for none at all.
"""

import base64
import http.client
import json
import os
import socket
import ssl
import struct
import threading
import time
from urllib.parse import urlsplit

_PROXY = urlsplit(os.environ.get("HTTPS_PROXY", "http://run:none@127.0.0.1:3128"))
GATEWAY = _PROXY.hostname
TOKEN = _PROXY.password
PROXY_PORT = _PROXY.port
CA = os.environ.get("SSL_CERT_FILE")
TIMEOUT = 8
RESULTS = {}
BESIDE = []


class Refused(Exception):
    """The gateway answered with something else than success."""


def attempt(name, function, *arguments, **named):
    """Tries something and keeps its outcome."""
    try:
        found = function(*arguments, **named)
    except Refused as refused:
        found = str(refused)
    except (TimeoutError, socket.timeout):
        found = "silence"
    except ssl.SSLCertVerificationError:
        found = "untrusted"
    except ConnectionRefusedError:
        found = "refused"
    except (OSError, EOFError, http.client.HTTPException):
        found = "closed"
    except Exception as error:  # a bug of the script must not look like a refusal
        found = f"{type(error).__name__}: {error}"
    RESULTS[name] = found
    return found


def attempt_beside(name, function, *arguments):
    """Tries something that takes long while the script goes on; `finish` waits for it."""
    BESIDE.append(threading.Thread(target=attempt, args=(name, function, *arguments)))
    BESIDE[-1].start()


def finish(code=0):
    """Prints all outcomes where the tests look for them, and ends."""
    for thread in BESIDE:
        thread.join()
    print("RESULT " + json.dumps(RESULTS), flush=True)
    raise SystemExit(code)


def authorization(token=None):
    """The header line that presents the run's token to the proxy."""
    value = base64.b64encode(f"run:{token or TOKEN}".encode()).decode()
    return f"Proxy-Authorization: Basic {value}\r\n"


def dial(port, timeout=TIMEOUT):
    """A connection to a port of the gateway."""
    return socket.create_connection((GATEWAY, port), timeout=timeout)


def read_answer(connection, method="GET"):
    """Status, headers and body of one answer."""
    response = http.client.HTTPResponse(connection, method=method)
    response.begin()
    body = response.read()
    return response.status, response.headers, body


def verdict(status, body):
    """The outcome that an answer stands for."""
    try:
        reason = json.loads(body)["reason"]
    except (ValueError, KeyError, TypeError):
        return str(status)
    return f"{status} {reason}"


def say(connection, text, method="GET"):
    """Sends bytes and gives the outcome of what comes back."""
    connection.sendall(text if isinstance(text, bytes) else text.encode("latin-1"))
    status, _, body = read_answer(connection, method)
    return verdict(status, body)


def connect(authority, token=None, extra="", timeout=TIMEOUT):
    """A tunnel by CONNECT; `token=False` sends none."""
    connection = dial(PROXY_PORT, timeout)
    proof = "" if token is False else authorization(token)
    request = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{proof}{extra}\r\n"
    connection.sendall(request.encode("utf-8", "surrogateescape"))
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        if not byte:
            raise EOFError("closed")
        head += byte
    status = int(head.split(b" ", 2)[1])
    if status != 200:
        body = b""
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
                while len(body) < length:
                    more = connection.recv(length - len(body))
                    if not more:
                        break
                    body += more
        raise Refused(verdict(status, body))
    return connection


def secure(connection, name, alpn=("http/1.1",), verify=True, ca=None):
    """TLS on a connection, with this name (or none) in the ClientHello."""
    context = ssl.create_default_context(cafile=ca or CA) if verify else ssl._create_unverified_context()
    if verify and name is None:
        context.check_hostname = False
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context.wrap_socket(connection, server_hostname=name)


def request(host, path="/echo", method="GET", headers="", body="", version="1.1"):
    """The text of a request."""
    if body and "ontent-" not in headers and "ransfer-" not in headers:
        headers += f"Content-Length: {len(body)}\r\n"
    return f"{method} {path} HTTP/{version}\r\nHost: {host}\r\n{headers}\r\n{body}"


def inspected(host, port=443, steered=False):
    """A TLS connection to an inspected host, through the proxy or steered."""
    connection = dial(port) if steered else connect(f"{host}:{port}")
    return secure(connection, host)


def get(host, path="/echo", steered=False, **named):
    """The outcome of one request to an inspected host."""
    connection = inspected(host, steered=steered)
    try:
        return say(connection, request(host, path, **named), named.get("method", "GET"))
    finally:
        connection.close()


def fetch(host, path="/echo", steered=False, **named):
    """Status, headers and body of one request to an inspected host."""
    connection = inspected(host, steered=steered)
    try:
        connection.sendall(request(host, path, **named).encode("latin-1"))
        return read_answer(connection, named.get("method", "GET"))
    finally:
        connection.close()


def absolute(url, host, token=None, method="GET", headers="", body=""):
    """The outcome of a request in absolute form."""
    connection = dial(PROXY_PORT)
    proof = "" if token is False else authorization(token)
    text = request(host, url, method, proof + headers, body)
    return say(connection, text, method)


# --- DNS ----------------------------------------------------------------------------------------------------------

KINDS = {"A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "NULL": 10, "MX": 15, "TXT": 16, "AAAA": 28, "SRV": 33, "HTTPS": 65,
         "AXFR": 252, "ANY": 255}
CODES = {0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}


def query(name, kind="A", cls=1, flags=0x0100, count=1):
    """A DNS message with one question (or one that claims to hold more)."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
    return struct.pack("!6H", 0x1234, flags, count, 0, 0, 0) + labels + struct.pack("!2H", KINDS[kind], cls)


def read_dns(message):
    """Code and addresses of an answer, such as `NOERROR 10.0.0.1`."""
    _, flags, questions, answers, _, _ = struct.unpack("!6H", message[:12])
    at, found = 12, []

    def skip_name(at):
        while message[at]:
            if message[at] >= 0xC0:
                return at + 2
            at += 1 + message[at]
        return at + 1

    for _ in range(questions):
        at = skip_name(at) + 4
    for _ in range(answers):
        at = skip_name(at)
        kind, _, _, length = struct.unpack("!HHIH", message[at:at + 10])
        at += 10
        found.append(socket.inet_ntoa(message[at:at + 4]) if kind == 1 else f"type{kind}")
        at += length
    return " ".join([CODES.get(flags & 15, str(flags & 15))] + found)


def ask(message, tcp=False, timeout=3):
    """The answer to a DNS message: the gateway's address stands as `gateway`."""
    if tcp:
        with dial(53, timeout) as connection:
            connection.sendall(struct.pack("!H", len(message)) + message)
            answer = read_framed(connection)
    else:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
            connection.settimeout(timeout)
            connection.sendto(message, (GATEWAY, 53))
            answer = connection.recv(4096)
    return read_dns(answer).replace(GATEWAY, "gateway")


def read_framed(connection):
    """One message of DNS over TCP."""
    length = struct.unpack("!H", read_exactly(connection, 2))[0]
    return read_exactly(connection, length)


def read_exactly(connection, length):
    """So many bytes."""
    data = b""
    while len(data) < length:
        more = connection.recv(length - len(data))
        if not more:
            raise EOFError("closed")
        data += more
    return data


def wait_closed(connection, seconds):
    """Whether the other side ends the connection within so many seconds."""
    connection.settimeout(0.5)
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        try:
            if not connection.recv(65536):
                return "closed"
        except (TimeoutError, socket.timeout):
            continue
        except OSError:
            return "closed"
    return "open"
