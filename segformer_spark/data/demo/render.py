"""One rendered image: random pose, a light, a lit and a shadow side, stars or Earth limb, sensor noise."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from segformer_spark.data.dataset import Image, Mask
from segformer_spark.data.demo.shapes import PANEL, SHAPES, Face, Points

_SUPERSAMPLING = 2
_CAMERA_DISTANCE = 4.5
_SHARE_RANGE = (0.003, 0.755)
_SHARE_MEDIAN, _SHARE_SPREAD = 0.085, 0.85


@dataclass(frozen=True)
class RenderedImage:
    """`image` uint8 (S, S, 3) RGB, `mask` uint8 (S, S) of class ids, `box` (x_min, y_min, x_max, y_max) inclusive."""

    image: Image
    mask: Mask
    box: tuple[int, int, int, int]


def render(spacecraft: str, size: int, rng: np.random.Generator) -> RenderedImage:
    """Render `spacecraft` at `size` x `size` pixels.

    The share of the image that the bounding box covers follows the spread of SPARK (mean 0.11, 0.003 to 0.755).
    """
    side = size * _SUPERSAMPLING
    faces = SHAPES[spacecraft]()
    rotation, light = _random_rotation(rng), _random_direction(rng)
    light[2] = -abs(light[2]) * 0.8 - 0.1
    share = float(np.clip(_SHARE_MEDIAN * np.exp(_SHARE_SPREAD * rng.standard_normal()), *_SHARE_RANGE))
    turned = [face.points @ rotation.T for face in faces]
    project = _Camera(np.concatenate(turned), side, share, rng)
    canvas = _background(side, rng)
    mask = np.zeros((side, side), np.uint8)
    depth = np.zeros((side, side), np.float64)
    exposure = rng.uniform(0.85, 1.35)
    for face, points in zip(faces, turned, strict=True):
        _draw_face(face, points, project, light, exposure, canvas, mask, depth)
    small_mask = np.ascontiguousarray(
        mask[_SUPERSAMPLING // 2 :: _SUPERSAMPLING, _SUPERSAMPLING // 2 :: _SUPERSAMPLING]
    )
    return RenderedImage(_expose(canvas, size, rng), small_mask, _bounding_box(small_mask))


class _Camera:
    """Perspective projection that puts the points' bounding box at a random place and the wished size."""

    def __init__(self, points: Points, side: int, share: float, rng: np.random.Generator) -> None:
        scale = 1.0 / np.linalg.norm(points, axis=1).max()
        self.scale, self.focal, self.offset = scale, 1.0, np.zeros(2)
        flat, _ = self(points)
        extent = flat.max(0) - flat.min(0)
        self.focal = float(np.sqrt(share * side * side / extent.prod()))
        self.focal = min(self.focal, 0.96 * side / float(extent.max()))
        flat, _ = self(points)
        low, high = flat.min(0), flat.max(0)
        margin = 0.01 * side
        room_low, room_high = margin - low, side - 1 - margin - high
        self.offset = room_low + (room_high - room_low) * rng.uniform(size=2)

    def __call__(self, points: Points) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Pixel coordinates (N, 2) and inverse depth (N,)."""
        inverse_depth = 1.0 / (points[:, 2] * self.scale + _CAMERA_DISTANCE)
        return points[:, :2] * self.scale * inverse_depth[:, None] * self.focal + self.offset, inverse_depth


def _draw_face(
    face: Face,
    points: Points,
    project: _Camera,
    light: NDArray[np.float64],
    exposure: float,
    canvas: NDArray[np.float32],
    mask: Mask,
    depth: NDArray[np.float64],
) -> None:
    flat, inverse_depth = project(points)
    edges = np.column_stack([flat, np.ones(len(flat))])
    if np.linalg.matrix_rank(edges, tol=1e-6) < 3:
        return
    # Inverse depth is linear in the image plane for a flat face.
    plane = np.linalg.lstsq(edges, inverse_depth, rcond=None)[0]
    low = np.maximum(np.floor(flat.min(0)).astype(int), 0)
    high = np.minimum(np.ceil(flat.max(0)).astype(int) + 1, mask.shape[0])
    if (high <= low).any():
        return
    window = (slice(low[1], high[1]), slice(low[0], high[0]))
    inside = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
    cv2.fillConvexPoly(inside, np.round((flat - low) * 16).astype(np.int32), 1, shift=4)
    ys, xs = np.mgrid[low[1] : high[1], low[0] : high[0]]
    nearness = plane[0] * xs + plane[1] * ys + plane[2]
    visible = (inside > 0) & (nearness > depth[window])
    depth[window][visible] = nearness[visible]
    mask[window][visible] = face.label
    canvas[window][visible] = _shade(face, points, light) * exposure
    if face.cells != (0, 0):
        lines = np.zeros_like(inside)
        _cell_lines(lines, flat - low, face.cells)
        canvas[window][visible & (lines > 0)] *= 1.9


def _shade(face: Face, points: Points, light: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lambert shading on the side that faces the camera, with a little ambient light."""
    normal = np.cross(points[1] - points[0], points[2] - points[0])
    normal /= np.linalg.norm(normal)
    center = points.mean(0) + np.array([0.0, 0.0, _CAMERA_DISTANCE])
    if normal @ center > 0:
        normal = -normal
    lambert = max(float(normal @ light), 0.0)
    gloss = lambert**8 * 0.5 if face.label == PANEL else 0.0
    return np.asarray(face.color) * (0.12 + 0.88 * lambert) + gloss


def _cell_lines(target: Mask, corners: NDArray[np.float64], cells: tuple[int, int]) -> None:
    a, b, c, d = corners
    ends = [(a + (b - a) * t, d + (c - d) * t) for t in np.linspace(0, 1, cells[0] + 1)[1:-1]]
    ends += [(a + (d - a) * t, b + (c - b) * t) for t in np.linspace(0, 1, cells[1] + 1)[1:-1]]
    for start, end in ends:
        p, q = (tuple(int(v) for v in np.round(point * 16)) for point in (start, end))
        cv2.line(target, p, q, 1, 1, cv2.LINE_8, 4)


def _background(side: int, rng: np.random.Generator) -> NDArray[np.float32]:
    canvas = np.full((side, side, 3), rng.uniform(0.0, 0.02), np.float32)
    for _ in range(rng.integers(20, 160)):
        x, y = rng.integers(0, side, 2)
        brightness = float(rng.uniform(0.15, 1.0))
        cv2.circle(canvas, (int(x), int(y)), int(rng.integers(0, 2)), (brightness,) * 3, -1)
    if rng.uniform() < 0.4:
        _earth_limb(canvas, rng)
    return canvas


def _earth_limb(canvas: NDArray[np.float32], rng: np.random.Generator) -> None:
    side = canvas.shape[0]
    radius = side * rng.uniform(0.8, 2.5)
    angle, depth_in = rng.uniform(0, 2 * np.pi), side * rng.uniform(0.0, 0.45)
    distance = side / 2 + radius - depth_in
    center = side / 2 + distance * np.array([np.cos(angle), np.sin(angle)])
    ys, xs = np.mgrid[0:side, 0:side]
    height = np.hypot(xs - center[0], ys - center[1]) - radius
    ground = np.clip(-height / (0.25 * side), 0, 1)[..., None]
    noise = cv2.resize(rng.uniform(0, 1, (9, 9)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    clouds = np.clip(noise - 0.45, 0, 1)[..., None] * 1.2
    sea = np.array([0.10, 0.24, 0.48]) * (0.5 + 0.5 * ground) + clouds
    glow = np.exp(-np.clip(height, 0, None) / (0.02 * side))[..., None] * np.array([0.35, 0.55, 0.9])
    inside = (height < 0)[..., None]
    canvas[:] = np.where(inside, sea * rng.uniform(0.5, 1.0), np.maximum(canvas, glow * 0.8)).astype(np.float32)


def _expose(canvas: NDArray[np.float32], size: int, rng: np.random.Generator) -> Image:
    small = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), rng.uniform(0.3, 0.8))
    noisy = small + rng.normal(0.0, rng.uniform(0.004, 0.025), small.shape)
    exposed: Image = np.round(np.clip(noisy, 0, 1) ** (1 / 1.6) * 255).astype(np.uint8)
    return exposed


def _bounding_box(mask: Mask) -> tuple[int, int, int, int]:
    ys, xs = np.nonzero(mask)
    return int(xs.min()), int(ys.min()), int(xs.max()), int(ys.max())


def _random_direction(rng: np.random.Generator) -> NDArray[np.float64]:
    vector = rng.standard_normal(3)
    return vector / np.linalg.norm(vector)


def _random_rotation(rng: np.random.Generator) -> NDArray[np.float64]:
    """Uniform over rotations (QR of a Gaussian matrix, Mezzadri 2007)."""
    q, r = np.linalg.qr(rng.standard_normal((3, 3)))
    q = q * np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else q[:, ::-1]
