//! Memory of activations on the CPU: what is alive in the widest moment of a block, an encoder, a decoder.
//!
//! Written along the models' code (`dit/`, `text/`, `vae/`) and the kernels' (`xdit-core/src/ops/cpu`): a moment is the
//! tensors that are alive then, and what the kernel that runs takes beside them. Whoever changes one of those looks
//! here; `tests/memory.rs` measures.

use std::ops::Range;

use xdit_core::dit::DitSpec;

use crate::dit::flux::FluxConfig;
use crate::dit::sd3::Sd3Config;
use crate::text::t5::T5Config;
use crate::vae::autoencoder_kl::AutoencoderKlConfig;

/// Bytes of scores of a block of queries, one for each thread (`ops/cpu/attention.rs`).
const SCORES: u64 = 385 * 256 * 4;
/// Bytes of transformed tiles of a 3x3 convolution, of each thread, and points of a tile (`ops/cpu/winograd.rs`).
const TILES: u64 = (2 << 20) * 4;
const POINTS: u64 = 36;

/// What a tensor and the kernels take in a precision. Kernels compute in f32: half precision is widened on the way in
/// and narrowed on the way out (`ops/cpu/host.rs`).
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Bytes of a number.
    pub size: u64,
    /// Threads of the kernels.
    pub threads: u64,
}

impl Memory {
    /// Bytes of so many numbers.
    fn of(self, n: u64) -> u64 {
        n * self.size
    }

    /// A kernel's result of `out` numbers, and the copies on its way.
    fn kernel(self, inputs: u64, out: u64) -> u64 {
        self.of(out) + if self.size < 4 { 4 * (inputs + out) } else { 0 }
    }

    /// A dense layer of so many rows: half precision widens its weight, too.
    fn dense(self, rows: u64, d_in: u64, d_out: u64) -> u64 {
        self.kernel(rows * d_in + d_in * d_out, rows * d_out)
    }

    /// Attention: its blocks of queries are computed in f32 apart and then put together.
    fn attention(self, queries: u64, keys: u64, width: u64) -> u64 {
        let out = queries * width;
        self.kernel(out + 2 * keys * width, out) + 4 * out + self.threads * SCORES
    }
}

/// A pass of a rank through blocks.
#[derive(Debug, Clone)]
pub struct BlockPass {
    /// Precision and threads.
    pub memory: Memory,
    /// The rank's text tokens that go through the blocks, or that they look at.
    pub n_txt: usize,
    /// Its image tokens.
    pub n_img: usize,
    /// Whether keys and values travel around a ring.
    pub in_ring: bool,
    /// The rank's tokens whose keys and values are kept, where they are; these are an item of their own.
    pub kept: Option<usize>,
    /// Blocks of the rank's stage.
    pub blocks: Range<usize>,
}

/// What a model's passes take.
#[derive(Debug, Clone, Copy)]
pub struct Activations {
    /// Bytes at the widest moment of a block, the streams included.
    pub widest: u64,
    /// Bytes that are known of each token's position.
    pub position: u64,
}

impl BlockPass {
    /// Bytes of an image token stream.
    pub fn stream(&self, spec: &DitSpec) -> u64 {
        self.memory.of(self.n_img as u64 * spec.d_model() as u64)
    }

    /// Queries, keys and values of `n` tokens and what their attention takes.
    fn attend(&self, n: u64, d: u64) -> u64 {
        let (m, t) = (self.memory, self.memory.of(n * d));
        if let Some(keys) = self.kept {
            // keys and values become one before they are kept
            return (5 * t).max(t + m.attention(n, keys as u64, d));
        }
        if self.in_ring {
            // keys and values in one piece, the next ones on their way, what was merged so far in f32
            return (5 * t).max(t + 4 * t + 4 * n * d + m.attention(n, n, d));
        }
        3 * t + m.attention(n, n, d)
    }
}

/// The double blocks hold the stream, its queries, keys and values and attention's result; then one stream after the
/// other goes through the feed-forward, four times as wide. The single blocks hold more: the norm of the stream waits
/// for the feed-forward while attention runs, and attention's result for both to be projected.
pub fn flux(config: &FluxConfig, pass: &BlockPass) -> Activations {
    let (m, d) = (pass.memory, config.d_model() as u64);
    let (txt, img) = (pass.n_txt as u64, pass.n_img as u64);
    let n = txt + img;
    let t = m.of(n * d);
    let (t_txt, t_img) = (m.of(txt * d), m.of(img * d));
    let double =
        [t + pass.attend(n, d), t_txt + 2 * t_img + m.dense(img, d, 4 * d), t_txt + 5 * t_img + m.dense(img, 4 * d, d)];
    let single = [2 * t + pass.attend(n, d), 3 * t + m.dense(n, d, 4 * d), 6 * t + m.dense(n, 5 * d, d)];
    let has_single = pass.blocks.end > config.num_layers;
    let has_double = pass.blocks.start < config.num_layers;
    let most = |moments: [u64; 3], is_there: bool| if is_there { widest(&moments) } else { 0 };
    Activations {
        widest: most(double, has_double).max(most(single, has_single)),
        position: 4 * config.attention_head_dim as u64,
    }
}

/// As FLUX's double blocks, but attention's result stays until the text's half of it is used, after the image has gone
/// through its feed-forward; a second attention has its queries, keys and values ready before the first begins.
pub fn sd3(config: &Sd3Config, pass: &BlockPass) -> Activations {
    let (m, d) = (pass.memory, config.d_model() as u64);
    let (txt, img) = (pass.n_txt as u64, pass.n_img as u64);
    let t = m.of((txt + img) * d);
    let (t_txt, t_img) = (m.of(txt * d), m.of(img * d));
    let dual = config.dual_attention_layers.iter().any(|block| pass.blocks.contains(block));
    let second = if dual { 3 * t_img } else { 0 };
    let widest = widest(&[
        t + second + pass.attend(txt + img, d),
        t + t_txt + 2 * t_img + m.dense(img, d, 4 * d),
        t + t_txt + 5 * t_img + m.dense(img, 4 * d, d),
    ]);
    Activations { widest, position: m.of(d) }
}

/// Models whose text enters by cross-attention: the stream and its own attention, or the stream and the feed-forward.
pub fn cross(spec: &DitSpec, mlp_ratio: f64, pass: &BlockPass) -> u64 {
    let (m, d, img) = (pass.memory, spec.d_model() as u64, pass.n_img as u64);
    let wide = (d as f64 * mlp_ratio) as u64;
    let t = m.of(img * d);
    widest(&[t + pass.attend(img, d), 2 * t + m.dense(img, d, wide), t + m.of(img * wide) + m.dense(img, wide, d)])
}

/// The stream, the bias of every head for every two tokens (twice where padding is hidden), and attention or the gated
/// feed-forward, whose two halves and their product are alive together.
pub fn t5(config: &T5Config, n: usize, memory: Memory) -> u64 {
    let (m, n) = (memory, n as u64);
    let (d, ff, inner) = (config.d_model as u64, config.d_ff as u64, (config.num_heads * config.d_kv) as u64);
    let t = m.of(n * d);
    let bias = 4 * config.num_heads as u64 * n * n;
    bias + widest(&[
        // the bias is gathered, then the padding added
        bias + 4 * n * n,
        2 * t + 3 * m.of(n * inner) + m.attention(n, n, inner),
        2 * t + m.of(n * ff) + m.dense(n, d, ff),
        t + m.of(2 * n * ff) + m.kernel(n * ff, n * ff),
        t + m.of(n * ff) + m.dense(n, ff, d),
    ])
}

/// CLIP's and BERT's layers, all of whose outputs are kept.
///
/// - `d`, `ff`: widths of the stream and of the feed-forward
pub fn layers(n_layers: usize, [d, ff]: [usize; 2], n: usize, memory: Memory) -> u64 {
    let (m, n, d, ff) = (memory, n as u64, d as u64, ff as u64);
    let t = m.of(n * d);
    n_layers as u64 * t
        + widest(&[5 * t + m.attention(n, n, d), 2 * t + m.dense(n, d, ff), t + m.of(n * ff) + m.dense(n, ff, d)])
}

/// The decoder's widest moment over all resolutions.
///
/// A resnet holds its input while it works: with the norm of it and the first convolution's result, then, once it is
/// narrower, with the shortcut, the second norm and the second convolution's result. Between resolutions a picture of
/// four times as many pixels is convolved.
///
/// - `size`: height and width of the latents
/// - `n_bands`: into which they are cut; each has a row of its neighbours at any resolution
pub fn decoder(config: &AutoencoderKlConfig, [height, width]: [usize; 2], n_bands: usize, memory: Memory) -> u64 {
    let m = memory;
    let (band, margins) = (height.div_ceil(n_bands), n_bands.min(3) - 1);
    let pixels_at = |scale: usize| ((band * scale + margins) * width * scale) as u64;
    let (mut scale, all) = (1, (height * width) as u64);
    let mut pixels = pixels_at(scale);
    let levels: Vec<u64> = config.block_out_channels.iter().rev().map(|c| *c as u64).collect();
    let conv = |pixels: u64, inputs: u64, c_in: u64, c_out: u64| {
        let weight = 4 * POINTS * c_in.next_multiple_of(16) * c_out.next_multiple_of(16);
        let (out, scratch) = (m.of(pixels * c_out), weight + m.threads * TILES);
        // the tiles are gone before the result is narrowed
        m.kernel(pixels * inputs + 9 * c_in * c_out, pixels * c_out)
            + if m.size < 4 { scratch.max(out) - out } else { scratch }
    };
    let resnet = |pixels: u64, c_in: u64, c_out: u64| {
        let (x, y) = (m.of(pixels * c_in), m.of(pixels * c_out));
        widest(&[
            x + m.kernel(pixels * c_in, pixels * c_in),
            2 * x + conv(pixels, c_in, c_in, c_out),
            x + y + m.kernel(pixels * c_out, pixels * c_out),
            // the residual is read beside the input
            2 * y + conv(pixels, 2 * c_out, c_out, c_out),
        ])
    };
    let first = levels[0];
    let middle = match config.mid_block_add_attention {
        true => 3 * m.of(pixels * first) + 2 * m.of(all * first) + m.attention(pixels, all, first),
        false => 0,
    };
    let mut most = middle.max(resnet(pixels, first, first));
    for (i, c) in levels.iter().enumerate() {
        most = most.max(resnet(pixels, levels[i.saturating_sub(1)], *c));
        if i + 1 < levels.len() {
            scale *= 2;
            pixels = pixels_at(scale);
            most = most.max(m.of(pixels * c) + conv(pixels, *c, *c, *c));
        }
    }
    most
}

fn widest(moments: &[u64]) -> u64 {
    moments.iter().copied().max().unwrap_or(0)
}
