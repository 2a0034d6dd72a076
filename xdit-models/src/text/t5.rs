//! `T5EncoderModel`, version 1.1: the long text encoder of FLUX and Stable Diffusion 3.
//!
//! Mirrors `src/transformers/models/t5/modeling_t5.py`. Scores are not scaled; where a token is enters through a bias
//! on the scores alone, which the first block's table gives for all blocks.

use burn::tensor::{DType, FloatDType, Int, Tensor, TensorData};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use xdit_core::checkpoint::{LoadError, Loader};
use xdit_core::ops::{Activation, Linear, attention, geglu, merge_heads, rms_norm, split_heads, to_dtype};

use crate::error::{ModelError, epsilon, few, positive};
use crate::text::config::{activation, part_of, read};
use crate::text::{embed, hide};

const CLASS: &str = "T5EncoderModel";

/// `text_encoder_2/config.json`; field names and defaults are the checkpoint's. Some fields have a second name, which
/// wins where both are there.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, remote = "Self")]
pub struct T5Config {
    /// Token ids are below it.
    pub vocab_size: usize,
    /// Width of the model.
    pub d_model: usize,
    /// Channels of a head.
    pub d_kv: usize,
    /// Width of the feed-forward.
    pub d_ff: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Heads.
    pub num_heads: usize,
    /// Rows of the table of biases.
    pub relative_attention_num_buckets: usize,
    /// The distance in tokens from which on all are alike.
    pub relative_attention_max_distance: usize,
    /// Added to the mean of squares in norms.
    pub layer_norm_epsilon: f64,
    /// Kind of feed-forward: `gated-gelu` in version 1.1.
    pub feed_forward_proj: String,
    /// Activation of the feed-forward, whatever `feed_forward_proj` says of it.
    pub dense_act_fn: Option<String>,
    /// Whether the feed-forward has a gate, whatever `feed_forward_proj` says of it; only such are built.
    pub is_gated_act: Option<bool>,
    /// Whether a token sees only those before it; not built.
    pub is_decoder: bool,
}

impl Default for T5Config {
    fn default() -> Self {
        Self {
            vocab_size: 32_128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: "relu".into(),
            dense_act_fn: None,
            is_gated_act: None,
            is_decoder: false,
        }
    }
}

/// `attribute_map` upstream: second names, and the fields that they stand for.
const SECOND_NAMES: [(&str, &str); 4] = [
    ("hidden_size", "d_model"),
    ("num_attention_heads", "num_heads"),
    ("num_hidden_layers", "num_layers"),
    ("head_dim", "d_kv"),
];

impl<'de> Deserialize<'de> for T5Config {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut config = part_of(Value::deserialize(from)?, "t5", None);
        if let Some(config) = config.as_object_mut() {
            for (second, name) in SECOND_NAMES {
                if let Some(value) = config.remove(second) {
                    config.insert(name.into(), value);
                }
            }
        }
        read(config, |part| Self::deserialize(part))
    }
}

impl T5Config {
    pub(crate) fn check(&self) -> Result<Activation, ModelError> {
        let bad = |what: String| Err(ModelError::Config { class: CLASS, what });
        positive(
            CLASS,
            &[
                ("vocab_size", self.vocab_size),
                ("d_model", self.d_model),
                ("d_kv", self.d_kv),
                ("d_ff", self.d_ff),
                ("num_layers", self.num_layers),
                ("num_heads", self.num_heads),
                ("num_heads * d_kv", self.num_heads.saturating_mul(self.d_kv)),
                ("relative_attention_num_buckets", self.relative_attention_num_buckets),
                ("relative_attention_max_distance", self.relative_attention_max_distance),
            ],
        )?;
        few("T5EncoderModel", &[("num_layers", self.num_layers)])?;
        epsilon("T5EncoderModel", "layer_norm_epsilon", self.layer_norm_epsilon)?;
        // a quarter of the buckets count single tokens, another the logarithm of the distance, for either direction
        let (buckets, far) = (self.relative_attention_num_buckets, self.relative_attention_max_distance);
        if buckets < 4 || far <= buckets / 4 {
            return bad(format!(
                "relative_attention_num_buckets={buckets} must be at least 4, and a quarter of it less than \
                 relative_attention_max_distance={far}"
            ));
        }
        if self.is_decoder {
            return bad("is_decoder=true is not supported, only false".into());
        }
        let proj = &self.feed_forward_proj;
        let gated = proj.strip_prefix("gated-");
        if !self.is_gated_act.unwrap_or(gated.is_some()) {
            let field = match self.is_gated_act {
                Some(_) => "is_gated_act=false".into(),
                None => format!("feed_forward_proj={proj:?}"),
            };
            return bad(format!("{field} is not supported, only a gate such as \"gated-gelu\" of version 1.1"));
        }
        match (&self.dense_act_fn, gated.unwrap_or(proj)) {
            (Some(name), _) => activation(CLASS, "dense_act_fn", name),
            (None, "gelu") if gated.is_some() => Ok(Activation::GeluTanh),
            (None, name) => activation(CLASS, "feed_forward_proj", name),
        }
    }
}

/// The model with its weights on a device.
#[derive(Debug)]
pub struct T5Encoder {
    config: T5Config,
    dtype: DType,
    shared: Tensor<2>,
    relative_attention_bias: Tensor<2>,
    blocks: Vec<Block>,
    final_layer_norm: Tensor<1>,
}

impl T5Encoder {
    /// Parts of names in a checkpoint that the model does not need: the decoder of a whole T5, and the embedding
    /// that it shares with the encoder where that has its own.
    pub const UNUSED: &[&str] = &["decoder.", "lm_head.", "shared."];

    /// Reads the weights.
    ///
    /// # Errors
    /// A configuration that contradicts itself; tensors of other shapes than it demands.
    pub fn load(loader: &Loader<'_>, config: &T5Config) -> Result<Self, ModelError> {
        let act = config.check()?;
        let (d, encoder) = (config.d_model, loader.pp("encoder"));
        // where both are there, even with other values, upstream's encoder looks texts up in its own
        let own = encoder.has("embed_tokens.weight");
        let shared = if own { encoder.pp("embed_tokens") } else { loader.pp("shared") };
        let bias = encoder.pp("block.0.layer.0.SelfAttention.relative_attention_bias");
        let block = |i| Block::load(&encoder.pp("block").pp(i), config, act);
        Ok(Self {
            dtype: loader.dtype().into(),
            shared: shared.tensor("weight", [config.vocab_size, d])?,
            relative_attention_bias: bias
                .f32()
                .tensor("weight", [config.relative_attention_num_buckets, config.num_heads])?,
            blocks: (0..config.num_layers).map(block).collect::<Result<_, _>>()?,
            final_layer_norm: encoder.pp("final_layer_norm").tensor("weight", [d])?,
            config: config.clone(),
        })
    }

    /// Encodes texts of equally many tokens to `[batch, tokens, d_model]`.
    ///
    /// - `mask`: for each text and token, whether it may be looked at; FLUX looks at the padding too
    ///
    /// # Panics
    /// An id that is not below `vocab_size`, or no tokens at all.
    pub fn forward(&self, ids: &[Vec<u32>], mask: Option<&[Vec<bool>]>) -> Tensor<3> {
        self.forward_each(ids, mask, |_, _| {})
    }

    /// As [`forward`](Self::forward); `see` is shown the embeddings and each block's output but the last.
    pub fn forward_each(
        &self,
        ids: &[Vec<u32>],
        mask: Option<&[Vec<bool>]>,
        mut see: impl FnMut(usize, &Tensor<3>),
    ) -> Tensor<3> {
        let mut bias = self.position_bias(ids[0].len());
        if let Some(mask) = mask {
            bias = bias + hide(mask, &self.shared);
        }
        let mut x = embed(&self.shared, ids);
        for (i, block) in self.blocks.iter().enumerate() {
            see(i, &x);
            x = block.forward(x, &bias);
        }
        to_dtype(norm(x, &self.final_layer_norm, self.config.layer_norm_epsilon), self.dtype)
    }

    /// `[1, heads, n, n]`, f32
    fn position_bias(&self, n: usize) -> Tensor<4> {
        let (n_buckets, far) =
            (self.config.relative_attention_num_buckets, self.config.relative_attention_max_distance);
        // one bucket for each distance from key to query, -(n - 1)..=n - 1
        let buckets: Vec<_> = (0..2 * n - 1).map(|i| bucket(i as i64 + 1 - n as i64, n_buckets, far) as i32).collect();
        let at: Vec<i32> = (0..n).flat_map(|query| buckets[n - 1 - query..][..n].iter().copied()).collect();
        let table = self.relative_attention_bias.clone();
        let at = Tensor::<1, Int>::from_data(TensorData::new(at, [n * n]), (&table.device(), DType::I32));
        table.transpose().select(1, at).reshape([1, self.config.num_heads, n, n])
    }
}

/// `T5Block`
#[derive(Debug)]
struct Block {
    n_heads: usize,
    act: Activation,
    eps: f64,
    attn_norm: Tensor<1>,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    ff_norm: Tensor<1>,
    wi_0: Linear,
    wi_1: Linear,
    wo: Linear,
}

impl Block {
    fn load(loader: &Loader<'_>, config: &T5Config, act: Activation) -> Result<Self, LoadError> {
        let (d, d_ff, inner) = (config.d_model, config.d_ff, config.num_heads * config.d_kv);
        let (attn_layer, ff_layer) = (loader.pp("layer.0"), loader.pp("layer.1"));
        let (attn, ff) = (attn_layer.pp("SelfAttention"), ff_layer.pp("DenseReluDense"));
        // as upstream: this product leaves f16's range
        let wo = if loader.dtype() == FloatDType::F16 { ff.f32() } else { ff.clone() };
        Ok(Self {
            n_heads: config.num_heads,
            act,
            eps: config.layer_norm_epsilon,
            attn_norm: attn_layer.pp("layer_norm").tensor("weight", [d])?,
            q: Linear::load_no_bias(&attn.pp("q"), d, inner)?,
            k: Linear::load_no_bias(&attn.pp("k"), d, inner)?,
            v: Linear::load_no_bias(&attn.pp("v"), d, inner)?,
            o: Linear::load_no_bias(&attn.pp("o"), inner, d)?,
            ff_norm: ff_layer.pp("layer_norm").tensor("weight", [d])?,
            wi_0: Linear::load_no_bias(&ff.pp("wi_0"), d, d_ff)?,
            wi_1: Linear::load_no_bias(&ff.pp("wi_1"), d, d_ff)?,
            wo: Linear::load_no_bias(&wo.pp("wo"), d_ff, d)?,
        })
    }

    /// - `x`: `[batch, tokens, d_model]`
    /// - `bias`: `[1 | batch, heads, tokens, tokens]`
    fn forward(&self, x: Tensor<3>, bias: &Tensor<4>) -> Tensor<3> {
        let dtype = x.dtype();
        let y = norm(x.clone(), &self.attn_norm, self.eps);
        let heads = |proj: &Linear| split_heads(proj.forward(y.clone()), self.n_heads);
        let y = attention(heads(&self.q), heads(&self.k), heads(&self.v), Some(bias.clone()), 1.0).out;
        let x = clamp_f16(x + to_dtype(self.o.forward(merge_heads(y)), dtype));

        let y = norm(x.clone(), &self.ff_norm, self.eps);
        let y = geglu(self.wi_1.forward(y.clone()), self.wi_0.forward(y), self.act);
        // in f16 the sums are f32 from here on: they leave f16's range in models that were trained in bf16
        let y = self.wo.forward(to_dtype(y, self.wo.dtype()));
        to_dtype(x, y.dtype()) + y
    }
}

/// As upstream: if anything of an f16 stream has become infinite, all of it is kept a good way within f16's range.
fn clamp_f16(x: Tensor<3>) -> Tensor<3> {
    if x.dtype() != DType::F16 {
        return x;
    }
    let overflowed = x.clone().is_inf().any().reshape([1, 1, 1]).expand(x.dims());
    x.clone().mask_where(overflowed, x.clamp(-64_504.0, 64_504.0))
}

/// `T5LayerNorm`, in the dtype of its weight whatever the stream's is.
fn norm(x: Tensor<3>, weight: &Tensor<1>, eps: f64) -> Tensor<3> {
    to_dtype(rms_norm(x, weight, eps), weight.dtype())
}

/// `_relative_position_bucket` for two directions.
///
/// - `distance`: position of the key minus position of the query
fn bucket(distance: i64, n_buckets: usize, far: usize) -> usize {
    let n = n_buckets / 2;
    let first = if distance > 0 { n } else { 0 };
    let distance = distance.unsigned_abs() as usize;
    let exact = n / 2;
    if distance < exact {
        return first + distance;
    }
    // in f32, as upstream: distances that are powers of two lie on the edge of a bucket
    let scale = (far as f64 / exact as f64).ln() as f32;
    let log = (distance as f32 / exact as f32).ln() / scale * (n - exact) as f32;
    first + (exact + log as usize).min(n - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `T5Attention._relative_position_bucket(torch.arange(-600, 601), True, 32, 128)`: the distances at which the
    /// bucket changes, and the buckets from there on.
    #[test]
    fn buckets_are_upstreams() {
        let edges: &[(i64, usize)] = &[
            (-600, 15),
            (-90, 14),
            (-63, 13),
            (-45, 12),
            (-31, 11),
            (-22, 10),
            (-15, 9),
            (-11, 8),
            (-7, 7),
            (-6, 6),
            (-5, 5),
            (-4, 4),
            (-3, 3),
            (-2, 2),
            (-1, 1),
            (0, 0),
            (1, 17),
            (2, 18),
            (3, 19),
            (4, 20),
            (5, 21),
            (6, 22),
            (7, 23),
            (8, 24),
            (12, 25),
            (16, 26),
            (23, 27),
            (32, 28),
            (46, 29),
            (64, 30),
            (91, 31),
        ];
        let mut want = edges.iter().copied().peekable();
        let mut now = 0;
        for distance in -600..=600 {
            if let Some((_, bucket)) = want.next_if(|(from, _)| *from == distance) {
                now = bucket;
            }
            assert_eq!(bucket(distance, 32, 128), now, "distance {distance}");
        }
        assert!(want.next().is_none());
    }

    #[test]
    fn the_activation_is_upstreams() {
        let act = |json: &str| serde_json::from_str::<T5Config>(json).unwrap().check().unwrap();
        assert_eq!(act(r#"{"feed_forward_proj": "gated-gelu"}"#), Activation::GeluTanh);
        assert_eq!(act(r#"{"feed_forward_proj": "gated-silu"}"#), Activation::Silu);
        assert_eq!(act(r#"{"feed_forward_proj": "gated-silu", "dense_act_fn": "gelu"}"#), Activation::Gelu);
        assert_eq!(act(r#"{"is_gated_act": true, "dense_act_fn": "gelu_new"}"#), Activation::GeluTanh);
    }

    #[test]
    fn a_field_that_does_not_parse_is_named() {
        let message = serde_json::from_str::<T5Config>(r#"{"num_hidden_layers": "many"}"#).unwrap_err().to_string();
        assert!(message.starts_with("num_layers: "), "{message}");
    }

    #[test]
    fn bad_configurations_are_errors() {
        let check = |config: T5Config| config.check().unwrap_err().to_string();
        let good = T5Config { feed_forward_proj: "gated-gelu".into(), ..T5Config::default() };
        good.check().unwrap();
        check(T5Config { feed_forward_proj: "relu".into(), ..good.clone() });
        assert_eq!(
            check(T5Config { is_gated_act: Some(false), ..good.clone() }),
            "T5EncoderModel config: is_gated_act=false is not supported, only a gate such as \"gated-gelu\" of version 1.1"
        );
        let message = check(T5Config { dense_act_fn: Some("relu".into()), ..good.clone() });
        assert!(message.contains("dense_act_fn=\"relu\" is not supported"), "{message}");
        check(T5Config { is_decoder: true, ..good.clone() });
        check(T5Config { relative_attention_num_buckets: 0, ..good.clone() });
        check(T5Config { relative_attention_max_distance: 8, ..good.clone() });
        assert_eq!(check(T5Config { num_heads: 0, ..good }), "T5EncoderModel config: num_heads must be positive");
    }
}
