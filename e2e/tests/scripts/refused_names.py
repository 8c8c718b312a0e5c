"""Names that no rule allows, by every road, and names that are spelled to look like one that is allowed."""

from attack import *

ROADS = {
    "proxy": lambda host: connect(f"{host}:443") and "200",
    "absolute": lambda host: absolute(f"http://{host}/echo", host),
    "steered-http": lambda host: say(dial(80), request(host)),
    "steered-tls": lambda host: secure(dial(443), host, verify=False) and "200",
    "dns": lambda host: ask(query(host)),
}
for name, road in ROADS.items():
    attempt(f"{name} unlisted", road, "evil.test")



def in_full():
    """What the body of a refusal says."""
    connection = dial(PROXY_PORT)
    connection.sendall(request("evil.test", "http://evil.test/echo", headers=authorization()).encode())
    said = json.loads(read_answer(connection)[2])
    return " ".join(said[name] for name in ("reason", "host", "policy"))


attempt("refusal in full", in_full)

# The controls: the same roads are open to what is allowed.
attempt("control proxy", get, "seen.example.test")
attempt("control steered", get, "seen.example.test", steered=True)
attempt("control upper case", get, "SEEN.EXAMPLE.TEST")
attempt("control absolute", absolute, "http://plain.example.test/echo", "plain.example.test")
attempt("control steered http", lambda: say(dial(80), request("plain.example.test")))
attempt("control dns", ask, query("seen.example.test"))
attempt("control wildcard", get, "one.wild.example.test")

for spelling in [
    "seen.example.test.", "evilseen.example.test", "a.seen.example.test", "seen.example.test.evil.test", "seen",
    "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "wild.example.test", "xwild.example.test",
    "seen.example.test%00.evil.test", "seen_example_test", ".seen.example.test", "seen..example.test", "*.example.test",
    "seen.example.test@evil.test", "user:seen.example.test@evil.test", "sëen.example.test", "localhost", "",
]:
    attempt(f"spelling {spelling}", lambda: connect(f"{spelling}:443") and "200")

attempt("port 22", lambda: connect("seen.example.test:22") and "200")
attempt("port 80 of https", lambda: connect("seen.example.test:80") and "200")
attempt("port 0", lambda: connect("seen.example.test:0") and "200")
attempt("port 65536", lambda: connect("seen.example.test:65536") and "200")
attempt("no port", lambda: connect("seen.example.test") and "200")
attempt("plain http where https", absolute, "http://seen.example.test/echo", "seen.example.test")
attempt("plain http where https, steered", lambda: say(dial(80), request("seen.example.test")))
attempt("https in absolute form", absolute, "https://seen.example.test/echo", "seen.example.test")
attempt("other scheme", absolute, "ftp://plain.example.test/echo", "plain.example.test")
attempt("absolute form, other Host", absolute, "http://plain.example.test/echo", "evil.test")
attempt("absolute form on the steered port", lambda: say(dial(80), request("plain.example.test", "http://evil.test/")))

# What speaks no HTTP at all.
attempt("socks5", lambda: say(dial(PROXY_PORT), b"\x05\x01\x00"))
attempt("socks4", lambda: say(dial(PROXY_PORT), b"\x04\x01\x01\xbb\x5d\xb8\xd8\x22\x00"))
attempt("tls to the proxy port", lambda: secure(dial(PROXY_PORT), "seen.example.test", verify=False) and "200")
for port in (22, 3129, 5353, 6443, 8080, 8443, 9443, 9444):
    # The registration port answers recorders only; the others are no ports of the Service.
    attempt(f"gateway port {port}", lambda: say(dial(port, 2), request("seen.example.test")))


def datagram(host, port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.settimeout(1)
        connection.sendto(b"\xc3\0\0\0\x01" + b"\0" * 1200, (host, port))
        return f"answered {len(connection.recv(2048))}"


attempt("quic to the gateway", datagram, GATEWAY, 443)
attempt("quic outside", datagram, "93.184.216.34", 443)
attempt("direct", lambda: socket.create_connection(("93.184.216.34", 443), 1) and "connected")
attempt("direct dns", datagram, "172.30.0.10", 53)
attempt("cluster dns", datagram, "10.96.0.10", 53)
finish()
