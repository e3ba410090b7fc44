"""requests_client.py URL: calls in one session, and prints what came back, as JSON."""

import hashlib
import json
import sys

import requests

url = sys.argv[1]
shown = []


def show(response):
    fields = sorted(item for item in response.headers.items() if item[0] not in ("Date", "Connection"))
    shown.append({"status": response.status_code, "headers": fields, "body": response.json()})


def chunks():
    for number in range(40):
        yield hashlib.sha256(str(number).encode()).digest() * 1000


with requests.Session() as session:
    session.headers["X-CaSe-Of-ReQuEsT"] = "kept"
    for number in range(20):
        show(session.get(f"{url}/items/{number}?a=b%20c&d=%C3%A9", timeout=50))
    show(session.post(f"{url}/json", json={"hello": "wörld"}, timeout=50))
    show(session.put(f"{url}/chunked", data=chunks(), timeout=50))
    show(session.post(f"{url}/form", files={"file": ("name", b"\x00" * 100_000)}, timeout=50))
    # requests sends this body's boundary at random: only its size is comparable.
    shown[-1] = shown[-1]["body"]["length"]

print(json.dumps(shown, indent=1))
