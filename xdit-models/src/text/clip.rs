//! `CLIPTextModel`: the text encoder of Stable Diffusion and FLUX.
//!
//! Mirrors `src/transformers/models/clip/modeling_clip.py`. Every layer's output is kept, as pipelines differ in which
//! one they take; FLUX takes the pooled vector alone.

use burn::tensor::{DType, Device, Tensor, TensorData};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use xdit_core::checkpoint::{LoadError, Loader};
use xdit_core::dit::attention_scale;
use xdit_core::ops::{Activation, LayerNorm, Linear, attention, merge_heads, split_heads};

use crate::error::{ModelError, epsilon, few, positive};
use crate::text::config::{activation, part_of, read};
use crate::text::embed;

const CLASS: &str = "CLIPTextModel";

/// `text_encoder/config.json`; field names and defaults are the checkpoint's. A whole `CLIPModel`'s has them below
/// `text_config`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, remote = "Self")]
pub struct ClipTextConfig {
    /// Token ids are below it.
    pub vocab_size: usize,
    /// Width of the model.
    pub hidden_size: usize,
    /// Width of the feed-forward.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Most tokens of a text.
    pub max_position_embeddings: usize,
    /// Activation of the feed-forward.
    pub hidden_act: String,
    /// Added to the variance in layer norms.
    pub layer_norm_eps: f64,
    /// The token whose state is the pooled vector; 2 stands for the largest id of a text.
    pub eos_token_id: u32,
    /// Channels that `CLIPTextModelWithProjection` projects the pooled vector to.
    pub projection_dim: Option<usize>,
}

impl Default for ClipTextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49_408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: "quick_gelu".into(),
            layer_norm_eps: 1e-5,
            eos_token_id: 49_407,
            projection_dim: Some(512),
        }
    }
}

impl<'de> Deserialize<'de> for ClipTextConfig {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let config = part_of(Value::deserialize(from)?, "clip_text_model", Some("text_config"));
        read(config, |part| Self::deserialize(part))
    }
}

impl ClipTextConfig {
    pub(crate) fn check(&self) -> Result<Activation, ModelError> {
        let bad = |what: String| Err(ModelError::Config { class: CLASS, what });
        let (d, n_heads) = (self.hidden_size, self.num_attention_heads);
        few("CLIPTextModel", &[("num_hidden_layers", self.num_hidden_layers)])?;
        epsilon("CLIPTextModel", "layer_norm_eps", self.layer_norm_eps)?;
        if d == 0 || n_heads == 0 || d % n_heads != 0 {
            return bad(format!("num_attention_heads={n_heads} must divide hidden_size={d}"));
        }
        positive(
            CLASS,
            &[
                ("vocab_size", self.vocab_size),
                ("hidden_size", d),
                ("projection_dim", self.projection_dim.unwrap_or(1)),
                ("intermediate_size", self.intermediate_size),
                ("num_hidden_layers", self.num_hidden_layers),
                ("max_position_embeddings", self.max_position_embeddings),
            ],
        )?;
        activation(CLASS, "hidden_act", &self.hidden_act)
    }
}

/// What the encoder makes of a batch of texts.
#[derive(Debug, Clone)]
pub struct ClipOutput {
    /// The embeddings, then each layer's output, before the final norm; each `[batch, tokens, d_model]`
    pub hidden_states: Vec<Tensor<3>>,
    /// The last layer's output after the final norm, `[batch, tokens, d_model]`
    pub last_hidden_state: Tensor<3>,
    /// `last_hidden_state` at the end-of-text token, `[batch, d_model]`; after the projection, where there is one,
    /// `[batch, projection_dim]`
    pub pooled: Tensor<2>,
}

/// The model with its weights on a device.
#[derive(Debug)]
pub struct ClipText {
    config: ClipTextConfig,
    device: Device,
    token_embedding: Tensor<2>,
    position_embedding: Tensor<2>,
    layers: Vec<EncoderLayer>,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
}

impl ClipText {
    /// Parts of names in a checkpoint that the model does not need: a table of counting numbers, what a whole `CLIPModel`
    /// has for pictures, and the projection that comes after the pooled vector in `CLIPTextModelWithProjection`.
    pub const UNUSED: &[&str] =
        &["position_ids", "vision_model.", "visual_projection", "logit_scale", "text_projection"];
    /// The same for the model with its projection.
    pub const UNUSED_WITH_PROJECTION: &[&str] = &["position_ids", "vision_model.", "visual_projection", "logit_scale"];

    /// Reads the weights.
    ///
    /// # Errors
    /// A configuration that contradicts itself; tensors of other shapes than it demands.
    pub fn load(loader: &Loader<'_>, config: &ClipTextConfig) -> Result<Self, ModelError> {
        let act = config.check()?;
        // transformers 5 writes the names without the prefix
        let bare = loader.has("final_layer_norm.weight");
        let model = if bare { loader.clone() } else { loader.pp("text_model") };
        let (d, embeddings) = (config.hidden_size, model.pp("embeddings"));
        let layer = |i| EncoderLayer::load(&model.pp("encoder.layers").pp(i), config, act);
        Ok(Self {
            device: loader.device().clone(),
            token_embedding: embeddings.pp("token_embedding").tensor("weight", [config.vocab_size, d])?,
            position_embedding: embeddings
                .pp("position_embedding")
                .tensor("weight", [config.max_position_embeddings, d])?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_, _>>()?,
            final_layer_norm: LayerNorm::load(&model.pp("final_layer_norm"), d, config.layer_norm_eps)?,
            text_projection: None,
            config: config.clone(),
        })
    }

    /// Reads the weights of a `CLIPTextModelWithProjection`.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with_projection(loader: &Loader<'_>, config: &ClipTextConfig) -> Result<Self, ModelError> {
        let d_out = config.projection_dim.unwrap_or(0);
        positive("CLIPTextModelWithProjection", &[("projection_dim", d_out)])?;
        let projection = Linear::load_no_bias(&loader.pp("text_projection"), config.hidden_size, d_out)?;
        Ok(Self { text_projection: Some(projection), ..Self::load(loader, config)? })
    }

    /// Encodes texts of equally many tokens.
    ///
    /// # Panics
    /// An id that is not below `vocab_size`, no tokens at all, or more than `max_position_embeddings`.
    pub fn forward(&self, ids: &[Vec<u32>]) -> ClipOutput {
        let n = ids[0].len();
        let positions = self.position_embedding.clone().narrow(0, 0, n);
        let mut x = embed(&self.token_embedding, ids) + positions.unsqueeze();
        let mask = causal_mask(n, &self.device);
        let mut hidden_states = Vec::with_capacity(self.layers.len() + 1);
        for layer in &self.layers {
            hidden_states.push(x.clone());
            x = layer.forward(x, &mask);
        }
        hidden_states.push(x.clone());

        let last_hidden_state = self.final_layer_norm.forward(x);
        let pooled = ids.iter().enumerate().map(|(i, ids)| {
            let at = end_of_text(ids, self.config.eos_token_id);
            last_hidden_state.clone().narrow(0, i, 1).narrow(1, at, 1).squeeze_dim::<2>(1)
        });
        let pooled = Tensor::cat(pooled.collect(), 0);
        let pooled = match &self.text_projection {
            Some(projection) => projection.forward(pooled),
            None => pooled,
        };
        ClipOutput { hidden_states, last_hidden_state, pooled }
    }
}

/// `CLIPEncoderLayer`
#[derive(Debug)]
struct EncoderLayer {
    n_heads: usize,
    act: Activation,
    layer_norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl EncoderLayer {
    fn load(loader: &Loader<'_>, config: &ClipTextConfig, act: Activation) -> Result<Self, LoadError> {
        let (d, d_ff, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let (attn, mlp) = (loader.pp("self_attn"), loader.pp("mlp"));
        Ok(Self {
            n_heads: config.num_attention_heads,
            act,
            layer_norm1: LayerNorm::load(&loader.pp("layer_norm1"), d, eps)?,
            q_proj: Linear::load(&attn.pp("q_proj"), d, d)?,
            k_proj: Linear::load(&attn.pp("k_proj"), d, d)?,
            v_proj: Linear::load(&attn.pp("v_proj"), d, d)?,
            out_proj: Linear::load(&attn.pp("out_proj"), d, d)?,
            layer_norm2: LayerNorm::load(&loader.pp("layer_norm2"), d, eps)?,
            fc1: Linear::load(&mlp.pp("fc1"), d, d_ff)?,
            fc2: Linear::load(&mlp.pp("fc2"), d_ff, d)?,
        })
    }

    /// - `x`: `[batch, tokens, d_model]`
    /// - `mask`: `[1, 1, tokens, tokens]`
    fn forward(&self, x: Tensor<3>, mask: &Tensor<4>) -> Tensor<3> {
        let y = self.layer_norm1.forward(x.clone());
        let heads = |proj: &Linear| split_heads(proj.forward(y.clone()), self.n_heads);
        let q = heads(&self.q_proj);
        let scale = attention_scale(q.dims()[3]);
        let y = attention(q, heads(&self.k_proj), heads(&self.v_proj), Some(mask.clone()), scale).out;
        let x = x + self.out_proj.forward(merge_heads(y));
        let y = self.fc1.forward_act(self.layer_norm2.forward(x.clone()), self.act);
        x + self.fc2.forward(y)
    }
}

/// `[1, 1, n, n]`: 0 where a token may look, at itself and what is before it; `-inf` elsewhere.
fn causal_mask(n: usize, device: &Device) -> Tensor<4> {
    let mask = |at: usize| if at % n > at / n { f32::NEG_INFINITY } else { 0.0 };
    let values: Vec<f32> = (0..n * n).map(mask).collect();
    Tensor::from_data(TensorData::new(values, [1, 1, n, n]), (device, DType::F32))
}

/// Where the end-of-text token is. Configurations that are older than transformers' pull request 24773 name a wrong
/// token, 2; the end was then found as the largest id.
fn end_of_text(ids: &[u32], eos_token_id: u32) -> usize {
    let eos = if eos_token_id == 2 { ids.iter().max().copied() } else { Some(eos_token_id) };
    ids.iter().position(|id| Some(*id) == eos).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_end_of_text_is_pooled() {
        assert_eq!(end_of_text(&[90, 5, 99, 99, 99], 99), 2);
        assert_eq!(end_of_text(&[90, 5, 99, 0, 0], 2), 2);
        assert_eq!(end_of_text(&[90, 5, 2, 99], 2), 3);
        assert_eq!(end_of_text(&[90, 5, 7], 99), 0, "as argmax of all zeros");
    }

    #[test]
    fn bad_configurations_are_errors() {
        let check = |config: ClipTextConfig| config.check().unwrap_err().to_string();
        let good = ClipTextConfig::default();
        assert_eq!(
            check(ClipTextConfig { num_attention_heads: 7, ..good.clone() }),
            "CLIPTextModel config: num_attention_heads=7 must divide hidden_size=512"
        );
        check(ClipTextConfig { num_attention_heads: 0, ..good.clone() });
        check(ClipTextConfig { hidden_size: 0, ..good.clone() });
        check(ClipTextConfig { hidden_act: "tanh".into(), ..good });
        let null: ClipTextConfig = serde_json::from_str(r#"{"projection_dim": null}"#).unwrap();
        null.check().unwrap();
    }
}
