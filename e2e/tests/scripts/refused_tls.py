"""TLS that hides, omits or changes the name, and requests that name another host than their connection."""

import h2.config
import h2.connection
import h2.events

from attack import *

SEEN, THROUGH = "seen.example.test", "through.example.test"
OUTSIDE_CA = "/workspace/outside-ca.pem"


def hello(name, extra=b"", padding=0):
    """The bytes of a ClientHello, with more extensions at its end."""
    context = ssl._create_unverified_context()
    context.set_alpn_protocols(["http/1.1"])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        pass
    record = outgoing.read()
    if padding:
        extra += struct.pack("!HH", 21, padding) + b"\0" * padding
    body = bytearray(record[9:])
    at = 2 + 32
    at += 1 + body[at]
    at += 2 + struct.unpack("!H", body[at:at + 2])[0]
    at += 1 + body[at]
    length = struct.unpack("!H", body[at:at + 2])[0]
    body[at:at + 2] = struct.pack("!H", length + len(extra))
    body += extra
    handshake = b"\x01" + struct.pack("!I", len(body))[1:] + bytes(body)
    pieces = [handshake[i:i + 16000] for i in range(0, len(handshake), 16000)]
    return b"".join(b"\x16\x03\x01" + struct.pack("!H", len(piece)) + piece for piece in pieces)


def raw_hello(connection, data):
    """What comes back for the bytes of a ClientHello: a ServerHello, an alert, or nothing."""
    connection.sendall(data)
    first = connection.recv(5)
    if not first:
        raise EOFError("closed")
    if first[0] == 0x16:
        return "handshake"
    return "alert" if first[0] == 0x15 else "answered"


ECH = struct.pack("!HH", 0xFE0D, 10) + b"\0\0\x01\0\x01\x00\x00\x01\xaa\x00"
for road, to in {
    "tunnel to passthrough": lambda: connect(f"{THROUGH}:443"), "tunnel to inspected": lambda: connect(f"{SEEN}:443"),
    "steered": lambda: dial(443),
}.items():
    name = SEEN if "inspected" in road else THROUGH
    attempt(f"control hello, {road}", lambda: raw_hello(to(), hello(name)))
    attempt(f"no name, {road}", lambda: raw_hello(to(), hello(None)))
    attempt(f"ech, {road}", lambda: raw_hello(to(), hello(name, ECH)))
    attempt(f"unlisted name, {road}", lambda: raw_hello(to(), hello("evil.test")))
    attempt(f"large hello, {road}", lambda: raw_hello(to(), hello(name, padding=40000)))
    attempt(f"no tls, {road}", lambda: say(to(), request(name)))
    attempt(f"sslv2, {road}", lambda: raw_hello(to(), b"\x80\x2e\x01\x03\x01" + b"\0" * 41))
    attempt(f"garbage, {road}", lambda: raw_hello(to(), b"SSH-2.0-OpenSSH_9.2\r\n" + b"\0" * 64))
attempt("other allowed name in the tunnel", lambda: raw_hello(connect(f"{THROUGH}:443"), hello(SEEN)))
attempt("other allowed name in the inspected tunnel", lambda: raw_hello(connect(f"{SEEN}:443"), hello(THROUGH)))


def byte_by_byte():
    connection = connect(f"{THROUGH}:443")
    data = hello(THROUGH)
    for at in range(0, len(data), 40):
        connection.sendall(data[at:at + 40])
        time.sleep(0.01)
    return raw_hello(connection, b"")


attempt("control hello in pieces", byte_by_byte)


def passthrough(steered):
    connection = dial(443) if steered else connect(f"{THROUGH}:443")
    connection = secure(connection, THROUGH, ca=OUTSIDE_CA)
    return say(connection, request(THROUGH))


attempt("control passthrough", passthrough, False)
attempt("control passthrough, steered", passthrough, True)

for steered in (False, True):
    road = "steered" if steered else "proxy"
    for host in ("evil.test", THROUGH, "seen.example.test.", "seen.example.test:8443", "SEEN.example.test@evil.test", ""):
        attempt(f"Host {host}, {road}", lambda: say(inspected(SEEN, steered=steered), request(host)))

    def second_request():
        connection = inspected(SEEN, steered=steered)
        first = say(connection, request(SEEN))
        return f"{first}, {say(connection, request('evil.test'))}"

    attempt(f"second request, {road}", second_request)

    def absolute_inside():
        return say(inspected(SEEN, steered=steered), request(SEEN, "https://evil.test/echo"))

    attempt(f"absolute form inside, {road}", absolute_inside)


def two_streams(first, second, steered=False):
    """Status of two requests on one HTTP/2 connection to the inspected host."""
    connection = dial(443) if steered else connect(f"{SEEN}:443")
    connection = secure(connection, SEEN, alpn=("h2",))
    state = h2.connection.H2Connection(h2.config.H2Configuration(
        validate_outbound_headers=False, normalize_outbound_headers=False))
    state.initiate_connection()
    found = {}
    for stream, headers in ((1, first), (3, second)):
        usual = {":method": "GET", ":scheme": "https", ":authority": SEEN, ":path": "/echo"}
        usual.update(headers)
        state.send_headers(stream, list(usual.items()), end_stream=True)
        connection.sendall(state.data_to_send())
        while stream not in found:
            data = connection.recv(65536)
            if not data:
                found[stream] = "closed"
                break
            for event in state.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    found[event.stream_id] = dict(event.headers)[b":status"].decode()
                elif isinstance(event, h2.events.StreamReset):
                    found[event.stream_id] = "reset"
                elif isinstance(event, h2.events.ConnectionTerminated):
                    found[stream] = "terminated"
            connection.sendall(state.data_to_send())
    return f"{found[1]}, {found[3]}"


attempt("h2 control", two_streams, {}, {})
attempt("h2 other authority on the second stream", two_streams, {}, {":authority": "evil.test"})
attempt("h2 other allowed authority", two_streams, {}, {":authority": THROUGH})
attempt("h2 other host header", two_streams, {}, {"host": "evil.test"})
attempt("h2 other scheme", two_streams, {}, {":scheme": "http"})
attempt("h2 other path", two_streams, {}, {":path": "/other"})
attempt("h2 other method", two_streams, {}, {":method": "DELETE"})
attempt("h2 trace", two_streams, {}, {":method": "TRACE"})
attempt("h2 transfer-encoding", two_streams, {}, {"transfer-encoding": "chunked"})
attempt("h2 line break in a header", two_streams, {}, {"x-a": "a\r\nhost: evil.test"})
attempt("h2 steered, other authority", two_streams, {}, {":authority": "evil.test"}, True)
attempt("another wildcard name on one connection",
        lambda: say(inspected("one.wild.example.test"), request("two.wild.example.test")))

for name in ("self-signed", "expired", "wrong-name"):
    attempt(f"upstream {name}", get, f"{name}.example.test")
finish()
