"""Does a picture show what its caption says? The same rules, limit for limit, as `xdit-testing/src/scene.rs`.

The limits were fixed on rendered pictures, before there was a model to judge; they are not tuned to its score.
"""

import math
import re

import numpy as np

from scenes import COLOUR_NAMES, COLOURS, RELATIONS, RING_INNER, SHAPES, STAR_INNER

# Farther than this from every colour of the palette, a pixel has no colour.
COLOUR_REACH = 70
# A shape's colour must fill at least this share of the picture.
MISSING_BELOW = 0.002
# Share of what no shape covers that must have the background's colour; edges and shadows take the rest.
BACKGROUND_SHARE = 0.75
# Share of the picture that a colour may fill where it does not belong, thin edges not counted.
STRAY_SHARE = 0.001
# Extents (side of a shape's bounding box, had the shape its exact form) on a picture of side 256, by size word.
EXTENT_RANGES = {"small": (38, 66), "medium": (52, 102), "large": (86, 134)}
# Share of its bounding box that a shape fills, and where between top (0) and bottom (1) of it its centroid lies.
FORMS = {
    "circle": ((0.70, 0.87), (0.44, 0.56)),
    "square": ((0.90, 1.00), (0.44, 0.56)),
    "triangle": ((0.43, 0.62), (0.58, 0.74)),
    "diamond": ((0.455, 0.62), (0.43, 0.57)),
    "star": ((0.26, 0.455), (0.44, 0.60)),
    "ring": ((0.48, 0.70), (0.44, 0.56)),
}
# Height over width of every shape's bounding box.
ASPECT = (0.72, 1.28)
# Area over squared extent of the exact forms.
FILLS = {
    "circle": math.pi / 4,
    "square": 1.0,
    "triangle": 0.4330127,
    "diamond": 0.5,
    "star": 5 * STAR_INNER * 0.5877853 / 1.9021130**2,
    "ring": math.pi / 4 * (1 - RING_INNER**2),
}
# Least distance of two centroids along a relation's axis, in sides of the picture.
APART = 0.12
# Farthest an inner shape's centroid may lie from the outer one's, in extents of the outer shape.
CENTRED = 0.25

SIZES = {"small": "small", "tiny": "small", "little": "small", "medium": "medium", "large": "large", "big": "large"}
RELATION_OF = {
    "left": "left",
    "right": "right",
    "above": "above",
    "over": "above",
    "below": "below",
    "under": "below",
    "inside": "inside",
    "within": "inside",
}
FILLERS = {"a", "an", "the", "of", "on", "to", "in", "with", "against", "picture", "drawing"}


class Wrong(Exception):
    """Why a picture does not show its caption, or why a caption is outside the grammar."""

    def __init__(self, kind, detail=""):
        super().__init__(f"{kind} {detail}".strip())
        self.kind = kind


def parse(caption):
    """The scene of a caption: {"background", "shapes": [{"size", "colour", "shape"}, ...], "relation" or None}."""
    size = colour = relation = background = None
    shapes = []
    for word in re.findall(r"[a-z]+", caption.lower()):
        if word in FILLERS:
            continue
        if word in SIZES and size is None:
            size = SIZES[word]
        elif word in COLOURS and colour is None:
            colour = word
        elif word in SHAPES and colour is not None and len(shapes) < 2:
            shapes.append({"size": size or "medium", "colour": colour, "shape": word})
            size = colour = None
        elif word in RELATION_OF and relation is None and len(shapes) == 1:
            relation = RELATION_OF[word]
        elif word == "background" and colour is not None and size is None and background is None:
            background, colour = colour, None
        else:
            raise Wrong("caption", f"unexpected word {word!r}")
    if size or colour or background is None or not shapes or (relation is None) != (len(shapes) == 1):
        raise Wrong("caption", "incomplete")
    named = [background] + [shape["colour"] for shape in shapes]
    if len(set(named)) != len(named):
        raise Wrong("caption", "two things of one colour")
    return {"background": background, "shapes": shapes, "relation": relation}


def classify(rgb):
    """Index of the nearest palette colour of every pixel, -1 where none is near."""
    palette = np.array(list(COLOURS.values()), dtype=np.int32)
    squared = ((rgb.astype(np.int32)[:, :, None] - palette) ** 2).sum(axis=-1)
    nearest = squared.argmin(axis=-1)
    nearest[squared.min(axis=-1) > COLOUR_REACH**2] = -1
    return nearest


def largest_blob(mask):
    """The largest 4-connected part of a mask, as a mask; of equals the first from the top."""
    parent, runs, above = [], [], []

    def root(label):
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    for row in range(mask.shape[0]):
        steps = np.diff(np.concatenate([[0], mask[row].astype(np.int8), [0]]))
        here = []
        for start, end in zip(np.nonzero(steps == 1)[0], np.nonzero(steps == -1)[0]):
            label = len(parent)
            parent.append(label)
            for other_start, other_end, other in above:
                if other_start < end and start < other_end:
                    a, b = root(label), root(other)
                    parent[max(a, b)] = min(a, b)
            here.append((start, end, label))
        runs += [(row, *run) for run in here]
        above = here
    areas = {}
    for _, start, end, label in runs:
        areas[root(label)] = areas.get(root(label), 0) + end - start
    blob = np.zeros_like(mask)
    if areas:
        best = max(areas, key=lambda label: (areas[label], -label))
        for row, start, end, label in runs:
            if root(label) == best:
                blob[row, start:end] = True
    return blob


def cores(mask, reach):
    """The pixels of a mask whose whole neighbourhood of `reach` pixels each way belongs to it too."""
    size = 2 * reach + 1
    if min(mask.shape) < size:
        return np.zeros_like(mask)
    sums = np.pad(mask.astype(np.int64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    full = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size] == size * size
    return np.pad(full, reach)


def measure(blob):
    """Area, centroid and bounding box (left, top, right, bottom; ends excluded) of a mask."""
    rows, columns = np.nonzero(blob)
    return {
        "area": len(rows),
        "x": columns.mean() + 0.5,
        "y": rows.mean() + 0.5,
        "box": (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1),
    }


def check(scene, rgb):
    """Raises `Wrong` unless the picture `rgb` (uint8 [h, w, 3]) shows `scene`."""
    height, width = rgb.shape[:2]
    total, side = height * width, math.sqrt(height * width)
    reach = max(2, round(2 * side / 256))
    classes = classify(rgb)

    blobs = []
    for shape in scene["shapes"]:
        blob = largest_blob(classes == COLOUR_NAMES.index(shape["colour"]))
        if blob.sum() < MISSING_BELOW * total:
            raise Wrong("missing", shape["colour"])
        blobs.append(blob)

    uncovered = total - sum(blob.sum() for blob in blobs)
    share = (classes == COLOUR_NAMES.index(scene["background"])).sum() / max(uncovered, 1)
    if share < BACKGROUND_SHARE:
        raise Wrong("background", f"{share:.2f}")

    for index, name in enumerate(COLOUR_NAMES):
        if name == scene["background"]:
            continue
        stray = cores(classes == index, reach)
        if scene["relation"] == "inside" and name == scene["shapes"][1]["colour"]:
            # Through an inner ring the outer shape shows.
            left, top, right, bottom = measure(blobs[0])["box"]
            stray[top:bottom, left:right] = False
        for shape, blob in zip(scene["shapes"], blobs):
            if shape["colour"] == name:
                stray &= ~blob
        if stray.sum() > STRAY_SHARE * total:
            raise Wrong("stray", name)

    # A hole that another shape fills is no hole: the outer shape is judged with the inner one, and with what shows of
    # it through an inner ring.
    if scene["relation"] == "inside":
        left, top, right, bottom = measure(blobs[0])["box"]
        outer = classes == COLOUR_NAMES.index(scene["shapes"][1]["colour"])
        blobs[1] = blobs[1] | blobs[0]
        blobs[1][top:bottom, left:right] |= outer[top:bottom, left:right]
    seen = [measure(blob) for blob in blobs]

    for shape, blob, found in zip(scene["shapes"], blobs, seen):
        left, top, right, bottom = found["box"]
        name = f"{shape['colour']} {shape['shape']}"
        fill = found["area"] / ((right - left) * (bottom - top))
        drop = (found["y"] - top) / (bottom - top)
        aspect = (bottom - top) / (right - left)
        fills, drops = FORMS[shape["shape"]]
        middle_x, middle_y = (left + right) // 2, (top + bottom) // 2
        middle = blob[middle_y - reach : middle_y + reach + 1, middle_x - reach : middle_x + reach + 1]
        if (
            not fills[0] <= fill <= fills[1]
            or not drops[0] <= drop <= drops[1]
            or not ASPECT[0] <= aspect <= ASPECT[1]
            or middle.any() == (shape["shape"] == "ring")
        ):
            raise Wrong("form", f"{name}: fill {fill:.2f}, centroid {drop:.2f}, aspect {aspect:.2f}")
        extent = math.sqrt(found["area"] / FILLS[shape["shape"]]) * 256 / side
        low, high = EXTENT_RANGES[shape["size"]]
        if not low <= extent <= high:
            raise Wrong("size", f"{name}: {extent:.0f}")

    if scene["relation"] is None:
        return
    first, second = seen
    dx, dy = (second["x"] - first["x"]) / side, (second["y"] - first["y"]) / side
    if scene["relation"] == "inside":
        extent = math.sqrt(second["area"] / FILLS[scene["shapes"][1]["shape"]])
        left, top, right, bottom = first["box"]
        outer_left, outer_top, outer_right, outer_bottom = second["box"]
        within = outer_left < left and outer_top < top and right < outer_right and bottom < outer_bottom
        good = within and math.hypot(dx, dy) * side <= CENTRED * extent
    else:
        along, across = {"left": (dx, dy), "right": (-dx, dy), "above": (dy, dx), "below": (-dy, dx)}[scene["relation"]]
        good = along >= APART and along > abs(across)
    if not good:
        raise Wrong("relation", f"dx {dx:.2f}, dy {dy:.2f}")


def verdict(caption, rgb):
    """"" if the picture shows its caption, else why not."""
    try:
        check(parse(caption), np.asarray(rgb))
    except Wrong as wrong:
        return str(wrong)
    return ""


assert set(FORMS) == set(SHAPES) and set(RELATION_OF.values()) == set(RELATIONS)
