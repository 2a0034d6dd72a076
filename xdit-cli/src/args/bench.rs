//! The flags of `xdit bench`.

use std::str::FromStr;

use clap::{Args as ClapArgs, ValueEnum};
use xdit_models::bench::ops::Op;
use xdit_models::bench::published::{self, Published};
use xdit_models::pipeline::ModelSource;

use crate::args::shared::{Compute, Model, Parallel};
use crate::args::values::{number, whole};

#[derive(Debug, ClapArgs)]
pub struct Bench {
    /// A published configuration with weights that are drawn on the device: flux-dev, flux-schnell, sd3, sd3.5-medium,
    /// pixart-sigma, hunyuandit, and for tests tiny-flux and tiny-sd3
    #[arg(long, value_name = "NAME", value_parser = find, conflicts_with = "model")]
    pub random_weights: Option<&'static Published>,
    #[command(flatten)]
    pub model: Model,
    /// Height and width in pixels [default: the model's, 1024 for the published ones]
    #[arg(long, value_name = "PIXELS", value_parser = whole(1, 16_384))]
    pub size: Option<usize>,
    /// Denoising steps
    #[arg(long, visible_alias = "num-inference-steps", default_value_t = 28, value_name = "N", value_parser = whole(1, 1000))]
    pub steps: usize,
    /// Guidance; 1 is a single pass a step, but for FLUX, which is told it [default: the model's]
    #[arg(long, value_name = "SCALE")]
    pub guidance_scale: Option<f32>,
    /// Runs that don't count
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = number::<usize>(0, 1000))]
    pub warmup: usize,
    /// Runs that do
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = number::<usize>(1, 1000))]
    pub repeat: usize,
    /// One operation instead of a model
    #[arg(long, value_enum, requires = "shape", conflicts_with_all = ["random_weights", "model"])]
    pub op: Option<OpKind>,
    /// Its size: m x k x n as in 4096x3072x12288, or heads x queries x keys x head_dim as in 24x4608x4608x128
    #[arg(long, value_name = "SHAPE", requires = "op")]
    pub shape: Option<Shape>,
    #[command(flatten)]
    pub compute: Compute,
    /// No progress
    #[arg(long, short)]
    pub quiet: bool,
    /// One JSON record instead of a table
    #[arg(long)]
    pub json: bool,
    // last, since its heading stays
    #[command(flatten)]
    pub parallel: Parallel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OpKind {
    Linear,
    Attention,
}

/// `--shape`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape(Vec<usize>);

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = whole(1, usize::MAX);
        let side = |part: &str| number(part.trim()).ok().filter(|n| (1..=1 << 24).contains(n));
        let sides: Option<_> = text.split('x').map(side).collect();
        sides.map(Self).ok_or_else(|| format!("expected whole numbers within 1 to {} with x between them", 1 << 24))
    }
}

fn find(name: &str) -> Result<&'static Published, String> {
    published::find(name).ok_or_else(|| format!("there are {}", published::names()))
}

impl Bench {
    /// As the output names it.
    pub fn name(&self) -> &str {
        self.random_weights.map_or(self.model.name(), |published| published.name)
    }

    pub fn source(&self) -> ModelSource {
        self.random_weights.map_or_else(|| self.model.source(), ModelSource::Random)
    }

    /// The operation, where one is asked for.
    ///
    /// # Errors
    /// A shape of another number of sides.
    pub fn op(&self) -> Result<Option<Op>, String> {
        let (Some(kind), Some(Shape(shape))) = (self.op, &self.shape) else { return Ok(None) };
        match (kind, shape.as_slice()) {
            (OpKind::Linear, &[m, k, n]) => Ok(Some(Op::Linear { m, k, n })),
            (OpKind::Attention, &[heads, queries, keys, head_dim]) => {
                Ok(Some(Op::Attention { heads, queries, keys, head_dim }))
            }
            (OpKind::Linear, other) => Err(format!("--shape has {} numbers, a linear layer 3: m x k x n", other.len())),
            (OpKind::Attention, other) => {
                Err(format!("--shape has {} numbers, attention 4: heads x queries x keys x head_dim", other.len()))
            }
        }
    }

    /// Flags that change nothing.
    pub fn without_effect(&self) -> impl Iterator<Item = String> {
        [self.model.without_effect(), self.parallel.without_effect()].into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        assert_eq!("4096x3072 x 1".parse(), Ok(Shape(vec![4096, 3072, 1])));
        for bad in ["", "x", "4x", "0x4", "4x-1", "1e3x2", "99999999999x1"] {
            assert!(bad.parse::<Shape>().is_err(), "{bad}");
        }
    }
}
