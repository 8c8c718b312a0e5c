"""Addresses where names must be, in every spelling, and allowed names that lead where no rule may lead."""

from attack import *

for literal in [
    "93.184.216.34", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "127.0.0.1", "10.96.0.1", "10.96.0.10",
    "172.30.0.1", "172.30.0.10", "169.254.169.254", "169.254.169.254.", "168.63.129.16", "100.100.100.200",
    "0.0.0.0", "255.255.255.255", "224.0.0.1", "100.64.0.1", "192.168.0.1", GATEWAY, "[::1]", "[::]",
    "[::ffff:10.96.0.1]", "[::ffff:169.254.169.254]", "[::127.0.0.1]", "[64:ff9b::a9fe:a9fe]", "[2002:a9fe:a9fe::]",
    "[fd00:ec2::254]", "[fe80::1]", "[fe80::1%25eth0]", "::1", "93.184.216.34%00", "93.184.216.034", "1572395042",
    "a@127.0.0.1", "a:b@169.254.169.254", "a@[::1]", "93.184.216.34@10.96.0.1",
]:
    shown = "the gateway" if literal == GATEWAY else literal
    attempt(f"literal {shown}", lambda: connect(f"{literal}:443") and "200")
    attempt(f"absolute {shown}", absolute, f"http://{literal}/echo", literal)
attempt("steered literal", lambda: say(dial(80), request("169.254.169.254")))

# A cidr rule opens 10.20.0.0/16, port 443, and none can open the cluster's own ranges.
for name, address in [("api server", "10.96.0.1"), ("cluster dns", "10.96.0.10"), ("pod", "10.244.0.2"), ("gateway", GATEWAY)]:
    attempt(f"cidr {name}", lambda: connect(f"{address}:443") and "200")
# Another opens 93.184.216.0/24, port 9000.
attempt("cidr control", lambda: say(connect("93.184.216.50:9000"), request("cidr.example.test")))
attempt("cidr other port", lambda: connect("93.184.216.50:9001") and "200")
for spelling in ["1572395058", "93.184.216.050", "0x5db8d832", "[::ffff:93.184.216.50]", "93.184.216.50."]:
    attempt(f"cidr spelling {spelling}", lambda: connect(f"{spelling}:9000") and "200")

attempt("name control", get, "93-184-216-77.addr.example.test")
for label in [
    "127-0-0-1", "10-0-0-1", "10-96-0-1", "10-244-0-2", "172-16-0-1", "172-30-0-1", "172-30-0-10", "192-168-0-1",
    "169-254-169-254", "168-63-129-16", "100-100-100-200", "100-64-0-1", "0-0-0-0", "255-255-255-255", "224-0-0-1",
    "192-0-0-1", "198-18-0-1", "240-0-0-1", GATEWAY.replace(".", "-"), "0--1", "0--ffff-a60-1", "0--ffff-a9fe-a9fe",
    "64-ff9b--a9fe-a9fe", "64-ff9b--5db8-d822", "2002-a9fe-a9fe--1", "2001--1", "fd00-ec2--254", "fe80--1", "fc00--1",
    "ff02--1", "good-and-10-96-0-1", "good-and-169-254-169-254", "good-and-fd00-ec2--254", "good-and-0--ffff-a9fe-a9fe",
]:
    shown = label.replace(GATEWAY.replace(".", "-"), "the gateway")
    attempt(f"name {shown}", get, f"{label}.addr.example.test")
    attempt(f"through {shown}", lambda: secure(connect(f"{label}.addr.example.test:8443"), f"{label}.addr.example.test", verify=False) and "200")
attempt("alias to metadata", get, "to-metadata.example.test")
attempt("alias to the cluster", get, "to-cluster.example.test")
attempt("no such name", get, "nowhere.example.test")
attempt("failing name", get, "failing.example.test")

# In turn a good address and the metadata service's, new with each look-up: whichever the gateway has checked is the one
# that it dials. The host beyond says at which address it was reached.
turns = {}
for _ in range(16):
    try:
        status, _, body = fetch("rebind.example.test")
        found = json.loads(body)
        is_public = status == 200 and found["address"].startswith("93.184.216.")
        turn = "public" if is_public else found.get("reason", str(found))
    except Refused as refused:
        turn = str(refused)
    except (OSError, EOFError, http.client.HTTPException) as error:
        turn = type(error).__name__
    turns[turn] = turns.get(turn, 0) + 1
RESULTS["rebinding outcomes"] = ",".join(sorted(turns))
RESULTS["rebinding, fewest of an outcome"] = "enough" if min(turns.values()) >= 3 else str(turns)
finish()
