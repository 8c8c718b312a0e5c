"""Programs that know nothing of the gateway, each once with the proxy variables that the sandbox has and once without
them, as programs are that ignore such variables. The argument says whether what is passed through is trusted too."""

import concurrent.futures
import subprocess
import sys

from attack import RESULTS, finish

SEEN, THROUGH, PLAIN = "seen.example.test", "through.example.test", "plain.example.test"
OUTSIDE_CA = "/workspace/outside-ca.pem"
PROXY_VARIABLES = ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "NODE_USE_ENV_PROXY"]

REQUESTS = "import requests; print(requests.post('https://{host}/echo', data=b'x' * 500, timeout=20).json()['bodyBytes'])"
HTTPX = """
import httpx
with httpx.Client(http2={http2}, timeout=20) as client:
    answer = client.get('https://{host}/echo')
    print(answer.http_version, answer.json()['host'])
"""
URLLIB = "import json, urllib.request; print(json.load(urllib.request.urlopen('https://{host}/echo', timeout=20))['method'])"
FETCH = "fetch('https://{host}/echo').then(r => r.json()).then(b => console.log(b.method, b.host))"
STREAM = "fetch('https://{host}/drip?n=5&ms=50').then(async r => {{ let n = 0; for await (const c of r.body) n += c.length; console.log(n) }})"
SDK_PYTHON = "python3 models.py"
SDK_NODE = "node models.js"

PROGRAMS = {
    "curl": (f"curl -sS --max-time 20 https://{SEEN}/echo -o /dev/null -w '%{{http_code}} %{{http_version}}'", "200 2"),
    "curl 1.1": (f"curl -sS --max-time 20 --http1.1 https://{SEEN}/echo -o /dev/null -w '%{{http_code}} %{{http_version}}'", "200 1.1"),
    "curl upload": (f"head -c 3000000 /dev/zero | curl -sS --max-time 20 -T - https://big.example.test/echo | grep -o '\"bodyBytes\":[0-9]*'", '"bodyBytes":3000000'),
    "curl download": ("curl -sS --max-time 30 'https://big.example.test/bytes?n=20000000' | wc -c", "20000000"),
    "curl plain": (f"curl -sS --max-time 20 http://{PLAIN}/echo -o /dev/null -w '%{{http_code}}'", "200"),
    "curl through": (f"curl -sS --max-time 20 --cacert {OUTSIDE_CA} https://{THROUGH}/echo -o /dev/null -w '%{{http_code}} %{{http_version}}'", "200 2"),
    "curl wildcard": ("curl -sS --max-time 20 https://one.wild.example.test/echo -o /dev/null -w '%{http_code}'", "200"),
    "wget": (f"wget -q -T 20 -t 1 -O - https://{SEEN}/echo | grep -o '\"method\":\"GET\"'", '"method":"GET"'),
    "git clone": ("rm -rf {work}/clone && git clone -q https://git.packages.test/git/demo.git {work}/clone && python3 {work}/clone/hello.py", "hello from a clone"),
    "pip": ("pip install -q --no-cache-dir --target {work}/pip --index-url https://pypi.packages.test/simple/ greeting 2>&1 && PYTHONPATH={work}/pip python3 -c 'import greeting; print(greeting.greet())'", "hello from a wheel"),
    "npm": ("mkdir -p {work}/npm && cd {work}/npm && npm install --silent --cache {work}/cache --registry https://npm.packages.test/npm/ greeting >/dev/null && node -p 'require(\"greeting\")()'", "hello from a tarball"),
    "requests": (f"python3 -c \"{REQUESTS.format(host=SEEN)}\"", "500"),
    "httpx": (f"python3 -c \"{HTTPX.format(host=SEEN, http2=False)}\"", f"HTTP/1.1 {SEEN}"),
    "httpx 2": (f"python3 -c \"{HTTPX.format(host=SEEN, http2=True)}\"", f"HTTP/2 {SEEN}"),
    "urllib": (f"python3 -c \"{URLLIB.format(host=SEEN)}\"", "GET"),
    "fetch": (f"node -e \"{FETCH.format(host=SEEN)}\"", f"GET {SEEN}"),
    "fetch stream": (f"node -e \"{STREAM.format(host='big.example.test')}\"", "10"),
    "python sdks": (SDK_PYTHON, "ok"),
    "node sdks": (SDK_NODE, "ok"),
}


def run(name, road):
    """Runs one program and says what was wrong with it."""
    command, expected = PROGRAMS[name]
    work = f"/tmp/{name.replace(' ', '-')}-{road}"
    script = command.replace("{work}", work)
    if road == "steered":
        script = f"unset {' '.join(PROXY_VARIABLES)}; {script}"
    try:
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=150)
    except subprocess.TimeoutExpired:
        return "timeout"
    said = done.stdout.strip()
    if said.splitlines()[-1:] == [expected]:
        return "ok"
    return f"exit {done.returncode}: {said[-300:]} {done.stderr.strip()[-700:]}"


wanted = sys.argv[1:] or list(PROGRAMS)
with concurrent.futures.ThreadPoolExecutor(3) as pool:
    futures = {(name, road): pool.submit(run, name, road) for name in wanted for road in ("proxy", "steered")}
    for (name, road), future in futures.items():
        RESULTS[f"{name}, {road}"] = future.result()
finish()
