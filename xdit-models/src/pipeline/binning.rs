//! Resolution binning: models that were trained on few sizes draw at the nearest of them.
//!
//! Mirrors `classify_height_width_bin` and `resize_and_crop_tensor` of `PixArtImageProcessor`
//! (`src/diffusers/image_processor.py`) and `map_to_standard_shapes` of `pipeline_hunyuandit.py`.

/// How a size is chosen. Sizes are height and width in pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Binning {
    /// PixArt: the size of the nearest aspect ratio, whatever the area. The picture is scaled back.
    AspectRatio {
        /// Height over width, and the size.
        table: &'static [(f64, [usize; 2])],
        /// What the table's sizes are divided by.
        divide: usize,
    },
    /// HunyuanDiT: of the sizes of the nearest aspect ratio the one of the nearest area. The picture keeps it.
    Standard,
}

impl Binning {
    /// PixArt's, for a transformer of this `sample_size`; `None` if there is no table for it.
    pub fn aspect_ratio(sample_size: usize) -> Option<Self> {
        match sample_size {
            256 => Some(Self::AspectRatio { table: BINS_2048, divide: 1 }),
            128 => Some(Self::AspectRatio { table: BINS_1024, divide: 1 }),
            64 => Some(Self::AspectRatio { table: BINS_1024, divide: 2 }),
            32 => Some(Self::AspectRatio { table: BINS_1024, divide: 4 }),
            _ => None,
        }
    }

    /// Whether a picture is brought to the size that was asked for.
    pub fn scales_back(&self) -> bool {
        matches!(self, Self::AspectRatio { .. })
    }

    /// The size that is drawn for a request of `size`.
    pub fn nearest(&self, size: [usize; 2]) -> [usize; 2] {
        let [height, width] = size.map(|x| x as f64);
        match self {
            Self::AspectRatio { table, divide } => {
                closest(table.iter(), |(ratio, _)| (ratio - height / width).abs()).1.map(|x| x / divide)
            }
            Self::Standard => {
                // as upstream: what does not fill a token is cut off first
                let size = size.map(|x| x / 16 * 16);
                if STANDARD.iter().any(|(_, sizes)| sizes.contains(&size)) {
                    return size;
                }
                let [height, width] = size.map(|x| x as f64);
                let (_, sizes) = closest(STANDARD.iter(), |(ratio, _)| (ratio - width / height).abs());
                *closest(sizes.iter(), |[h, w]| ((h * w) as f64 - width * height).abs())
            }
        }
    }
}

/// The first of those with the least distance.
fn closest<'a, T>(all: impl Iterator<Item = &'a T>, distance: impl Fn(&T) -> f64) -> &'a T {
    all.min_by(|a, b| distance(a).total_cmp(&distance(b))).expect("a table is not empty")
}

/// Scales a picture until it covers `to` and cuts its middle out.
///
/// - `values`: `[height, width, 3]`
/// - `from`, `to`: height and width
pub fn resize_and_crop(values: Vec<f32>, from: [usize; 2], to: [usize; 2]) -> Vec<f32> {
    if from == to {
        return values;
    }
    let ratio = (to[0] as f64 / from[0] as f64).max(to[1] as f64 / from[1] as f64);
    let resized = from.map(|n| (n as f64 * ratio) as usize);
    // where a product falls a hair short of the side asked for, upstream's picture is a pixel short; ours is not
    let resized = [resized[0].max(to[0]), resized[1].max(to[1])];
    let crop = [(resized[0] - to[0]) / 2, (resized[1] - to[1]) / 2];
    // for each row or column: the two it lies between, and how far it is from the first; pixels are squares whose
    // middles are compared (`align_corners=False`)
    let between = |axis: usize| -> Vec<(usize, usize, f32)> {
        let scale = from[axis] as f32 / resized[axis] as f32;
        (crop[axis]..crop[axis] + to[axis])
            .map(|i| {
                let at = ((i as f32 + 0.5) * scale - 0.5).max(0.0);
                let low = (at as usize).min(from[axis] - 1);
                (low, (low + 1).min(from[axis] - 1), at - low as f32)
            })
            .collect()
    };
    let (rows, cols) = (between(0), between(1));
    let pixel = |row: usize, col: usize, channel: usize| values[(row * from[1] + col) * 3 + channel];
    let mut out = Vec::with_capacity(to[0] * to[1] * 3);
    for (top, bottom, down) in &rows {
        for (left, right, along) in &cols {
            for channel in 0..3 {
                let upper = pixel(*top, *left, channel) * (1.0 - along) + pixel(*top, *right, channel) * along;
                let lower = pixel(*bottom, *left, channel) * (1.0 - along) + pixel(*bottom, *right, channel) * along;
                out.push(upper * (1.0 - down) + lower * down);
            }
        }
    }
    out
}

/// Width over height, and the sizes.
const STANDARD: &[(f64, &[[usize; 2]])] = &[
    (1.0, &[[1024, 1024], [1280, 1280]]),
    (4.0 / 3.0, &[[768, 1024], [864, 1152], [960, 1280]]),
    (3.0 / 4.0, &[[1024, 768], [1152, 864], [1280, 960]]),
    (16.0 / 9.0, &[[768, 1280]]),
    (9.0 / 16.0, &[[1280, 768]]),
];

const BINS_1024: &[(f64, [usize; 2])] = &[
    (0.25, [512, 2048]),
    (0.28, [512, 1856]),
    (0.32, [576, 1792]),
    (0.33, [576, 1728]),
    (0.35, [576, 1664]),
    (0.4, [640, 1600]),
    (0.42, [640, 1536]),
    (0.48, [704, 1472]),
    (0.5, [704, 1408]),
    (0.52, [704, 1344]),
    (0.57, [768, 1344]),
    (0.6, [768, 1280]),
    (0.68, [832, 1216]),
    (0.72, [832, 1152]),
    (0.78, [896, 1152]),
    (0.82, [896, 1088]),
    (0.88, [960, 1088]),
    (0.94, [960, 1024]),
    (1.0, [1024, 1024]),
    (1.07, [1024, 960]),
    (1.13, [1088, 960]),
    (1.21, [1088, 896]),
    (1.29, [1152, 896]),
    (1.38, [1152, 832]),
    (1.46, [1216, 832]),
    (1.67, [1280, 768]),
    (1.75, [1344, 768]),
    (2.0, [1408, 704]),
    (2.09, [1472, 704]),
    (2.4, [1536, 640]),
    (2.5, [1600, 640]),
    (3.0, [1728, 576]),
    (4.0, [2048, 512]),
];
const BINS_2048: &[(f64, [usize; 2])] = &[
    (0.25, [1024, 4096]),
    (0.26, [1024, 3968]),
    (0.27, [1024, 3840]),
    (0.28, [1024, 3712]),
    (0.32, [1152, 3584]),
    (0.33, [1152, 3456]),
    (0.35, [1152, 3328]),
    (0.4, [1280, 3200]),
    (0.42, [1280, 3072]),
    (0.48, [1408, 2944]),
    (0.5, [1408, 2816]),
    (0.52, [1408, 2688]),
    (0.57, [1536, 2688]),
    (0.6, [1536, 2560]),
    (0.68, [1664, 2432]),
    (0.72, [1664, 2304]),
    (0.78, [1792, 2304]),
    (0.82, [1792, 2176]),
    (0.88, [1920, 2176]),
    (0.94, [1920, 2048]),
    (1.0, [2048, 2048]),
    (1.07, [2048, 1920]),
    (1.13, [2176, 1920]),
    (1.21, [2176, 1792]),
    (1.29, [2304, 1792]),
    (1.38, [2304, 1664]),
    (1.46, [2432, 1664]),
    (1.67, [2560, 1536]),
    (1.75, [2688, 1536]),
    (2.0, [2816, 1408]),
    (2.09, [2944, 1408]),
    (2.4, [3072, 1280]),
    (2.5, [3200, 1280]),
    (2.89, [3328, 1152]),
    (3.0, [3456, 1152]),
    (3.11, [3584, 1152]),
    (3.62, [3712, 1024]),
    (3.75, [3840, 1024]),
    (3.88, [3968, 1024]),
    (4.0, [4096, 1024]),
];

#[cfg(test)]
mod tests {
    use super::*;
    use xdit_testing::golden::Golden;

    fn pair(values: &[f64]) -> [usize; 2] {
        [values[0] as usize, values[1] as usize]
    }

    #[test]
    fn sizes_are_upstreams() {
        let golden = Golden::open("pixart-256");
        let asked = golden.values("bins.requested");
        for side in [256, 512, 1024, 2048] {
            let binning = Binning::aspect_ratio(side / 8).expect("a table");
            let want = golden.values(&format!("bins.{side}"));
            for (asked, want) in asked.chunks(2).zip(want.chunks(2)) {
                assert_eq!(binning.nearest(pair(asked)), pair(want), "{side} pixels, {asked:?}");
            }
        }
        assert_eq!(Binning::aspect_ratio(96), None);
    }

    #[test]
    fn standard_sizes_are_upstreams() {
        #[derive(serde::Deserialize)]
        struct Size {
            asked: String,
            got: String,
        }
        let path = xdit_testing::golden::dir().join("hunyuan.sizes.json");
        let sizes: Vec<Size> = serde_json::from_str(&std::fs::read_to_string(path).expect("sizes")).expect("sizes");
        let parse = |text: &str| -> [usize; 2] {
            let (height, width) = text.split_once('x').expect("a size");
            [height.parse().expect("a number"), width.parse().expect("a number")]
        };
        for Size { asked, got } in sizes {
            assert_eq!(Binning::Standard.nearest(parse(&asked)), parse(&got), "{asked}");
        }
    }

    #[test]
    fn pictures_are_scaled_as_upstream_does() {
        let golden = Golden::open("pixart-256");
        let mut n = 0;
        for key in golden.keys() {
            let Some(sizes) = key.strip_prefix("resize.").and_then(|key| key.strip_suffix(".in")) else { continue };
            // upstream's rounding leaves a single pixel of this one
            if sizes == "26x26.15x15" {
                continue;
            }
            let numbers: Vec<usize> = sizes.split(['x', '.']).map(|n| n.parse().expect("a number")).collect();
            let (from, to) = ([numbers[0], numbers[1]], [numbers[2], numbers[3]]);
            // two channels there, three here; theirs come first
            let planes = golden.values(&key);
            let n_pixels = from[0] * from[1];
            let at = |i: usize, channel: usize| if channel < 2 { planes[channel * n_pixels + i] as f32 } else { 0.0 };
            let pixels = (0..n_pixels).flat_map(|i| (0..3).map(move |channel| (i, channel)));
            let got = resize_and_crop(pixels.map(|(i, channel)| at(i, channel)).collect(), from, to);
            let want = golden.values(&format!("resize.{sizes}.out"));
            for (i, want) in want.iter().enumerate() {
                let (channel, i) = (i / (to[0] * to[1]), i % (to[0] * to[1]));
                assert!((f64::from(got[i * 3 + channel]) - want).abs() < 1e-5, "{sizes}: pixel {i}");
            }
            n += 1;
        }
        assert!(n > 2);
    }
}
