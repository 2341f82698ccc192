"""Keep a server busy: clients that ask again as soon as they are answered, one in three for much.

python examples/load.py http://localhost:8000 [SECONDS]
"""

import json
import sys
import threading
import time
from urllib.request import Request, urlopen

CLIENTS = 16
SHORT, LONG = 8, 200
"""Tokens of an answer."""

url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://localhost:8000"
ends = time.monotonic() + (float(sys.argv[2]) if len(sys.argv) > 2 else 60)
with urlopen(f"{url}/v1/models") as answer:
    model = json.load(answer)["data"][0]["id"]
waits: dict[str, list[float]] = {"reports": [], "chat": []}
errors: list[OSError] = []


def ask(team: str, tokens: int) -> None:
    """Ask until the time is over."""
    body = {
        "model": model,
        "prompt": f"A few lines for {team}.",
        "max_tokens": tokens,
        "ignore_eos": True,
        "vllm_xargs": {"client_id": team},
    }
    while time.monotonic() < ends:
        asked = time.monotonic()
        request = Request(f"{url}/v1/completions", json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        try:
            urlopen(request).read()
        except OSError as error:
            errors.append(error)
            return
        waits[team].append(time.monotonic() - asked)


kinds = [("reports", LONG) if number % 3 == 0 else ("chat", SHORT) for number in range(CLIENTS)]
threads = [threading.Thread(target=ask, args=kind) for kind in kinds]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for team, seconds in waits.items():
    mean = f", {sum(seconds) / len(seconds):.2f} s each on average" if seconds else ""
    print(f"{team}: {len(seconds):,} answers{mean}")
if errors:
    sys.exit(f"{len(errors)} of {CLIENTS} clients gave up: {errors[0]}")
