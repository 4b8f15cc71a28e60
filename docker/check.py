"""Asks a running service for images and scores, and stops at the first wrong answer. Standard library alone.

python3 docker/check.py http://127.0.0.1:8000
"""

import base64
import json
import sys
import urllib.request
from typing import Any

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
# A proxy of the environment must not be asked about this machine.
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(url: str, body: bytes | None = None, **headers: str) -> bytes:
    """The body of a 200; every other status is an error."""
    request = urllib.request.Request(url, body, {name.replace("_", "-"): value for name, value in headers.items()})
    with opener.open(request, timeout=60) as response:
        answer: bytes = response.read()
    return answer


def check(what: str, holds: bool) -> None:
    if not holds:
        raise SystemExit(f"FAILED: {what}")
    print(f"ok: {what}")


def main(base: str) -> None:
    check("GET /readyz", json.loads(ask(f"{base}/readyz"))["status"] == "ready")

    def sample(n: int, accept: str) -> bytes:
        body = json.dumps({"n": n, "seed": 7}).encode()
        return ask(f"{base}/v1/samples", body, Content_Type="application/json", Accept=accept)

    png = sample(1, "image/png")
    check("POST /v1/samples gives a PNG", png.startswith(PNG_MAGIC))
    check("the same seed gives the same bytes", sample(1, "image/png") == png)
    images = json.loads(sample(3, "application/json"))["images"]
    pngs = [base64.b64decode(item["image"], validate=True) for item in images]
    check("POST /v1/samples gives JSON with 3 PNGs", [p.startswith(PNG_MAGIC) for p in pngs] == [True] * 3)
    check("the first of them is the image of that seed", images[0]["seed"] == 7 and pngs[0] == png)

    boundary = "ddaebm-docker-test"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
    form = head.encode() + png + f"\r\n--{boundary}--\r\n".encode()
    answer = ask(f"{base}/v1/scores", form, Content_Type=f"multipart/form-data; boundary={boundary}")
    results: list[dict[str, Any]] = json.loads(answer)["results"]
    check("POST /v1/scores scores it", len(results) == 1 and 0 < results[0]["p_value"] <= 1)

    lines = ask(f"{base}/metrics").decode().splitlines()
    check("GET /metrics counts it", any(line.startswith("ddaebm_images_scored_total{") for line in lines))


if __name__ == "__main__":
    main(sys.argv[1])
