"""Scenes to pixels: signed distances make edges, rims and shadows smooth at any size."""

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

from ldm.data.scenes import Scene, Thing

Array = NDArray[np.floating]

PALETTE = {
    "red": (214, 48, 49),
    "orange": (240, 138, 36),
    "yellow": (250, 214, 62),
    "green": (60, 166, 84),
    "blue": (43, 105, 208),
    "purple": (138, 74, 190),
    "white": (246, 246, 242),
    "black": (34, 34, 40),
}
PERIOD = 0.08  # of every texture, as a fraction of the picture's side
RIM = 0.012  # width of the darker line along an object's edge
SHADOW = 0.016  # how far an object's shadow falls, to the right and down


def _regular(n: int, radii: tuple[float, ...], turn: float = 0.0) -> Array:
    """A polygon around the origin whose corners take the radii in turn, the first one at the top: (n, 2)."""
    angles = turn - np.pi / 2 + 2 * np.pi * np.arange(n) / n
    r = np.resize(radii, n)
    return np.stack([r * np.cos(angles), r * np.sin(angles)], axis=-1).astype(np.float32)


def _heart() -> Array:
    t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x / 17, (y - 2) / 17], axis=-1).astype(np.float32)


def _cross() -> Array:
    arm = 0.34  # half of its width
    quarter = np.array([[-arm, -1], [arm, -1], [arm, -arm]])
    turns = [np.array([[np.cos(q), np.sin(q)], [-np.sin(q), np.cos(q)]]) for q in np.arange(4) * np.pi / 2]
    return (0.95 * np.concatenate([quarter @ turn for turn in turns])).astype(np.float32)


# Corners of each shape of radius one; circle and ring have a formula instead.
POLYGONS = {
    "square": _regular(4, (1.2,), np.pi / 4),
    "triangle": _regular(3, (1.15,)) + np.array([0, 0.2], np.float32),
    "star": _regular(10, (1.12, 0.47)),
    "heart": _heart(),
    "cross": _cross(),
    "diamond": _regular(4, (1.12, 0.75)),
}


def polygon_distance(x: Array, y: Array, corners: Array) -> Array:
    """Signed distance to a polygon's edge, negative inside; x and y of one shape, `corners` (n, 2)."""
    nearest = np.full_like(x, np.inf)  # squared
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
        along = np.clip((px * ex + py * ey) / (ex**2 + ey**2), 0, 1)
        np.minimum(nearest, (px - along * ex) ** 2 + (py - along * ey) ** 2, out=nearest)
        # A point lies inside when a ray from it crosses the edges an odd number of times.
        inside ^= ((ay > y) != (by > y)) & ((px * ey < py * ex) == (ey > 0))
    return np.sqrt(nearest) * np.where(inside, np.float32(-1), np.float32(1))


def shape_distance(thing: Thing, x: Array, y: Array) -> Array:
    """Signed distance of positions to the thing's edge, in fractions of the picture's side."""
    c, s = np.float32(np.cos(thing.angle)), np.float32(np.sin(thing.angle))
    u, v = (x - thing.x) / thing.radius, (y - thing.y) / thing.radius
    u, v = c * u + s * v, c * v - s * u
    if thing.shape == "circle":
        d = np.hypot(u, v) - 1
    elif thing.shape == "ring":
        d = np.abs(np.hypot(u, v) - 0.74) - 0.26
    else:
        d = polygon_distance(u, v, POLYGONS[thing.shape])
    return d * thing.radius


def shade_of(colour: Array) -> Array:
    """The second shade of a texture: dark colours are lightened, light ones darkened."""
    light = colour @ np.array([0.299, 0.587, 0.114], np.float32)
    return colour + 0.5 * (1 - colour) if light < 0.5 else 0.62 * colour


def coverage(d: Array, softness: float) -> Array:
    """1 where the signed distance d is negative, 0 where positive, with a smooth step of width `softness`."""
    return np.clip(0.5 - d / softness, 0, 1)


def surface(colour_name: str, texture: str, x: Array, y: Array, pixel: float, rng: Generator) -> Array:
    """The colour of a textured surface at positions x and y: (*x.shape, 3) in [0, 1]."""
    colour = np.array(PALETTE[colour_name], np.float32) / 255
    direction = (0.0, np.pi / 2, np.pi / 4, -np.pi / 4)[rng.integers(4)]
    phase = rng.random(2).astype(np.float32)
    if texture == "plain":
        return np.broadcast_to(colour, (*x.shape, 3))
    u, v = x / PERIOD + phase[0], y / PERIOD + phase[1]
    # Signed distances, in periods, to the edge of what has the second shade.
    if texture == "striped":
        across = np.cos(direction) * u + np.sin(direction) * v
        d = 0.25 - np.abs(across % 1 - 0.5)
    elif texture == "dotted":
        d = np.hypot(u % 1 - 0.5, v % 1 - 0.5) - 0.3
    else:
        d = -((np.abs(u / 1.5 % 1 - 0.5) - 0.25) * (np.abs(v / 1.5 % 1 - 0.5) - 0.25)) * 6
    mix = coverage(d.astype(np.float32), pixel / PERIOD)[..., None]
    return colour + mix * (shade_of(colour) - colour)


def render(scene: Scene, side: int) -> NDArray[np.uint8]:
    """The scene as a square picture, (side, side, 3)."""
    rng = default_rng(scene.seed)
    pixel = 1 / side
    centres = (np.arange(side, dtype=np.float32) + 0.5) / side
    y, x = np.meshgrid(centres, centres, indexing="ij")  # (side, side) each

    # The background darkens a little towards the bottom.
    picture = (
        surface(scene.background, scene.background_texture, x, y, pixel, rng) * (1.03 - 0.08 * y)[..., None]
    )
    for thing in scene.things:
        reach = 1.2 * thing.radius + 0.06
        rows, columns = (
            slice(max(0, int((c - reach) * side)), int((c + reach) * side) + 1) for c in (thing.y, thing.x)
        )
        px, py = x[rows, columns], y[rows, columns]
        patch = picture[rows, columns]
        d = shape_distance(thing, px, py)

        # A soft shadow falls to the lower right.
        fall = max(1, round(SHADOW * side))
        shadow = coverage(np.pad(d, ((fall, 0), (fall, 0)), mode="edge")[:-fall, :-fall], 0.04)
        patch *= 1 - 0.35 * shadow[..., None]

        # The object lies over it, lit from the upper left, with a darker rim.
        light = 1 - 0.10 * ((px - thing.x) + (py - thing.y)) / thing.radius
        rim = 1 - 0.35 * coverage(-d - RIM, 2 * pixel)
        paint = surface(thing.colour, thing.texture, px, py, pixel, rng) * (light * rim)[..., None]
        patch += coverage(d, 1.5 * pixel)[..., None] * (paint - patch)
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
