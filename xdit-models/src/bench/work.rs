//! The work of a forward pass, counted from the configuration: what the blocks and the head multiply and add. A dense layer
//! of `m` rows is `2 m k n` operations, attention `4 queries keys head_dim` of each head. What is computed once for all
//! steps (text, time) is left out, and so is what is not a product (norms, activations, RoPE, the sampler).

use std::ops::Add;

use crate::dit::flux::FluxConfig;
use crate::dit::hunyuan_dit::HunyuanDitConfig;
use crate::dit::pixart::PixArtConfig;
use crate::dit::sd3::Sd3Config;

/// Floating-point operations.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Work {
    /// Of dense layers.
    pub linear: f64,
    /// Of attention.
    pub attention: f64,
}

impl Work {
    /// Both.
    pub fn total(self) -> f64 {
        self.linear + self.attention
    }

    /// So many times as much.
    #[must_use]
    pub fn times(self, n: usize) -> Self {
        Self { linear: self.linear * n as f64, attention: self.attention * n as f64 }
    }
}

impl Add for Work {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { linear: self.linear + other.linear, attention: self.attention + other.attention }
    }
}

/// Dense layers of `rows` rows that have `weights` weights together.
pub fn linear(rows: usize, weights: usize) -> Work {
    Work { linear: 2.0 * rows as f64 * weights as f64, ..Work::default() }
}

/// Attention of all heads, whose channels are `d` together.
pub fn attention(queries: usize, keys: usize, d: usize) -> Work {
    Work { attention: 4.0 * queries as f64 * keys as f64 * d as f64, ..Work::default() }
}

/// Into the blocks and out of them: tokens of `channels` channels, and the last norm's modulation.
fn ends(img: usize, d: usize, channels: usize) -> Work {
    linear(img, 2 * d * channels) + linear(1, 2 * d * d)
}

/// A pass of FLUX's: text and image have weights of their own in the double blocks, and share them in the single ones.
pub fn flux(config: &FluxConfig, img: usize, txt: usize) -> Work {
    let d = config.d_model();
    let (n, square) = (img + txt, d * d);
    // queries, keys, values, output and the feed-forward's eight
    let double = linear(n, 12 * square) + linear(2, 6 * square) + attention(n, n, d);
    let single = linear(n, 12 * square) + linear(1, 3 * square) + attention(n, n, d);
    ends(img, d, config.in_channels) + double.times(config.num_layers) + single.times(config.num_single_layers)
}

/// A pass of Stable Diffusion 3's. The last block only reads the text.
pub fn sd3(config: &Sd3Config, img: usize, txt: usize) -> Work {
    let d = config.d_model();
    let (n, square) = (img + txt, d * d);
    let changed = linear(n, 12 * square) + linear(2, 6 * square) + attention(n, n, d);
    let last = linear(img, 12 * square) + linear(txt, 3 * square) + linear(1, 8 * square) + attention(n, n, d);
    let dual = linear(img, 4 * square) + linear(1, 3 * square) + attention(img, img, d);
    let n_dual = config.dual_attention_layers.iter().filter(|block| **block < config.num_layers).count();
    let channels = config.in_channels * config.patch_size * config.patch_size;
    ends(img, d, channels) + changed.times(config.num_layers.saturating_sub(1)) + last + dual.times(n_dual)
}

/// A pass of PixArt's. What the blocks know of time is computed once for all of them, before the steps.
pub fn pixart(config: &PixArtConfig, img: usize, txt: usize) -> Work {
    let d = config.d_model();
    let square = d * d;
    let attended = linear(img, 4 * square) + attention(img, img, d);
    let looked = linear(img, 2 * square) + linear(txt, 2 * square) + attention(img, txt, d);
    let block = attended + looked + linear(img, 8 * square);
    let channels = config.in_channels * config.patch_size * config.patch_size;
    linear(img, 2 * d * channels) + block.times(config.num_layers)
}

/// A pass of HunyuanDiT's, whose second half takes up what the first half made.
pub fn hunyuan_dit(config: &HunyuanDitConfig, img: usize, txt: usize) -> Work {
    let (d, d_txt) = (config.hidden_size, config.cross_attention_dim);
    let (square, wide) = (d * d, (d as f64 * config.mlp_ratio) as usize);
    let attended = linear(img, 4 * square) + linear(1, square) + attention(img, img, d);
    let looked = linear(img, 2 * square) + linear(txt, 2 * d * d_txt) + attention(img, txt, d);
    let block = attended + looked + linear(img, 2 * d * wide);
    let n_skips = config.num_layers.saturating_sub(config.num_layers / 2 + 1);
    let channels = config.in_channels * config.patch_size * config.patch_size;
    ends(img, d, channels) + block.times(config.num_layers) + linear(img, 2 * square).times(n_skips)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::published;
    use serde::de::DeserializeOwned;

    fn config<T: DeserializeOwned>(name: &str) -> T {
        let files = published::find(name).expect("published").files;
        let file = files.iter().find(|file| file.path == "transformer/config.json").expect("a configuration");
        serde_json::from_slice(file.bytes).expect("a configuration")
    }

    /// In units of 10^12, to a tenth.
    #[track_caller]
    fn check(work: Work, linear: f64, attention: f64) {
        let tera = |x: f64| (x / 1e11).round() / 10.0;
        assert_eq!((tera(work.linear), tera(work.attention)), (linear, attention), "{work:?}");
    }

    /// FLUX.1-dev at 1024 pixels by hand: 57 blocks, 4608 tokens, d 3072. `2 * 4608 * 12 d^2` is 1.0437 in a block, 59.5
    /// in all; `4 * 24 * 4608^2 * 128` is 0.2609, 14.9 in all.
    #[test]
    fn flux_dev_is_what_a_hand_counts() {
        check(flux(&config("flux-dev"), 4096, 512), 59.5, 14.9);
        assert_eq!((flux(&config("flux-dev"), 4096, 512).total() / 1e11).round(), 744.0);
        // 2048 pixels: 16384 image tokens
        check(flux(&config("flux-dev"), 16_384, 512), 218.1, 200.0);
        // exactly: 64 tokens, of which 16 are text, of the tiny one's d 64, four blocks, 64 channels
        let (n, square) = (64.0, 64.0 * 64.0);
        let want = Work {
            linear: 2.0 * (4.0 * n * 12.0 * square + 2.0 * 12.0 * square + 2.0 * 3.0 * square)
                + 2.0 * (48.0 * 2.0 * square + 2.0 * square),
            attention: 4.0 * 4.0 * n * n * 64.0,
        };
        assert_eq!(flux(&config("tiny-flux"), 48, 16), want);
    }

    /// Each by hand: blocks times `2 rows weights`, and heads' channels times `4 queries keys`.
    #[test]
    fn the_others_are_what_a_hand_counts() {
        // 24 blocks of d 1536, 4096 + 333 tokens: 2 * 4429 * 12 d^2 = 0.2508 and 4 * 4429^2 d = 0.1205
        check(sd3(&config("sd3"), 4096, 333), 6.0, 2.9);
        // 13 of them once more over the image: 2 * 4096 * 4 d^2 = 0.0773 and 4 * 4096^2 d = 0.1031
        check(sd3(&config("sd3.5-medium"), 4096, 333), 7.0, 4.2);
        // 28 blocks of d 1152, 14 d^2 of 4096 rows and 2 d^2 of 300 text rows; 4 * 4096 * (4096 + 300) d = 0.0830
        check(pixart(&config("pixart-sigma"), 4096, 300), 4.3, 2.3);
        // 40 blocks of d 1408: 2 * 4096 * (6 d^2 + 2 * 6144 d) + 2 * 333 * 2 * 1024 d = 0.2411, for 19 of them another
        // 2 * 4096 * 2 d^2 = 0.0325; 4 * 4096 * (4096 + 333) d = 0.1022
        check(hunyuan_dit(&config("hunyuandit"), 4096, 333), 10.3, 4.1);
    }
}
