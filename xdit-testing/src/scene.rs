//! Does a picture show what its caption says? The judge of the built-in model.
//!
//! A caption of the model's little grammar is read into a [`Scene`]; [`check`] then looks at a picture for the
//! background's colour and for every shape's colour, form, size and place. `tiny-flux/check.py` holds the same rules,
//! limit for limit. The limits were fixed on rendered pictures, before there was a model to judge; they are not tuned
//! to its score.

use std::f64::consts::FRAC_PI_4;
use std::fmt;

/// The captions that the built-in model is judged by, a line each; `tiny-flux/README.md` says how they are kept apart.
pub const HELD_OUT: &str = include_str!("../tiny-flux/captions.txt");

/// Farther than this from every colour of the palette, a pixel has no colour.
const COLOUR_REACH: i32 = 70;
/// A shape's colour must fill at least this share of the picture.
const MISSING_BELOW: f64 = 0.002;
/// Share of what no shape covers that must have the background's colour; edges and shadows take the rest.
const BACKGROUND_SHARE: f64 = 0.75;
/// Share of the picture that a colour may fill where it does not belong, thin edges not counted.
const STRAY_SHARE: f64 = 0.001;
/// Height over width of every shape's bounding box.
const ASPECT: (f64, f64) = (0.72, 1.28);
/// Least distance of two centroids along a relation's axis, in sides of the picture.
const APART: f64 = 0.12;
/// Farthest an inner shape's centroid may lie from the outer one's, in extents of the outer shape.
const CENTRED: f64 = 0.25;
/// Ratio of a star's inner radius to its outer one.
const STAR_INNER: f64 = 0.42;
/// Ratio of a ring's inner radius to its outer one.
const RING_INNER: f64 = 0.5;

/// A colour of the palette.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Colour {
    Red,
    Orange,
    Yellow,
    Green,
    Cyan,
    Blue,
    Purple,
    Pink,
    White,
    Black,
}

impl Colour {
    /// Every colour, in the palette's order.
    pub const ALL: [Self; 10] = [
        Self::Red,
        Self::Orange,
        Self::Yellow,
        Self::Green,
        Self::Cyan,
        Self::Blue,
        Self::Purple,
        Self::Pink,
        Self::White,
        Self::Black,
    ];

    /// The colour's word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Red => "red",
            Self::Orange => "orange",
            Self::Yellow => "yellow",
            Self::Green => "green",
            Self::Cyan => "cyan",
            Self::Blue => "blue",
            Self::Purple => "purple",
            Self::Pink => "pink",
            Self::White => "white",
            Self::Black => "black",
        }
    }

    /// The colour itself, as red, green and blue.
    pub fn rgb(self) -> [u8; 3] {
        match self {
            Self::Red => [214, 40, 48],
            Self::Orange => [240, 124, 28],
            Self::Yellow => [252, 220, 70],
            Self::Green => [52, 160, 84],
            Self::Cyan => [70, 200, 215],
            Self::Blue => [44, 92, 206],
            Self::Purple => [122, 58, 176],
            Self::Pink => [246, 150, 190],
            Self::White => [246, 246, 246],
            Self::Black => [32, 32, 36],
        }
    }

    /// The nearest colour of the palette, if any is near.
    pub fn nearest(pixel: [u8; 3]) -> Option<Self> {
        let squared = |colour: &Self| -> i32 {
            colour.rgb().iter().zip(pixel).map(|(&a, b)| (i32::from(a) - i32::from(b)).pow(2)).sum()
        };
        // `min_by_key` keeps the first of equals, as `argmin` does in Python.
        Self::ALL.into_iter().min_by_key(squared).filter(|colour| squared(colour) <= COLOUR_REACH.pow(2))
    }

    fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|colour| colour.name() == word)
    }
}

/// The form of a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Form {
    Circle,
    Square,
    Triangle,
    Diamond,
    Star,
    Ring,
}

impl Form {
    /// Every form.
    pub const ALL: [Self; 6] = [Self::Circle, Self::Square, Self::Triangle, Self::Diamond, Self::Star, Self::Ring];

    /// The form's word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Circle => "circle",
            Self::Square => "square",
            Self::Triangle => "triangle",
            Self::Diamond => "diamond",
            Self::Star => "star",
            Self::Ring => "ring",
        }
    }

    fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|form| form.name() == word)
    }

    /// The share of its bounding box that the form fills, as a range.
    fn fills(self) -> (f64, f64) {
        match self {
            Self::Circle => (0.70, 0.87),
            Self::Square => (0.90, 1.00),
            Self::Triangle => (0.43, 0.62),
            Self::Diamond => (0.455, 0.62),
            Self::Star => (0.26, 0.455),
            Self::Ring => (0.48, 0.70),
        }
    }

    /// Where between top (0) and bottom (1) of its bounding box the form's centroid lies, as a range.
    fn drops(self) -> (f64, f64) {
        match self {
            Self::Circle | Self::Square | Self::Ring => (0.44, 0.56),
            Self::Triangle => (0.58, 0.74),
            Self::Diamond => (0.43, 0.57),
            Self::Star => (0.44, 0.60),
        }
    }

    /// Area over squared extent of the exact form.
    fn area(self) -> f64 {
        match self {
            Self::Circle => FRAC_PI_4,
            Self::Square => 1.0,
            Self::Triangle => 0.433_012_7,
            Self::Diamond => 0.5,
            Self::Star => 5.0 * STAR_INNER * 0.587_785_3 / (1.902_113_0 * 1.902_113_0),
            Self::Ring => FRAC_PI_4 * (1.0 - RING_INNER * RING_INNER),
        }
    }
}

/// How large a shape is; without a word for it, a shape is of medium size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Size {
    Small,
    Medium,
    Large,
}

impl Size {
    /// The size's word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Medium => "medium",
            Self::Large => "large",
        }
    }

    fn of(word: &str) -> Option<Self> {
        match word {
            "small" | "tiny" | "little" => Some(Self::Small),
            "medium" => Some(Self::Medium),
            "large" | "big" => Some(Self::Large),
            _ => None,
        }
    }

    /// Extents (side of the bounding box, had the shape its exact form) on a picture of side 256.
    fn extents(self) -> (f64, f64) {
        match self {
            Self::Small => (38.0, 66.0),
            Self::Medium => (52.0, 102.0),
            Self::Large => (86.0, 134.0),
        }
    }
}

/// How the first of two shapes lies to the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Relation {
    Left,
    Right,
    Above,
    Below,
    Inside,
}

impl Relation {
    /// The relation's word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Right => "right",
            Self::Above => "above",
            Self::Below => "below",
            Self::Inside => "inside",
        }
    }

    fn of(word: &str) -> Option<Self> {
        match word {
            "left" => Some(Self::Left),
            "right" => Some(Self::Right),
            "above" | "over" => Some(Self::Above),
            "below" | "under" => Some(Self::Below),
            "inside" | "within" => Some(Self::Inside),
            _ => None,
        }
    }
}

/// One coloured shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// How large it is.
    pub size: Size,
    /// Its colour, which nothing else in the scene has.
    pub colour: Colour,
    /// Its form.
    pub form: Form,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.size.name(), self.colour.name(), self.form.name())
    }
}

/// What a caption describes: one shape, or two and how they lie, on a background. No two of its colours are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scene {
    /// The background's colour.
    pub background: Colour,
    /// The shape named first.
    pub first: Shape,
    /// How the first shape lies to another, and that other shape.
    pub second: Option<(Relation, Shape)>,
}

/// Why a caption is outside the grammar, or why a picture does not show its scene.
#[derive(Clone, Debug, PartialEq)]
pub enum Wrong {
    /// A word of the caption that the grammar does not have, or not there.
    Word(String),
    /// The caption lacks a background, a shape or a relation, or ends in the middle.
    Incomplete,
    /// Two things of the caption have one colour, so that a picture could not be judged by colours.
    Ambiguous,
    /// The picture's bytes are not 3 × width × height, or it is empty.
    Dimensions,
    /// The background's colour covers too small a share of what the shapes leave free.
    Background(f64),
    /// A shape's colour is nowhere.
    Missing(Shape),
    /// A colour is where it does not belong: a shape too many, or one in a wrong colour.
    Stray(Colour),
    /// A shape's colour does not have the shape's form.
    Form(Shape),
    /// A shape is of another size than its word: its extent in pixels on a picture of side 256.
    Size(Shape, f64),
    /// The shapes do not lie as they should: from the first's centroid to the second's, in sides of the picture.
    Relation(Relation, f64, f64),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(word) => write!(f, "caption: unexpected word {word:?}"),
            Self::Incomplete => write!(f, "caption: incomplete"),
            Self::Ambiguous => write!(f, "caption: two things of one colour"),
            Self::Dimensions => write!(f, "the picture's bytes do not match its dimensions"),
            Self::Background(share) => write!(f, "background: only {:.0} % of its colour", share * 100.0),
            Self::Missing(shape) => write!(f, "missing: {shape}"),
            Self::Stray(colour) => write!(f, "stray: {}", colour.name()),
            Self::Form(shape) => write!(f, "form: {shape}"),
            Self::Size(shape, extent) => write!(f, "size: {shape}, {extent:.0} pixels"),
            Self::Relation(relation, dx, dy) => write!(f, "relation: {}, dx {dx:.2}, dy {dy:.2}", relation.name()),
        }
    }
}

impl std::error::Error for Wrong {}

impl Scene {
    /// The scene of a caption such as "a large red circle left of a small blue square on a yellow background".
    pub fn parse(caption: &str) -> Result<Self, Wrong> {
        const FILLERS: [&str; 11] = ["a", "an", "the", "of", "on", "to", "in", "with", "against", "picture", "drawing"];
        let (mut size, mut colour, mut relation, mut background) = (None, None, None, None);
        let mut shapes: Vec<Shape> = Vec::new();
        let lower = caption.to_lowercase();
        for word in lower.split(|c: char| !c.is_ascii_lowercase()).filter(|word| !word.is_empty()) {
            if FILLERS.contains(&word) {
                continue;
            }
            if let (Some(found), None) = (Size::of(word), size) {
                size = Some(found);
            } else if let (Some(found), None) = (Colour::of(word), colour) {
                colour = Some(found);
            } else if let (Some(form), Some(of), true) = (Form::of(word), colour, shapes.len() < 2) {
                shapes.push(Shape { size: size.unwrap_or(Size::Medium), colour: of, form });
                (size, colour) = (None, None);
            } else if let (Some(found), None, 1) = (Relation::of(word), relation, shapes.len()) {
                relation = Some(found);
            } else if let ("background", Some(of), None, None) = (word, colour, size, background) {
                background = Some(of);
                colour = None;
            } else {
                return Err(Wrong::Word(word.to_owned()));
            }
        }
        if size.is_some() || colour.is_some() {
            return Err(Wrong::Incomplete);
        }
        let background = background.ok_or(Wrong::Incomplete)?;
        let (first, second) = match (shapes[..].as_ref(), relation) {
            ([first], None) => (*first, None),
            ([first, second], Some(relation)) => (*first, Some((relation, *second))),
            _ => return Err(Wrong::Incomplete),
        };
        let scene = Self { background, first, second };
        let colours: Vec<Colour> = scene.shapes().map(|shape| shape.colour).chain([background]).collect();
        if (1..colours.len()).any(|index| colours[..index].contains(&colours[index])) {
            return Err(Wrong::Ambiguous);
        }
        Ok(scene)
    }

    /// The scene's shapes, as named.
    pub fn shapes(&self) -> impl Iterator<Item = Shape> {
        std::iter::once(self.first).chain(self.second.map(|(_, shape)| shape))
    }
}

/// What is seen of a shape.
struct Seen {
    area: usize,
    x: f64,
    y: f64,
    left: usize,
    top: usize,
    right: usize,
    bottom: usize,
}

/// Area, centroid and bounding box (right and bottom excluded) of a mask that is not empty.
fn measure(mask: &[bool], width: usize) -> Seen {
    let mut seen = Seen { area: 0, x: 0.0, y: 0.0, left: usize::MAX, top: usize::MAX, right: 0, bottom: 0 };
    for (index, _) in mask.iter().enumerate().filter(|&(_, &there)| there) {
        let (x, y) = (index % width, index / width);
        seen.area += 1;
        seen.x += x as f64 + 0.5;
        seen.y += y as f64 + 0.5;
        seen.left = seen.left.min(x);
        seen.top = seen.top.min(y);
        seen.right = seen.right.max(x + 1);
        seen.bottom = seen.bottom.max(y + 1);
    }
    seen.x /= seen.area as f64;
    seen.y /= seen.area as f64;
    seen
}

/// The largest 4-connected part of a mask, of equals the first from the top, and its area.
fn largest_blob(mask: &[bool], width: usize) -> (Vec<bool>, usize) {
    let mut visited = vec![false; mask.len()];
    let mut best: Vec<usize> = Vec::new();
    for start in 0..mask.len() {
        if !mask[start] || visited[start] {
            continue;
        }
        visited[start] = true;
        let mut part = vec![start];
        let mut next = 0;
        while let Some(&index) = part.get(next) {
            next += 1;
            let x = index % width;
            let around = [
                (x > 0).then(|| index - 1),
                (x + 1 < width).then(|| index + 1),
                index.checked_sub(width),
                Some(index + width).filter(|&below| below < mask.len()),
            ];
            for neighbour in around.into_iter().flatten() {
                if mask[neighbour] && !visited[neighbour] {
                    visited[neighbour] = true;
                    part.push(neighbour);
                }
            }
        }
        if part.len() > best.len() {
            best = part;
        }
    }
    let mut blob = vec![false; mask.len()];
    for &index in &best {
        blob[index] = true;
    }
    (blob, best.len())
}

/// The pixels of a mask whose whole neighbourhood of `reach` pixels each way belongs to it too.
fn cores(mask: &[bool], width: usize, reach: usize) -> Vec<bool> {
    let height = mask.len() / width;
    // First along the rows, then along the columns.
    let run = |source: &[bool], x: usize, y: usize, dx: usize, dy: usize| {
        let (low_x, low_y) = (x.checked_sub(dx * reach), y.checked_sub(dy * reach));
        match (low_x, low_y) {
            (Some(low_x), Some(low_y)) if x + dx * reach < width && y + dy * reach < height => {
                (0..=2 * reach).all(|step| source[(low_y + dy * step) * width + low_x + dx * step])
            }
            _ => false,
        }
    };
    let rows: Vec<bool> = (0..mask.len()).map(|index| run(mask, index % width, index / width, 1, 0)).collect();
    (0..mask.len()).map(|index| run(&rows, index % width, index / width, 0, 1)).collect()
}

/// Whether the picture `rgb` (rows of red, green and blue bytes) shows `scene`; if not, the first thing wrong with it.
pub fn check(scene: &Scene, rgb: &[u8], width: usize, height: usize) -> Result<(), Wrong> {
    let total = width * height;
    if total == 0 || rgb.len() != 3 * total {
        return Err(Wrong::Dimensions);
    }
    let side = (total as f64).sqrt();
    let reach = ((2.0 * side / 256.0).round() as usize).max(2);
    let classes: Vec<Option<Colour>> =
        rgb.chunks_exact(3).map(|pixel| Colour::nearest([pixel[0], pixel[1], pixel[2]])).collect();
    let mask_of = |colour: Colour| -> Vec<bool> { classes.iter().map(|&class| class == Some(colour)).collect() };

    let mut blobs = Vec::new();
    let mut uncovered = total;
    for shape in scene.shapes() {
        let (blob, area) = largest_blob(&mask_of(shape.colour), width);
        if (area as f64) < MISSING_BELOW * total as f64 {
            return Err(Wrong::Missing(shape));
        }
        uncovered -= area;
        blobs.push(blob);
    }

    let background = classes.iter().filter(|&&class| class == Some(scene.background)).count();
    let share = background as f64 / uncovered.max(1) as f64;
    if share < BACKGROUND_SHARE {
        return Err(Wrong::Background(share));
    }

    let inner = measure(&blobs[0], width);
    let in_inner = |index: usize| {
        let (x, y) = (index % width, index / width);
        (inner.left..inner.right).contains(&x) && (inner.top..inner.bottom).contains(&y)
    };
    let outer = scene.second.filter(|&(relation, _)| relation == Relation::Inside).map(|(_, shape)| shape.colour);
    for colour in Colour::ALL.into_iter().filter(|&colour| colour != scene.background) {
        let own = scene.shapes().position(|shape| shape.colour == colour);
        let stray = cores(&mask_of(colour), width, reach)
            .into_iter()
            .enumerate()
            .filter(|&(index, core)| {
                // Through an inner ring the outer shape shows.
                let shown = outer == Some(colour) && in_inner(index);
                core && !shown && !own.is_some_and(|own| blobs[own][index])
            })
            .count();
        if stray as f64 > STRAY_SHARE * total as f64 {
            return Err(Wrong::Stray(colour));
        }
    }

    // A hole that another shape fills is no hole: the outer shape is judged with the inner one, and with what shows of
    // it through an inner ring.
    if let Some(colour) = outer {
        for index in 0..total {
            blobs[1][index] |= blobs[0][index] || (in_inner(index) && classes[index] == Some(colour));
        }
    }

    let mut seen = Vec::new();
    for (shape, blob) in scene.shapes().zip(&blobs) {
        let found = measure(blob, width);
        let (wide, tall) = ((found.right - found.left) as f64, (found.bottom - found.top) as f64);
        let fill = found.area as f64 / (wide * tall);
        let drop = (found.y - found.top as f64) / tall;
        let (middle_x, middle_y) = (usize::midpoint(found.left, found.right), usize::midpoint(found.top, found.bottom));
        let rows = middle_y.saturating_sub(reach)..(middle_y + reach + 1).min(height);
        let hollow = !rows
            .flat_map(|y| (middle_x.saturating_sub(reach)..(middle_x + reach + 1).min(width)).map(move |x| (x, y)))
            .any(|(x, y)| blob[y * width + x]);
        if !within(fill, shape.form.fills())
            || !within(drop, shape.form.drops())
            || !within(tall / wide, ASPECT)
            || hollow != (shape.form == Form::Ring)
        {
            return Err(Wrong::Form(shape));
        }
        let extent = (found.area as f64 / shape.form.area()).sqrt() * 256.0 / side;
        if !within(extent, shape.size.extents()) {
            return Err(Wrong::Size(shape, extent));
        }
        seen.push(found);
    }

    let (Some((relation, other)), [first, second]) = (scene.second, &seen[..]) else {
        return Ok(());
    };
    let (dx, dy) = ((second.x - first.x) / side, (second.y - first.y) / side);
    let good = match relation {
        Relation::Left => lies(dx, dy),
        Relation::Right => lies(-dx, dy),
        Relation::Above => lies(dy, dx),
        Relation::Below => lies(-dy, dx),
        Relation::Inside => {
            let extent = (second.area as f64 / other.form.area()).sqrt();
            second.left < first.left
                && second.top < first.top
                && first.right < second.right
                && first.bottom < second.bottom
                && dx.hypot(dy) * side <= CENTRED * extent
        }
    };
    if good { Ok(()) } else { Err(Wrong::Relation(relation, dx, dy)) }
}

fn within(value: f64, (low, high): (f64, f64)) -> bool {
    low <= value && value <= high
}

/// Whether the shapes are far enough apart along the relation's axis, and farther than across it.
fn lies(along: f64, across: f64) -> bool {
    along >= APART && along > across.abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIDE: usize = 256;

    /// A picture to draw on.
    struct Canvas(Vec<u8>);

    impl Canvas {
        fn new(background: Colour) -> Self {
            Self(background.rgb().repeat(SIDE * SIDE))
        }

        /// Draws a shape about a point; `extent` is the width of its box.
        fn draw(mut self, colour: Colour, form: Form, x: f64, y: f64, extent: f64) -> Self {
            for index in 0..SIDE * SIDE {
                let (dx, dy) = ((index % SIDE) as f64 + 0.5 - x, (index / SIDE) as f64 + 0.5 - y);
                if covers(form, dx, dy, extent / 2.0) {
                    self.0[3 * index..3 * index + 3].copy_from_slice(&colour.rgb());
                }
            }
            self
        }

        fn shows(&self, caption: &str) -> Result<(), Wrong> {
            check(&Scene::parse(caption)?, &self.0, SIDE, SIDE)
        }
    }

    fn covers(form: Form, dx: f64, dy: f64, half: f64) -> bool {
        let radius = dx.hypot(dy);
        match form {
            Form::Circle => radius < half,
            Form::Square => dx.abs().max(dy.abs()) < half,
            Form::Diamond => dx.abs() + dy.abs() < half,
            Form::Ring => radius < half && radius >= half * RING_INNER,
            Form::Triangle => {
                let height = 3f64.sqrt() * half;
                dy.abs() < height / 2.0 && dx.abs() < (dy / height + 0.5) * half
            }
            Form::Star => {
                // In one tenth of the star, its edge is a line between an outer and an inner point.
                let outer = 2.0 * half / 1.902_113;
                let turn = std::f64::consts::PI / 5.0;
                let dy = dy - 0.095_491_5 * outer;
                let angle = dx.atan2(-dy).rem_euclid(2.0 * turn);
                let angle = angle.min(2.0 * turn - angle);
                let inner = STAR_INNER * outer;
                let edge = outer * inner * turn.sin() / (outer * angle.sin() + inner * (turn - angle).sin());
                dx.hypot(dy) < edge
            }
        }
    }

    #[test]
    fn reads_captions() {
        let scene = Scene::parse("A picture of a big red circle to the left of an orange star, a white background.");
        let first = Shape { size: Size::Large, colour: Colour::Red, form: Form::Circle };
        let second = Shape { size: Size::Medium, colour: Colour::Orange, form: Form::Star };
        let expected = Scene { background: Colour::White, first, second: Some((Relation::Left, second)) };
        assert_eq!(scene, Ok(expected));
        let scene = Scene::parse("on a black background, a tiny green ring").unwrap();
        assert_eq!(scene.first, Shape { size: Size::Small, colour: Colour::Green, form: Form::Ring });
        assert_eq!((scene.background, scene.second), (Colour::Black, None));
    }

    #[test]
    fn refuses_other_captions() {
        let wrong = |caption: &str| Scene::parse(caption).unwrap_err();
        assert_eq!(wrong(""), Wrong::Incomplete);
        assert_eq!(wrong("a red circle"), Wrong::Incomplete);
        assert_eq!(wrong("a red circle on a white background, a small"), Wrong::Incomplete);
        assert_eq!(wrong("a red circle a blue star on a white background"), Wrong::Incomplete);
        assert_eq!(wrong("a red cat on a white background"), Wrong::Word("cat".into()));
        assert_eq!(wrong("left of a red circle on a white background"), Wrong::Word("left".into()));
        assert_eq!(wrong("a circle on a white background"), Wrong::Word("circle".into()));
        assert_eq!(wrong("a red circle on a red background"), Wrong::Ambiguous);
        assert_eq!(wrong("a red circle above a red star on a blue background"), Wrong::Ambiguous);
    }

    #[test]
    fn every_caption_of_the_test_set_is_of_the_grammar() {
        for caption in HELD_OUT.lines() {
            assert!(Scene::parse(caption).is_ok(), "{caption}");
        }
    }

    #[test]
    fn accepts_every_form_and_size_and_no_other() {
        for form in Form::ALL {
            for (size, extent) in [("small", 50.0), ("medium", 76.0), ("large", 108.0)] {
                let picture = Canvas::new(Colour::Cyan).draw(Colour::Purple, form, 120.0, 140.0, extent);
                // Every size in words, and at medium size every form too.
                let sizes = ["small", "medium", "large"].map(|word| (word, form));
                let forms = Form::ALL.map(|named| (size, named));
                let others = if size == "medium" { &forms[..] } else { &[] };
                for &(word, named) in sizes.iter().chain(others) {
                    let caption = format!("a {word} purple {} on a cyan background", named.name());
                    let verdict = picture.shows(&caption);
                    let expected = (named, word) == (form, size);
                    assert_eq!(verdict.is_ok(), expected, "{size} {}: {caption}: {verdict:?}", form.name());
                }
            }
        }
    }

    #[test]
    fn accepts_relations_one_way_only() {
        let places = [("left", 60.0, 130.0), ("right", 196.0, 126.0), ("above", 120.0, 60.0), ("below", 130.0, 196.0)];
        for (relation, x, y) in places {
            let picture = Canvas::new(Colour::White).draw(Colour::Red, Form::Circle, x, y, 76.0).draw(
                Colour::Blue,
                Form::Star,
                256.0 - x,
                256.0 - y,
                76.0,
            );
            for (word, ..) in places {
                let caption = format!("a red circle {word} of a blue star on a white background");
                match picture.shows(&caption) {
                    Ok(()) => assert_eq!(word, relation),
                    Err(Wrong::Relation(..)) => assert_ne!(word, relation),
                    Err(other) => panic!("{caption}: {other}"),
                }
            }
        }
    }

    #[test]
    fn a_diagonal_is_no_side() {
        let diagonal = Canvas::new(Colour::White).draw(Colour::Red, Form::Square, 60.0, 60.0, 76.0).draw(
            Colour::Blue,
            Form::Square,
            180.0,
            190.0,
            76.0,
        );
        let verdict = diagonal.shows("a red square left of a blue square on a white background");
        assert!(matches!(verdict, Err(Wrong::Relation(Relation::Left, ..))), "{verdict:?}");
    }

    #[test]
    fn accepts_one_inside_another() {
        for inner in Form::ALL {
            let picture = Canvas::new(Colour::Black).draw(Colour::Green, Form::Circle, 120.0, 130.0, 108.0).draw(
                Colour::Yellow,
                inner,
                122.0,
                128.0,
                50.0,
            );
            let name = inner.name();
            let caption = format!("a small yellow {name} inside a large green circle on a black background");
            assert_eq!(picture.shows(&caption), Ok(()), "{caption}");
            let beside = format!("a small yellow {name} above a large green circle on a black background");
            assert!(picture.shows(&beside).is_err(), "{beside}");
        }
        let caption = "a small yellow star inside a large green circle on a black background";
        let beside = Canvas::new(Colour::Black).draw(Colour::Green, Form::Circle, 70.0, 130.0, 108.0).draw(
            Colour::Yellow,
            Form::Star,
            190.0,
            130.0,
            50.0,
        );
        assert!(matches!(beside.shows(caption), Err(Wrong::Form(_) | Wrong::Size(..) | Wrong::Relation(..))));
    }

    #[test]
    fn rejects_what_is_missing_or_too_much() {
        let caption = "a red circle on a white background";
        let shape = Shape { size: Size::Medium, colour: Colour::Red, form: Form::Circle };
        assert_eq!(Canvas::new(Colour::White).shows(caption), Err(Wrong::Missing(shape)));
        let right = Canvas::new(Colour::White).draw(Colour::Red, Form::Circle, 80.0, 128.0, 76.0);
        assert_eq!(right.shows(caption), Ok(()));
        let twice = right.draw(Colour::Red, Form::Circle, 190.0, 128.0, 50.0);
        assert_eq!(twice.shows(caption), Err(Wrong::Stray(Colour::Red)));
        let other = Canvas::new(Colour::White).draw(Colour::Red, Form::Circle, 80.0, 128.0, 76.0).draw(
            Colour::Pink,
            Form::Star,
            190.0,
            128.0,
            50.0,
        );
        assert_eq!(other.shows(caption), Err(Wrong::Stray(Colour::Pink)));
    }

    #[test]
    fn rejects_wrong_colours() {
        let caption = "a red circle on a white background";
        let blue = Canvas::new(Colour::White).draw(Colour::Blue, Form::Circle, 128.0, 128.0, 76.0);
        assert!(matches!(blue.shows(caption), Err(Wrong::Missing(_))));
        let dark = Canvas::new(Colour::Black).draw(Colour::Red, Form::Circle, 128.0, 128.0, 76.0);
        assert_eq!(dark.shows(caption), Err(Wrong::Background(0.0)));
        // A grey that is no colour of the palette.
        let mut grey = Canvas::new(Colour::White);
        grey.0.fill(140);
        let grey = grey.draw(Colour::Red, Form::Circle, 128.0, 128.0, 76.0);
        assert_eq!(grey.shows(caption), Err(Wrong::Background(0.0)));
    }

    #[test]
    fn rejects_wrong_areas() {
        let caption = "a small red square on a white background";
        for (extent, good) in [(24.0, false), (36.0, false), (50.0, true), (70.0, false), (120.0, false)] {
            let picture = Canvas::new(Colour::White).draw(Colour::Red, Form::Square, 128.0, 128.0, extent);
            assert_eq!(picture.shows(caption).is_ok(), good, "{extent}");
        }
    }

    #[test]
    fn rejects_noise_and_odd_dimensions() {
        let mut state = 1u32;
        let noise: Vec<u8> = (0..SIDE * SIDE * 3)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        let scene = Scene::parse("a red circle on a white background").unwrap();
        assert!(check(&scene, &noise, SIDE, SIDE).is_err());
        assert_eq!(check(&scene, &noise, SIDE, SIDE - 1), Err(Wrong::Dimensions));
        assert_eq!(check(&scene, &[], 0, 0), Err(Wrong::Dimensions));
    }
}
