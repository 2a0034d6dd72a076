//! `BertModel`: the first text encoder of HunyuanDiT.
//!
//! Mirrors `src/transformers/models/bert/modeling_bert.py`; norms come after the residuals.

use burn::tensor::Tensor;
use serde::Deserialize;
use xdit_core::checkpoint::{LoadError, Loader};
use xdit_core::dit::attention_scale;
use xdit_core::ops::{Activation, LayerNorm, Linear, attention, merge_heads, split_heads};

use crate::error::{ModelError, epsilon, few, positive};
use crate::text::config::activation;
use crate::text::{embed, hide};

/// `text_encoder/config.json`; field names and defaults are the checkpoint's.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct BertConfig {
    /// Token ids are below it.
    pub vocab_size: usize,
    /// Width of the model.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Width of the feed-forward.
    pub intermediate_size: usize,
    /// Activation of the feed-forward.
    pub hidden_act: String,
    /// Most tokens of a text.
    pub max_position_embeddings: usize,
    /// Kinds of tokens; here all are of the first.
    pub type_vocab_size: usize,
    /// Added to the variance in norms.
    pub layer_norm_eps: f64,
    /// Whether a token sees only those before it; not built.
    pub is_decoder: bool,
}

impl Default for BertConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30_522,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: "gelu".into(),
            max_position_embeddings: 512,
            type_vocab_size: 2,
            layer_norm_eps: 1e-12,
            is_decoder: false,
        }
    }
}

impl BertConfig {
    pub(crate) fn check(&self) -> Result<Activation, ModelError> {
        let bad = |what: String| Err(ModelError::Config { class: "BertModel", what });
        let (d, n_heads) = (self.hidden_size, self.num_attention_heads);
        few("BertModel", &[("num_hidden_layers", self.num_hidden_layers)])?;
        epsilon("BertModel", "layer_norm_eps", self.layer_norm_eps)?;
        if d == 0 || n_heads == 0 || d % n_heads != 0 {
            return bad(format!("num_attention_heads={n_heads} must divide hidden_size={d}"));
        }
        positive(
            "BertModel",
            &[
                ("vocab_size", self.vocab_size),
                ("hidden_size", d),
                ("intermediate_size", self.intermediate_size),
                ("max_position_embeddings", self.max_position_embeddings),
                ("type_vocab_size", self.type_vocab_size),
            ],
        )?;
        if self.is_decoder {
            return bad("is_decoder=true is not supported, only false".into());
        }
        activation("BertModel", "hidden_act", &self.hidden_act)
    }
}

/// The model with its weights on a device.
#[derive(Debug)]
pub struct Bert {
    word_embeddings: Tensor<2>,
    position_embeddings: Tensor<2>,
    token_type_embeddings: Tensor<2>,
    embeddings_norm: LayerNorm,
    layers: Vec<Layer>,
}

impl Bert {
    /// Parts of names in a checkpoint that the model does not need: a table of counting numbers, and what a checkpoint
    /// holds for other tasks.
    pub const UNUSED: &[&str] = &["position_ids", "pooler.", "cls."];

    /// Reads the weights.
    ///
    /// # Errors
    /// A configuration that contradicts itself; tensors of other shapes than it demands.
    pub fn load(loader: &Loader<'_>, config: &BertConfig) -> Result<Self, ModelError> {
        let act = config.check()?;
        // checkpoints of a model with a head put the encoder under this name
        let bare = loader.has("embeddings.word_embeddings.weight");
        let model = if bare { loader.clone() } else { loader.pp("bert") };
        let (d, embeddings) = (config.hidden_size, model.pp("embeddings"));
        let table = |name: &str, n: usize| embeddings.pp(name).tensor("weight", [n, d]);
        let layer = |i| Layer::load(&model.pp("encoder.layer").pp(i), config, act);
        Ok(Self {
            word_embeddings: table("word_embeddings", config.vocab_size)?,
            position_embeddings: table("position_embeddings", config.max_position_embeddings)?,
            token_type_embeddings: table("token_type_embeddings", config.type_vocab_size)?,
            embeddings_norm: LayerNorm::load(&embeddings.pp("LayerNorm"), d, config.layer_norm_eps)?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_, _>>()?,
        })
    }

    /// Encodes texts of equally many tokens to `[batch, tokens, d_model]`.
    ///
    /// - `seen`: for each text and token, whether it may be looked at
    ///
    /// # Panics
    /// An id that is not below `vocab_size`, no tokens at all, or more than `max_position_embeddings`.
    pub fn forward(&self, ids: &[Vec<u32>], seen: Option<&[Vec<bool>]>) -> Tensor<3> {
        self.forward_each(ids, seen, |_, _| {})
    }

    /// As [`forward`](Self::forward); `see` is shown the embeddings and each layer's output but the last.
    pub fn forward_each(
        &self,
        ids: &[Vec<u32>],
        seen: Option<&[Vec<bool>]>,
        mut see: impl FnMut(usize, &Tensor<3>),
    ) -> Tensor<3> {
        let bias = seen.map(|seen| hide(seen, &self.word_embeddings));
        let positions = self.position_embeddings.clone().narrow(0, 0, ids[0].len());
        let kind = self.token_type_embeddings.clone().narrow(0, 0, 1);
        let x = embed(&self.word_embeddings, ids) + kind.unsqueeze() + positions.unsqueeze();
        let x = self.embeddings_norm.forward(x);
        self.layers.iter().enumerate().fold(x, |x, (i, layer)| {
            see(i, &x);
            layer.forward(x, bias.as_ref())
        })
    }
}

/// `BertLayer`
#[derive(Debug)]
struct Layer {
    n_heads: usize,
    act: Activation,
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    attention_norm: LayerNorm,
    intermediate: Linear,
    output: Linear,
    output_norm: LayerNorm,
}

impl Layer {
    fn load(loader: &Loader<'_>, config: &BertConfig, act: Activation) -> Result<Self, LoadError> {
        let (d, d_ff, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let linear = |name: &str, d_in, d_out| Linear::load(&loader.pp(name), d_in, d_out);
        let norm = |name: &str| LayerNorm::load(&loader.pp(name), d, eps);
        Ok(Self {
            n_heads: config.num_attention_heads,
            act,
            query: linear("attention.self.query", d, d)?,
            key: linear("attention.self.key", d, d)?,
            value: linear("attention.self.value", d, d)?,
            attention_output: linear("attention.output.dense", d, d)?,
            attention_norm: norm("attention.output.LayerNorm")?,
            intermediate: linear("intermediate.dense", d, d_ff)?,
            output: linear("output.dense", d_ff, d)?,
            output_norm: norm("output.LayerNorm")?,
        })
    }

    /// - `x`: `[batch, tokens, d_model]`
    /// - `bias`: `[batch, 1, 1, tokens]`
    fn forward(&self, x: Tensor<3>, bias: Option<&Tensor<4>>) -> Tensor<3> {
        let heads = |proj: &Linear| split_heads(proj.forward(x.clone()), self.n_heads);
        let q = heads(&self.query);
        let scale = attention_scale(q.dims()[3]);
        let y = attention(q, heads(&self.key), heads(&self.value), bias.cloned(), scale).out;
        let x = self.attention_norm.forward(self.attention_output.forward(merge_heads(y)) + x);
        let y = self.intermediate.forward_act(x.clone(), self.act);
        self.output_norm.forward(self.output.forward(y) + x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_configurations_are_errors() {
        let check = |config: BertConfig| config.check().unwrap_err().to_string();
        let good = BertConfig::default();
        good.check().unwrap();
        assert_eq!(
            check(BertConfig { num_attention_heads: 7, ..good.clone() }),
            "BertModel config: num_attention_heads=7 must divide hidden_size=768"
        );
        check(BertConfig { num_attention_heads: 0, ..good.clone() });
        check(BertConfig { type_vocab_size: 0, ..good.clone() });
        check(BertConfig { hidden_act: "relu".into(), ..good.clone() });
        check(BertConfig { is_decoder: true, ..good });
    }
}
