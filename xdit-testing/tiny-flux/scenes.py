"""The little world of the built-in model: its captions, its pictures, its held-out split.

A scene is one shape, or two shapes and how they lie to each other, on a background. All colours of a scene differ, so
that a picture can be judged by its colours alone (see `check.py`).

Scenes are drawn at random in bulk as integer arrays (`Scenes`), because training renders hundreds of thousands of
them; a caption is written from one row.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

# The palette is spread out in RGB: even the two nearest colours (red and orange) are 88 apart, far more than the
# shading below moves a colour.
COLOURS = {
    "red": (214, 40, 48),
    "orange": (240, 124, 28),
    "yellow": (252, 220, 70),
    "green": (52, 160, 84),
    "cyan": (70, 200, 215),
    "blue": (44, 92, 206),
    "purple": (122, 58, 176),
    "pink": (246, 150, 190),
    "white": (246, 246, 246),
    "black": (32, 32, 36),
}
COLOUR_NAMES = list(COLOURS)
SHAPES = ["circle", "square", "triangle", "diamond", "star", "ring"]
SIZES = ["small", "medium", "large"]
RELATIONS = ["left", "right", "above", "below", "inside"]
NONE = -1

# Width of a shape's bounding box in pixels of a 256x256 picture, by size. The ranges leave gaps, so that "small" and
# "large" can be told apart in a single picture, without the other shape to compare with.
EXTENTS = np.array([[52, 62], [74, 88], [100, 116]], dtype=np.float32)
SIDE = 256
MARGIN = 6
GAP = 10

# Ratio of a star's inner radius to its outer one, and of a ring's.
STAR_INNER = 0.42
RING_INNER = 0.5

# Words for one size: a shape of medium size goes mostly without a word.
SIZE_WORDS = [["small", "small", "tiny", "little"], ["", "", "", "medium"], ["large", "large", "big"]]
RELATION_WORDS = {
    "left": ["left of", "to the left of"],
    "right": ["right of", "to the right of"],
    "above": ["above", "above", "over"],
    "below": ["below", "below", "under"],
    "inside": ["inside", "inside", "within"],
}
FRAMES = [
    "{scene} on {bg} background",
    "{scene} on {bg} background",
    "{scene} on {bg} background",
    "{scene} against {bg} background",
    "{scene}, {bg} background",
    "{scene} with {bg} background",
    "on {bg} background, {scene}",
    "a picture of {scene} on {bg} background",
    "a drawing of {scene} on {bg} background",
]

# One combination in so many is kept away from training.
HELD_OUT_IN = 16


@dataclass
class Scenes:
    """Many scenes, a row each: indices into the lists above, `NONE` where a scene has no second shape."""

    background: np.ndarray
    relation: np.ndarray
    size: np.ndarray  # [n, 2]
    colour: np.ndarray  # [n, 2]
    shape: np.ndarray  # [n, 2]

    def __len__(self):
        return len(self.background)

    def take(self, rows):
        """The named rows."""
        return Scenes(
            self.background[rows], self.relation[rows], self.size[rows], self.colour[rows], self.shape[rows]
        )

    def keys(self):
        """One integer a scene, the same for every wording of it.

        "A right of B" is the scene "B left of A" and "A below B" is "B above A": both get the key of the latter, or
        a caption held out in one direction would be trained on in the other.
        """
        swap = (self.relation == 1) | (self.relation == 3)
        order = np.where(swap[:, None], [[1, 0]], [[0, 1]])
        relation = np.where(swap, self.relation - 1, self.relation)
        key = relation.astype(np.uint64) + np.uint64(1)
        key = key * np.uint64(16) + self.background.astype(np.uint64)
        for field in (self.size, self.colour, self.shape):
            field = np.take_along_axis(field, order, axis=1)
            for column in (0, 1):
                key = key * np.uint64(16) + (field[:, column] + 1).astype(np.uint64)
        return key

    def held_out(self):
        """Which scenes are never trained on: decided by the key's hash alone."""
        return splitmix64(self.keys()) % np.uint64(HELD_OUT_IN) == 0


def splitmix64(key):
    """A fixed, well mixing hash of 64-bit integers."""
    with np.errstate(over="ignore"):
        key = key + np.uint64(0x9E3779B97F4A7C15)
        key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return key ^ (key >> np.uint64(31))


@dataclass(frozen=True)
class Part:
    """A part of the grammar: the colours and forms that it uses (indices), and the relations, as often as wanted."""

    colours: tuple = tuple(range(len(COLOURS)))
    shapes: tuple = tuple(range(len(SHAPES)))
    # One shape is learned soonest, one shape inside another last: its small outline takes the finest hand.
    relations: tuple = (NONE, NONE, 0, 1, 2, 3, 0, 1, 2, 3, 3, 4, 4, 4, 4)


WHOLE = Part()


def part(colours=None, shapes=None, relations=None):
    """The part of the grammar with these words, "one" among the relations being one shape; all of it by default."""
    whole = Part()
    return Part(
        tuple(map(COLOUR_NAMES.index, colours)) if colours else whole.colours,
        tuple(map(SHAPES.index, shapes)) if shapes else whole.shapes,
        tuple(NONE if name == "one" else RELATIONS.index(name) for name in relations) if relations else whole.relations,
    )


def sample(rng, count, grammar=WHOLE):
    """`count` random scenes of a part of the grammar."""
    relation = rng.choice(np.array(grammar.relations), size=count)
    # Three different colours: the background's and the shapes'.
    colours = np.argsort(rng.random((count, len(grammar.colours))), axis=1)[:, :3]
    colours = np.array(grammar.colours)[colours]
    size = rng.integers(0, 3, (count, 2))
    shape = rng.choice(np.array(grammar.shapes), size=(count, 2))
    # What lies inside is small and what it lies in is a large circle or square: it must fit, and the outer shape must
    # still be known by its outline.
    inside = relation == 4
    size[inside] = [0, 2]
    shape[inside, 1] = rng.integers(0, 2, int(inside.sum()))
    single = relation == NONE
    size[single, 1] = NONE
    shape[single, 1] = NONE
    colour = colours[:, 1:].copy()
    colour[single, 1] = NONE
    return Scenes(colours[:, 0], relation, size, colour, shape)


def sample_split(rng, count, held_out, grammar=WHOLE):
    """`count` random scenes, all of the held-out combinations or none of them."""
    parts, have = [], 0
    while have < count:
        scenes = sample(rng, max(64, (count - have) * (HELD_OUT_IN + 4 if held_out else 2)), grammar)
        scenes = scenes.take(np.nonzero(scenes.held_out() == held_out)[0])
        parts.append(scenes)
        have += len(scenes)
    fields = ("background", "relation", "size", "colour", "shape")
    whole = Scenes(*(np.concatenate([getattr(part, field) for part in parts]) for field in fields))
    return whole.take(np.arange(count))


def article(words):
    """`words` behind "a" or "an"."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def captions(rng, scenes, vary_case=False):
    """A caption for every scene, its wording chosen at random."""
    texts = []
    draws = rng.integers(0, 1 << 30, (len(scenes), 6))
    for row in range(len(scenes)):
        dice = draws[row]
        nouns = []
        for which in (0, 1):
            if scenes.shape[row, which] == NONE:
                continue
            sizes = SIZE_WORDS[scenes.size[row, which]]
            words = [
                sizes[dice[which] % len(sizes)],
                COLOUR_NAMES[scenes.colour[row, which]],
                SHAPES[scenes.shape[row, which]],
            ]
            nouns.append(article(" ".join(word for word in words if word)))
        if len(nouns) == 2:
            ways = RELATION_WORDS[RELATIONS[scenes.relation[row]]]
            scene = f"{nouns[0]} {ways[dice[2] % len(ways)]} {nouns[1]}"
        else:
            scene = nouns[0]
        bg = article(COLOUR_NAMES[scenes.background[row]])
        text = FRAMES[dice[3] % len(FRAMES)].format(scene=scene, bg=bg)
        # People write prompts with and without a capital and a full stop.
        if vary_case and dice[4] % 5 == 0:
            text = text[0].upper() + text[1:]
        if vary_case and dice[5] % 8 == 0:
            text += "."
        texts.append(text)
    return texts


def test_captions(grammar=WHOLE, count=200):
    """The captions the model is judged by: of held-out combinations, no two alike, the same at every call.

    Every relation of `grammar` gets an equal share. Where a small grammar has too few combinations held out, they come
    in several wordings.
    """
    rng = np.random.default_rng(2026)
    kinds = sorted(set(grammar.relations))
    texts = []
    for index, relation in enumerate(kinds):
        share = count // len(kinds) + (index < count % len(kinds))
        scenes = sample_split(rng, share * 8, True, replace(grammar, relations=(relation,)))
        wordings, seen = {}, {}
        for key, text in zip(scenes.keys().tolist(), captions(rng, scenes)):
            # How many wordings of this combination came before: those with fewest come first.
            if text not in wordings:
                wordings[text] = seen[key] = seen.get(key, -1) + 1
        texts += sorted(wordings, key=wordings.get)[:share]
    return texts


def place(rng, scenes):
    """Random places and sizes for every shape: arrays of centre x, centre y and extent, each [n, 2], in pixels.

    Shapes never touch (except inside one another) nor leave the picture, and the axis a relation speaks of is the one
    along which the shapes lie apart.
    """
    count = len(scenes)
    bounds = EXTENTS[np.clip(scenes.size, 0, 2)]
    extent = bounds[..., 0] + rng.random((count, 2)) * (bounds[..., 1] - bounds[..., 0])
    mid = SIDE / 2
    span = SIDE - 2 * MARGIN

    # One shape, or the outer one of two: anywhere around the middle.
    free = np.minimum((span - extent) / 2, 36)
    x = mid + (rng.random((count, 2)) * 2 - 1) * free
    y = mid + (rng.random((count, 2)) * 2 - 1) * free

    # The inner of two shapes: about the middle of the outer.
    inside = scenes.relation == 4
    x[inside, 0] = x[inside, 1] + (rng.random(int(inside.sum())) * 2 - 1) * 5
    y[inside, 0] = y[inside, 1] + (rng.random(int(inside.sum())) * 2 - 1) * 5

    # Side by side, first along the axis: the slack is shared between the gap and both ends.
    slack = np.maximum(span - GAP - extent.sum(axis=1), 0)
    share = rng.dirichlet((2.0, 2.0, 2.0), size=count)
    ahead = (scenes.relation == 0) | (scenes.relation == 2)
    lead = np.where(ahead, extent[:, 0], extent[:, 1])
    tail = np.where(ahead, extent[:, 1], extent[:, 0])
    near = MARGIN + slack * share[:, 0] + lead / 2
    far = near + lead / 2 + GAP + slack * share[:, 1] + tail / 2
    along = np.where(ahead[:, None], np.stack([near, far], 1), np.stack([far, near], 1))
    # Across the axis: together off the middle, and a little apart from each other.
    drift = (rng.random((count, 1)) * 2 - 1) * 30 + (rng.random((count, 2)) * 2 - 1) * 12
    across = mid + np.clip(drift, -(span - extent) / 2, (span - extent) / 2)
    sideways = (scenes.relation == 0) | (scenes.relation == 1)
    upright = (scenes.relation == 2) | (scenes.relation == 3)
    x = np.where(sideways[:, None], along, np.where(upright[:, None], across, x))
    y = np.where(sideways[:, None], across, np.where(upright[:, None], along, y))
    return x.astype(np.float32), y.astype(np.float32), extent.astype(np.float32)


def distance(kind, px, py, extent):
    """Signed distance in pixels (negative inside) to one shape per row, `px`/`py` from its box's centre, y down."""
    half = extent / 2
    radius = torch.sqrt(px * px + py * py)
    circle = radius - half
    square = torch.maximum(px.abs(), py.abs()) - half
    # An upright equilateral triangle: the floor, and the two slopes that meet at the top.
    height = 0.8660254 * extent
    slope = 0.8660254 * px.abs() - 0.5 * (py + height / 2)
    triangle = torch.maximum(py - height / 2, slope)
    diamond = (px.abs() + py.abs() - half) * 0.70710678
    ring = (radius - half * (1 + RING_INNER) / 2).abs() - half * (1 - RING_INNER) / 2
    star = star_distance(px, py, extent)
    stacked = torch.stack([circle, square, triangle, diamond, star, ring])
    return stacked.gather(0, kind.clamp(min=0).expand(1, *circle.shape)).squeeze(0)


def star_distance(px, py, extent):
    """Signed distance to an upright star of five points, folded into one tenth of itself (after Inigo Quilez)."""
    outer = extent / 1.9021130
    x = px.abs()
    # Its box reaches from the top point to the two feet: the star's own centre is a little below the box's.
    y = -(py - 0.0954915 * outer)
    kx, ky = 0.8090170, -0.5877853
    fold = 2 * (kx * x + ky * y).clamp(min=0)
    x, y = x - fold * kx, y - fold * ky
    fold = 2 * (-kx * x + ky * y).clamp(min=0)
    x, y = x + fold * kx, y - fold * ky
    x, y = x.abs(), y - outer
    bx, by = -STAR_INNER * ky, STAR_INNER * kx - 1
    along = torch.minimum(((x * bx + y * by) / (bx * bx + by * by)).clamp(min=0), outer)
    dx, dy = x - bx * along, y - by * along
    return torch.sqrt(dx * dx + dy * dy) * torch.sign(y * bx - x * by)


@torch.no_grad()
def render(rng, scenes, device, side=SIDE):
    """Pictures of `scenes` at random places: float [n, 3, side, side] in -1 ... 1 on `device`.

    Places and extents are those of a picture of side 256, whatever `side` is.
    """
    x, y, extent = place(rng, scenes)
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32, device=device) / 255

    def column(array, which=None):
        array = torch.as_tensor(array if which is None else array[:, which].copy(), device=device)
        return array.view(-1, 1, 1)

    scale = SIDE / side
    axis = (torch.arange(side, dtype=torch.float32, device=device) + 0.5) * scale
    rows, columns = axis.view(1, -1, 1), axis.view(1, 1, -1)
    # A light from above: the background darkens downwards, shapes towards their lower right.
    light = 1.02 - 0.05 * rows / SIDE
    picture = palette[torch.as_tensor(scenes.background, device=device)].view(-1, 3, 1, 1) * light[:, None]
    masks, colours = [], []
    # The second shape first, since the first may lie inside it.
    for which in (1, 0):
        there = column(scenes.shape, which) >= 0
        wide = column(extent, which)
        dx, dy = columns - column(x, which), rows - column(y, which)
        kind = column(scenes.shape, which)
        edge = distance(kind, dx, dy, wide)
        masks.append(((0.5 - edge / scale).clamp(0, 1) * there)[:, None])
        shade = (1 - 0.08 * (dx + dy) / wide)[:, None]
        index = torch.as_tensor(scenes.colour[:, which].copy(), device=device).clamp(min=0)
        colours.append(palette[index].view(-1, 3, 1, 1) * shade)
        # A soft shadow, too faint to change what colour the background is.
        fall = 3 + 0.04 * wide
        shadow = distance(kind, dx - fall, dy - fall, wide)
        picture = picture * (1 - 0.09 * ((6 - shadow) / 12).clamp(0, 1) * there)[:, None]
    for mask, colour in zip(masks, colours):
        picture = picture + (colour - picture) * mask
    return picture.clamp(0, 1) * 2 - 1
