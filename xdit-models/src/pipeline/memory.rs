//! What ranks and devices hold, or would hold.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use xdit_core::checkpoint::LoadReport;
use xdit_core::dit::TokenGrid;
use xdit_core::mesh::{Axis, Mesh};

/// Bytes of a process with one rank, and of each further one, that are its own.
const PROGRAM: u64 = 105 << 20;
const OF_A_RANK: u64 = 12 << 20;
/// The allocator keeps about this part of the peak.
const KEPT_PART: u64 = 10;

/// What a rank holds in memory for the blocks of the transformer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankMemory {
    /// Its pipeline stage.
    pub stage: usize,
    /// Numbers of the blocks.
    pub blocks: Range<usize>,
    /// The checkpoint's bytes of the transformer's weights that the stage reads. Ranks of a stage share them where they
    /// share a device.
    pub weight_bytes: u64,
    /// Keys and values that are kept from step to step.
    pub kept_bytes: u64,
}

/// How a request would be shared out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The ranks.
    pub mesh: Mesh,
    /// The picture in tokens.
    pub grid: TokenGrid,
    /// Patches that pipeline stages work on.
    pub n_patches: usize,
    /// Text tokens of a prompt.
    pub n_txt: usize,
    /// Rank by rank.
    pub memory: Vec<RankMemory>,
    /// The text encoders, in the order in which the first rank reads them.
    pub encoders: Vec<ComponentMemory>,
    /// The decoder; absent where latents are the result.
    pub decoder: Option<ComponentMemory>,
    /// Bytes of the decoder's activations on a device, where one, two, .. devices decode a band of the picture each; of
    /// more devices, and of all where there are none as the picture is decoded in tiles, only the first rank's decodes.
    pub(super) at_bands: Vec<u64>,
    /// Each stage's part of the transformer, with the activations of one of its ranks.
    pub stages: Vec<ComponentMemory>,
    /// Activations of a rank of each stage while the stages work on patches, one each.
    pub(super) at_patches: Vec<u64>,
    /// What the encoders made of all texts.
    pub(super) texts: u64,
    pub(super) keeps_encoders: bool,
}

/// A model, or a stage of one, in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComponentMemory {
    /// `"text_encoder"`
    pub component: String,
    /// Bytes of its weights in the precision of the request.
    pub weights: u64,
    /// Bytes of activations on top, as the CPU's kernels need them.
    pub activations: u64,
    /// Bytes of its largest tensor, which is held twice for a moment while it is read.
    pub(super) largest: u64,
}

impl ComponentMemory {
    pub(super) fn new(report: LoadReport, activations: u64) -> Self {
        let LoadReport { component, resident, largest, .. } = report;
        Self { component, weights: resident, activations, largest }
    }

    /// At its most, while it is read or while it works.
    fn peak(&self) -> u64 {
        self.weights + self.activations.max(self.largest)
    }
}

/// Bytes that are needed at once in each phase of a request, the first that its ranks serve.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Phases {
    /// Texts are encoded.
    pub encode: u64,
    /// Transformer and decoder are read, pictures are denoised.
    pub denoise: u64,
    /// Pictures are decoded.
    pub decode: u64,
}

impl Phases {
    /// The most of them.
    pub fn peak(&self) -> u64 {
        self.encode.max(self.denoise).max(self.decode)
    }
}

impl Plan {
    /// What a device needs that these ranks share: they share its weights, while each has activations of its own.
    pub fn phases(&self, ranks: &[usize]) -> Phases {
        let of = |rank: usize, axis| self.mesh.coordinate(rank, axis);
        let first = ranks.contains(&0);
        let kept_encoders = match self.keeps_encoders && first {
            true => self.encoders.iter().map(|encoder| encoder.weights).sum(),
            false => 0,
        };
        let encode = |encoder: &ComponentMemory| match self.keeps_encoders {
            true => kept_encoders + encoder.activations.max(encoder.largest),
            false => encoder.peak(),
        };
        let stages: BTreeSet<usize> = ranks.iter().map(|rank| of(*rank, Axis::Pipefusion)).collect();
        let decoder = self.decoder_of(ranks);
        let part = |f: fn(&ComponentMemory) -> u64| {
            stages.iter().map(|stage| &self.stages[*stage]).chain(decoder).map(f).collect::<Vec<u64>>()
        };
        let kept: u64 = ranks.iter().map(|rank| self.memory[*rank].kept_bytes).sum();
        let weights = part(|part| part.weights).iter().sum::<u64>() + kept_encoders + self.texts;

        // stages work one after the other on the whole picture, and all at once on patches
        let mut lines: BTreeMap<Vec<usize>, Vec<usize>> = BTreeMap::new();
        for rank in ranks {
            let others = Axis::ALL.iter().filter(|axis| **axis != Axis::Pipefusion);
            let line = others.map(|axis| of(*rank, *axis)).collect();
            lines.entry(line).or_default().push(of(*rank, Axis::Pipefusion));
        }
        let denoise = |line: &Vec<usize>| {
            let whole = line.iter().map(|stage| self.stages[*stage].activations).max().unwrap_or(0);
            whole.max(line.iter().map(|stage| self.at_patches[*stage]).sum())
        };
        let denoising = kept + lines.values().map(denoise).sum::<u64>();
        let reading = part(|part| part.largest).into_iter().max().unwrap_or(0);
        Phases {
            encode: if first { self.texts + self.encoders.iter().map(encode).max().unwrap_or(0) } else { 0 },
            denoise: weights + denoising.max(reading),
            decode: match decoder {
                Some(decoder) => weights + kept + self.decoding(decoder, ranks),
                None => 0,
            },
        }
    }

    /// The decoder, if the device of these ranks decodes.
    fn decoder_of(&self, ranks: &[usize]) -> Option<&ComponentMemory> {
        let decodes = |rank: &usize| !self.at_bands.is_empty() || self.mesh.speaks(*rank);
        self.decoder.as_ref().filter(|_| ranks.iter().any(decodes))
    }

    /// Activations of the decoders on the device of these ranks, one for each replica. A replica's other devices are taken
    /// to have as many of its ranks as this one.
    fn decoding(&self, decoder: &ComponentMemory, ranks: &[usize]) -> u64 {
        let all = self.mesh.world_size() / self.mesh.config().data;
        let mut replicas: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for rank in ranks {
            replicas.entry(self.mesh.coordinate(*rank, Axis::Data)).or_default().push(*rank);
        }
        let of_replica = |mine: &Vec<usize>| match self.at_bands.get(all.div_ceil(mine.len()) - 1) {
            Some(band) => *band,
            None if mine.iter().any(|rank| self.mesh.speaks(*rank)) => decoder.activations,
            None => 0,
        };
        replicas.values().map(of_replica).sum()
    }

    /// Bytes of transformer and decoder that these ranks share, if they share a device.
    pub(super) fn weights(&self, ranks: &[usize]) -> u64 {
        let stages: BTreeSet<usize> = ranks.iter().map(|rank| self.memory[*rank].stage).collect();
        stages.iter().map(|stage| &self.stages[*stage]).chain(self.decoder_of(ranks)).map(|part| part.weights).sum()
    }

    /// Bytes that a process with these ranks, all of them on the CPU, takes beside the [`phases`](Self::phases): its code,
    /// its stacks, and what the allocator keeps of freed memory, which is more the more there was. Measured with the program
    /// `xdit` (docs/parallel.md).
    pub fn program(&self, ranks: &[usize]) -> u64 {
        PROGRAM + self.phases(ranks).peak() / KEPT_PART + ranks.len().saturating_sub(1) as u64 * OF_A_RANK
    }
}
