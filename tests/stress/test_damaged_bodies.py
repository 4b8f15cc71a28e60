"""Real images, arrays, forms and JSON with damaged bytes: each is answered, soon, and never with a fault of ours."""

import time
from collections import Counter
from collections.abc import Callable

from hypothesis import HealthCheck, given, settings

from ddaebm.service.http.openinference import HEADER_LENGTH
from tests.e2e.conftest import Running
from tests.service.conftest import check_problem
from tests.stress.bodies import ARRAYS, IMAGES, TENSORS, Body, damaged
from tests.stress.conftest import STRESS, count, mebibytes, process_of

SECONDS = 10.0  # for one: an image within the limits may take a second, and on a busy machine several

Record = Callable[[str, object], None]


def test_damaged_bodies(stand_in: Running, record_property: Record) -> None:
    statuses: Counter[int] = Counter()
    slowest = [0.0]

    def answered(body: Body) -> None:
        headers = {"content-type": body.content_type}
        if body.json_length is not None:
            headers[HEADER_LENGTH] = str(body.json_length)
        began = time.perf_counter()
        response = stand_in.client.post(body.path, content=body.content, headers=headers)
        seconds = time.perf_counter() - began
        statuses[response.status_code] += 1
        slowest[0] = max(slowest[0], seconds)
        assert response.status_code < 500
        assert seconds < SECONDS
        if response.status_code != 200:
            check_problem(response, response.status_code)

    # Undamaged first: the seeds are what they should be. Refused are floating point, and Fortran order.
    for body in [Body(image, "image/png") for image in IMAGES] + ARRAYS + TENSORS:
        answered(body)
    assert statuses == {200: len(IMAGES + ARRAYS + TENSORS) - 7, 422: 7}

    find = settings(max_examples=count(150, 20_000), deadline=None, derandomize=not STRESS, database=None,
                    suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
    find(given(damaged)(answered))()
    record_property("bodies", sum(statuses.values()))
    record_property("statuses", dict(sorted(statuses.items())))
    record_property("slowest_s", round(slowest[0], 3))
    record_property("rss_mib", round(mebibytes(process_of(stand_in)), 1))
    assert "Traceback" not in stand_in.log.read_text()
    assert stand_in.client.get("/readyz").status_code == 200
