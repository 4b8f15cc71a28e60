"""False alarms of the drift martingale on quiet streams, and its delay once strange images come; docs/ood.md.

Scores are simulated: ranks alone count, so any distribution gives the same result. Each stream draws a calibration set,
which stays as it is.
"""

import argparse
import json
import math

import numpy as np

from ddaebm.model.ood.drift import Drift

ALARM = math.log(100)
BATCH = 100


def stream(seed: int, calibration: int, quiet: int, share: float) -> tuple[bool, int | None]:
    """(a false alarm in `quiet` images, images until an alarm once `share` of them are strange).

    A strange score is larger than every calibration score, as nearly all of MNIST's are under Fashion-MNIST's model.
    """
    rng = np.random.default_rng(seed)
    drift = Drift(rng.chisquare(260, calibration), seed)
    alarm = False
    for _ in range(quiet // BATCH):
        drift.update(rng.chisquare(260, BATCH))
        alarm |= drift.log_martingale > ALARM
    if alarm:
        return True, None
    for count in range(1, 10_001):
        strange = rng.random() < share
        drift.update(rng.chisquare(260, 1) * (1 + 2 * strange))
        if drift.log_martingale > ALARM:
            return False, count
    return False, None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--calibration", type=int, default=5_000)
    parser.add_argument("--quiet", type=int, default=100_000, help="images before the strange ones")
    parser.add_argument("--share", type=float, default=0.1, help="of strange images, then")
    args = parser.parse_args()
    results = [stream(seed, args.calibration, args.quiet, args.share) for seed in range(args.streams)]
    delays = [delay for alarm, delay in results if not alarm]
    seen = [delay for delay in delays if delay is not None]
    report = {
        "streams": args.streams,
        "false_alarms": sum(alarm for alarm, _ in results) / args.streams,
        "never_seen": len(delays) - len(seen),
        "delay": {name: float(np.quantile(seen, q)) for name, q in (("median", 0.5), ("95 %", 0.95), ("most", 1.0))},
    }
    print(json.dumps(vars(args) | report, indent=2))


if __name__ == "__main__":
    main()
