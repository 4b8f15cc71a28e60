"""Memory that parsing takes, as a multiple of the bytes of the body."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.stress.conftest import ROOT

MEASURE = """
import sys
from ddaebm.service.http.errors import Problem
from ddaebm.service.http.openinference import TensorSpec, parse_request
from ddaebm.service.http.uploads import Body, read_entries
from ddaebm.service.settings import Settings

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

head = b'{"inputs":[{"name":"images","datatype":"UINT8","shape":[256,28,28,1],"data":'
body = eval(sys.argv[1])
with open("/proc/self/clear_refs", "w") as handle:
    handle.write("5")  # the peak from here on
before = peak()
try:
    if body.startswith(head):
        parse_request(body, None, TensorSpec("images", "UINT8", (-1, 28, 28, 1)), [], 256)
    else:
        read_entries(Body(body, "application/json", Settings(), 1))
except Problem:
    pass
print((peak() - before) / (len(body) / 2**20))
"""
BODIES = {
    "numbers": 'head + b"[" + b",".join([b"255"] * 200704) + b"]}]}"',
    "nested": 'head + str([[[[7]] * 28] * 28] * 256).encode() + b"}]}"',
    "lists": 'head + b"[" + b",".join([b"[]"] * 1_300_000) + b"]}]}"',
    "dicts": "head + b'[' + b','.join([b'{\"a\":0}'] * 500_000) + b']}]}'",
    "one long text": "head + str(['x' * 2**20, *['y'] * 600]).replace(chr(39), chr(34)).encode() + b'}]}'",
    "base64": "b'{\"images\":[\"' + b'A' * 40_000_000 + b'\"]}'",
    "an emoji": "b'{\"images\":[\"' + b'A' * 40_000_000 + chr(0x1F600).encode() + b'\"]}'",
    "escapes": "b'{\"images\":[\"' + b'A' * 35_000_000 + bytes([92]) * 4_000_000 + b'\"]}'",
    "256 texts": "b'{\"images\":[' + b','.join([b'\"' + b'A' * 150_000 + b'\"'] * 256) + b']}'",
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is Linux' own count")
@pytest.mark.parametrize("name", BODIES)
def test_json_takes_a_small_multiple_of_its_bytes(name: str, record_property: Callable[[str, object], None]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, BODIES[name]], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    record_property("multiple", round(float(done.stdout), 1))
    assert float(done.stdout) < 8
