"""Large pictures of surfaces: synthesised from a photograph by image quilting, or cut from it.

Pictures of one photograph by quilting with independent seeds are independent draws, which crops of it are not: false
alarms can be judged on the former alone.
"""

import functools
import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Images = NDArray[np.uint8]  # (N, H, W)
Floats = NDArray[np.float32]

TEXTURES = ("brick", "grass", "gravel")
SIDE = 256
_BLOCK, _OVERLAP = 56, 16  # pixels
_TRIED = 200  # random places of the photograph that a block may come from
_BEST = 5  # of these, those with the smallest difference in the overlap, of which one is drawn


@functools.cache
def photograph(texture: str) -> Floats:
    """The photograph `texture` of scikit-image, (512, 512), grey levels."""
    found = importlib.util.find_spec("skimage")
    assert found is not None
    assert found.origin is not None
    with Image.open(Path(found.origin).parent / "data" / f"{texture}.png") as image:
        return np.asarray(image.convert("L"), np.float32)


def quilted(texture: str, count: int, side: int = SIDE) -> Images:
    """`count` synthesised pictures. Picture i depends on i alone."""
    rngs = (np.random.default_rng([i, *texture.encode()]) for i in range(count))
    return np.stack([_quilt(photograph(texture), side, rng) for rng in rngs])


def crops(texture: str, count: int, left: bool, side: int = SIDE) -> Images:
    """`count` random crops of the left or right half of the photograph; they overlap."""
    whole, rng = photograph(texture), np.random.default_rng([int(left), *texture.encode()])
    half = whole[:, : whole.shape[1] // 2] if left else whole[:, whole.shape[1] // 2 :]
    rows, columns = (rng.integers(0, size - side + 1, count) for size in half.shape)
    return np.stack([half[y : y + side, x : x + side] for y, x in zip(rows, columns, strict=True)]).astype(np.uint8)


def _quilt(photo: Floats, side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Efros and Freeman 2001, *Image quilting for texture synthesis and transfer*, with a straight random offset."""
    step = _BLOCK - _OVERLAP
    places = range(0, side - _OVERLAP, step)
    canvas = np.zeros((places[-1] + _BLOCK,) * 2, np.float32)
    for y in places:
        for x in places:
            here = canvas[y : y + _BLOCK, x : x + _BLOCK]
            block = _matching(photo, here, y > 0, x > 0, rng)
            cover = np.ones_like(block)
            if y > 0:
                cover[:_OVERLAP] = np.minimum(cover[:_OVERLAP], _cut((block - here)[:_OVERLAP]))
            if x > 0:
                cover[:, :_OVERLAP] = np.minimum(cover[:, :_OVERLAP], _cut((block - here)[:, :_OVERLAP].T).T)
            canvas[y : y + _BLOCK, x : x + _BLOCK] = here * (1 - cover) + block * cover
    top, start = rng.integers(0, canvas.shape[0] - side + 1, 2)
    return canvas[top : top + side, start : start + side].round().clip(0, 255).astype(np.uint8)


def _matching(photo: Floats, here: Floats, above: bool, before: bool, rng: np.random.Generator) -> Floats:
    """A block of the photograph that continues what lies above and before it on the canvas."""
    windows = np.lib.stride_tricks.sliding_window_view(photo, here.shape)
    rows, columns = (rng.integers(0, size, _TRIED) for size in windows.shape[:2])
    blocks = windows[rows, columns]
    difference = np.zeros(_TRIED)
    if above:
        difference += np.square(blocks[:, :_OVERLAP] - here[:_OVERLAP]).sum((1, 2))
    if before:
        difference += np.square(blocks[:, :, :_OVERLAP] - here[:, :_OVERLAP]).sum((1, 2))
    chosen = rng.choice(np.argsort(difference)[:_BEST]) if above or before else 0
    block: Floats = blocks[chosen]
    return block


def _cut(difference: Floats) -> Floats:
    """1 below the path of least squared difference (rows, columns) from left to right, 0 above it."""
    cost = np.square(difference)
    total = cost.copy()
    rows, columns = cost.shape
    for x in range(1, columns):
        padded = np.pad(total[:, x - 1], 1, constant_values=np.inf)
        total[:, x] += np.minimum(np.minimum(padded[:-2], padded[1:-1]), padded[2:])
    cover = np.zeros_like(cost)
    y = int(total[:, -1].argmin())
    for x in reversed(range(columns)):
        cover[y:, x] = 1
        if x:
            near = range(max(0, y - 1), min(rows, y + 2))
            y = min(near, key=lambda row: total[row, x - 1])
    return cover
