//! How ranks are numbered and who works with whom.
//!
//! Dimensions, fastest first: tensor, ulysses, ring, pipefusion, cfg, data. A rank is the mixed-radix number of its
//! coordinates, so neighbours in Ulysses, which talk most, are neighbours in the machine.

use crate::layout::{TokenGrid, TokenLayout};

/// How many ranks share a request along each dimension; all 1 is one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParallelConfig {
    /// Replicas that draw different pictures.
    pub data: usize,
    /// 2 where the prompt's and the negative prompt's prediction are made side by side.
    pub cfg: usize,
    /// Pipeline stages.
    pub pipefusion: usize,
    /// Ranks of a ring.
    pub ring: usize,
    /// Ranks that share the heads.
    pub ulysses: usize,
    /// Ranks that share each layer's weights.
    pub tensor: usize,
}

impl Default for ParallelConfig {
    fn default() -> Self {
        Self { data: 1, cfg: 1, pipefusion: 1, ring: 1, ulysses: 1, tensor: 1 }
    }
}

/// A dimension of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Axis {
    /// Ranks that share each layer's weights.
    Tensor,
    /// Ranks that share the heads.
    Ulysses,
    /// Ranks of a ring.
    Ring,
    /// Pipeline stages.
    Pipefusion,
    /// Branches of classifier-free guidance.
    Cfg,
    /// Replicas.
    Data,
}

impl Axis {
    /// All of them, the fastest first.
    pub const ALL: [Self; 6] = [Self::Tensor, Self::Ulysses, Self::Ring, Self::Pipefusion, Self::Cfg, Self::Data];
    /// Ranks that share a picture's tokens, in the order of their bands.
    pub const SEQUENCE: &'static [Self] = &[Self::Ulysses, Self::Ring];
}

/// What a plan is checked against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanFacts {
    /// Attention heads.
    pub n_heads: usize,
    /// The picture in tokens.
    pub grid: TokenGrid,
    /// Patches that it is cut into.
    pub n_patches: usize,
    /// Text tokens, where they are shared out like the image's.
    pub n_txt_tokens: Option<usize>,
    /// Whether there is classifier-free guidance.
    pub guided: bool,
    /// Whether its result is brought back to the prediction's spread.
    pub rescaled: bool,
}

/// Why a plan cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Nobody to do the work, or more than can be counted.
    #[error("{axis} degree {degree} is not within 1 to {max}")]
    Degree {
        /// The flag's name.
        axis: &'static str,
        /// What was asked for.
        degree: usize,
        /// The most that there can be.
        max: usize,
    },
    /// The ranks that there are do not fit the degrees.
    #[error("degrees data={data} cfg={cfg} pipefusion={pipefusion} ring={ring} ulysses={ulysses} tensor={tensor} need {needed} ranks, there are {world_size}", data = config.data, cfg = config.cfg, pipefusion = config.pipefusion, ring = config.ring, ulysses = config.ulysses, tensor = config.tensor)]
    WorldSize {
        /// The degrees.
        config: ParallelConfig,
        /// Their product.
        needed: usize,
        /// Ranks or devices.
        world_size: usize,
    },
    /// A rank would have no head.
    #[error(
        "ulysses degree {degree} is more than the model's {n_heads} attention heads; degrees that divide them are {fitting}"
    )]
    Heads {
        /// What was asked for.
        degree: usize,
        /// The model's.
        n_heads: usize,
        /// Degrees that give every rank equally many.
        fitting: String,
    },
    /// A rank would have no token.
    #[error("ulysses degree {ulysses} times ring degree {ring} is more than the {n_tokens} tokens of the {what}")]
    Tokens {
        /// What was asked for.
        ulysses: usize,
        /// What was asked for.
        ring: usize,
        /// How many tokens there are.
        n_tokens: usize,
        /// `image`, `text` or `smallest patch`
        what: &'static str,
    },
    /// The second branch would have nothing to do.
    #[error(
        "cfg degree 2 needs classifier-free guidance: a negative prompt with true-cfg-scale above 1 for FLUX, guidance-scale above 1 for other models"
    )]
    Unguided,
    /// A stage would have no block.
    #[error("pipefusion degree {n_stages} is more than the model's {n_blocks} blocks")]
    Stages {
        /// What was asked for.
        n_stages: usize,
        /// The model's.
        n_blocks: usize,
    },
    /// Blocks left over, or too few.
    #[error(
        "attn-layer-num-for-pp {split:?} must be {n_stages} numbers of at least 1 that add up to the model's {n_blocks} blocks"
    )]
    Split {
        /// What was asked for.
        split: Vec<usize>,
        /// The pipefusion degree.
        n_stages: usize,
        /// The model's.
        n_blocks: usize,
    },
    /// A patch would have no row.
    #[error("num-pipeline-patch {n_patches} is not within 1 and the picture's {n_rows} rows of tokens")]
    Patches {
        /// What was asked for.
        n_patches: usize,
        /// The picture's.
        n_rows: usize,
    },
    /// What needs the whole picture at each step.
    #[error(
        "guidance-rescale needs the whole picture at each step: it does not go together with pipefusion degree {degree}"
    )]
    Rescale {
        /// The pipefusion degree.
        degree: usize,
    },
    /// Not built yet.
    #[error("{axis} degree {degree} is not supported yet, only 1")]
    NotBuilt {
        /// The flag's name.
        axis: &'static str,
        /// What was asked for.
        degree: usize,
    },
}

/// Far beyond any machine.
const MAX_WORLD: usize = 1 << 16;

impl ParallelConfig {
    /// The degree along an axis.
    pub fn degree(&self, axis: Axis) -> usize {
        match axis {
            Axis::Tensor => self.tensor,
            Axis::Ulysses => self.ulysses,
            Axis::Ring => self.ring,
            Axis::Pipefusion => self.pipefusion,
            Axis::Cfg => self.cfg,
            Axis::Data => self.data,
        }
    }

    /// Ranks in all.
    pub fn world_size(&self) -> usize {
        Axis::ALL.iter().map(|axis| self.degree(*axis)).fold(1, usize::saturating_mul)
    }

    /// Whether the degrees are numbers at all, and built.
    ///
    /// # Errors
    /// A degree of 0 or beyond all bounds, or of a method that is not there yet.
    pub fn check(&self) -> Result<(), PlanError> {
        let named = [
            ("tensor", self.tensor),
            ("ulysses", self.ulysses),
            ("ring", self.ring),
            ("pipefusion", self.pipefusion),
            ("cfg", self.cfg),
            ("data", self.data),
        ];
        for (axis, degree) in named {
            let max = if axis == "cfg" { 2 } else { MAX_WORLD };
            if !(1..=max).contains(&degree) {
                return Err(PlanError::Degree { axis, degree, max });
            }
        }
        if self.tensor > 1 {
            return Err(PlanError::NotBuilt { axis: "tensor", degree: self.tensor });
        }
        match self.world_size() {
            degree if degree > MAX_WORLD => Err(PlanError::Degree { axis: "world", degree, max: MAX_WORLD }),
            _ => Ok(()),
        }
    }

    /// Whether a request can be shared out so.
    ///
    /// # Errors
    /// What [`check`](Self::check) says; more ranks than there are heads or tokens to share; a second branch of guidance
    /// without guidance.
    pub fn fits(&self, facts: &PlanFacts) -> Result<(), PlanError> {
        self.check()?;
        let (n_heads, degree) = (facts.n_heads, self.ulysses);
        if degree > n_heads {
            let fitting: Vec<_> = (1..=n_heads).filter(|d| n_heads % d == 0).map(|d| d.to_string()).collect();
            return Err(PlanError::Heads { degree, n_heads, fitting: fitting.join(", ") });
        }
        let (n_patches, n_rows) = (facts.n_patches, facts.grid.n_lines());
        if !(1..=n_rows).contains(&n_patches) {
            return Err(PlanError::Patches { n_patches, n_rows });
        }
        let smallest = TokenLayout::new(facts.grid, n_patches).smallest();
        let img = if n_patches == 1 { "image" } else { "smallest patch" };
        for (what, n_tokens) in [(img, Some(smallest)), ("text", facts.n_txt_tokens)] {
            if let Some(n_tokens) = n_tokens.filter(|n| self.ulysses * self.ring > *n) {
                return Err(PlanError::Tokens { ulysses: self.ulysses, ring: self.ring, n_tokens, what });
            }
        }
        if self.cfg > 1 && !facts.guided {
            return Err(PlanError::Unguided);
        }
        if self.pipefusion > 1 && facts.guided && facts.rescaled {
            return Err(PlanError::Rescale { degree: self.pipefusion });
        }
        Ok(())
    }
}

/// All ranks and their places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mesh {
    config: ParallelConfig,
}

impl Mesh {
    /// # Errors
    /// Degrees that are none, or that another number of ranks would be needed for.
    pub fn new(config: ParallelConfig, world_size: usize) -> Result<Self, PlanError> {
        config.check()?;
        match config.world_size() {
            needed if needed != world_size => Err(PlanError::WorldSize { config, needed, world_size }),
            _ => Ok(Self { config }),
        }
    }

    /// The degrees.
    pub fn config(&self) -> &ParallelConfig {
        &self.config
    }

    /// Ranks in all.
    pub fn world_size(&self) -> usize {
        self.config.world_size()
    }

    /// How far apart neighbours along an axis are.
    fn stride(&self, axis: Axis) -> usize {
        Axis::ALL.iter().take_while(|other| **other != axis).map(|other| self.config.degree(*other)).product()
    }

    /// A rank's coordinate along an axis.
    pub fn coordinate(&self, rank: usize, axis: Axis) -> usize {
        rank / self.stride(axis) % self.config.degree(axis)
    }

    /// Whether a rank is the first of its replica, which hands the replica's pictures over.
    pub fn speaks(&self, rank: usize) -> bool {
        Axis::ALL.iter().all(|axis| *axis == Axis::Data || self.coordinate(rank, *axis) == 0)
    }

    /// The rank at coordinates in the order of [`Axis::ALL`].
    pub fn rank(&self, coordinates: [usize; 6]) -> usize {
        Axis::ALL.iter().zip(coordinates).map(|(axis, at)| at * self.stride(*axis)).sum()
    }

    /// The ranks that differ from `rank` along these axes alone, itself among them; along the first axis fastest.
    pub fn group(&self, rank: usize, axes: &[Axis]) -> Vec<usize> {
        (0..self.world_size()).filter(|other| self.color(*other, axes) == self.color(rank, axes)).collect()
    }

    /// A number that the ranks of a group share and no others.
    pub fn color(&self, rank: usize, axes: &[Axis]) -> usize {
        let coordinate = |axis: &Axis| if axes.contains(axis) { 0 } else { self.coordinate(rank, *axis) };
        Axis::ALL.iter().map(|axis| coordinate(axis) * self.stride(*axis)).sum()
    }

    /// The pictures, of `n`, that replica `replica` draws: every so many, so that all replicas end together.
    pub fn share(&self, replica: usize, n: usize) -> impl Iterator<Item = usize> + use<> {
        (replica..n).step_by(self.config.data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config() -> impl Strategy<Value = ParallelConfig> {
        (1..4_usize, 1..3_usize, 1..4_usize, 1..5_usize).prop_map(|(data, cfg, ring, ulysses)| ParallelConfig {
            data,
            cfg,
            ring,
            ulysses,
            ..Default::default()
        })
    }

    proptest! {
        #[test]
        fn ranks_are_mixed_radix_numbers(config in config()) {
            let mesh = Mesh::new(config, config.world_size()).expect("a mesh");
            for rank in 0..mesh.world_size() {
                prop_assert_eq!(mesh.rank(Axis::ALL.map(|axis| mesh.coordinate(rank, axis))), rank);
            }
        }

        #[test]
        fn groups_partition_the_world(config in config(), which in prop::collection::vec(0..6_usize, 1..4)) {
            let mesh = Mesh::new(config, config.world_size()).expect("a mesh");
            let axes: Vec<Axis> = which.into_iter().map(|i| Axis::ALL[i]).collect();
            let mut seen = vec![0; mesh.world_size()];
            for rank in 0..mesh.world_size() {
                let group = mesh.group(rank, &axes);
                prop_assert!(group.contains(&rank));
                for other in &group {
                    prop_assert_eq!(&mesh.group(*other, &axes), &group);
                }
                if group[0] == rank {
                    group.iter().for_each(|other| seen[*other] += 1);
                }
            }
            prop_assert!(seen.iter().all(|n| *n == 1));
        }

        #[test]
        fn ulysses_ranks_are_neighbours(config in config()) {
            let mesh = Mesh::new(config, config.world_size()).expect("a mesh");
            for rank in 0..mesh.world_size() {
                let group = mesh.group(rank, &[Axis::Ulysses]);
                prop_assert!(group.windows(2).all(|pair| pair[1] == pair[0] + 1));
                // bands go round Ulysses first
                let sequence = mesh.group(rank, Axis::SEQUENCE);
                let at = sequence.iter().position(|other| *other == rank).expect("itself");
                let place = mesh.coordinate(rank, Axis::Ulysses) + config.ulysses * mesh.coordinate(rank, Axis::Ring);
                prop_assert_eq!(at, place);
            }
        }

        #[test]
        fn replicas_draw_everything_once(config in config(), n in 0..20_usize) {
            let mesh = Mesh::new(config, config.world_size()).expect("a mesh");
            let mut all: Vec<usize> = (0..config.data).flat_map(|replica| mesh.share(replica, n)).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..n).collect::<Vec<_>>());
        }
    }

    #[test]
    fn plans_that_cannot_work_are_refused_with_the_numbers() {
        let grid = TokenGrid::picture(5, 3);
        let facts = PlanFacts { n_heads: 6, grid, n_patches: 1, n_txt_tokens: Some(9), guided: false, rescaled: false };
        let one = ParallelConfig::default();
        let says = |config: ParallelConfig| config.fits(&facts).expect_err("a refusal").to_string();
        assert_eq!(one.fits(&facts), Ok(()));
        assert_eq!(says(ParallelConfig { ring: 0, ..one }), "ring degree 0 is not within 1 to 65536");
        assert_eq!(says(ParallelConfig { cfg: 3, ..one }), "cfg degree 3 is not within 1 to 2");
        assert_eq!(
            says(ParallelConfig { ulysses: 8, ..one }),
            "ulysses degree 8 is more than the model's 6 attention heads; degrees that divide them are 1, 2, 3, 6"
        );
        assert_eq!(
            says(ParallelConfig { ulysses: 4, ring: 3, ..one }),
            "ulysses degree 4 times ring degree 3 is more than the 9 tokens of the text"
        );
        let cut = |n_patches, config: ParallelConfig| {
            let facts = PlanFacts { n_patches, guided: true, rescaled: true, ..facts };
            config.fits(&facts).expect_err("a refusal").to_string()
        };
        assert_eq!(cut(6, one), "num-pipeline-patch 6 is not within 1 and the picture's 5 rows of tokens");
        assert_eq!(
            cut(4, ParallelConfig { ulysses: 4, ..one }),
            "ulysses degree 4 times ring degree 1 is more than the 3 tokens of the smallest patch"
        );
        assert!(cut(2, ParallelConfig { pipefusion: 2, ..one }).starts_with("guidance-rescale needs"));
        assert!(says(ParallelConfig { cfg: 2, ..one }).starts_with("cfg degree 2 needs classifier-free guidance"));
        assert_eq!(says(ParallelConfig { tensor: 2, ..one }), "tensor degree 2 is not supported yet, only 1");
        let error = Mesh::new(ParallelConfig { ulysses: 2, data: 2, ..one }, 3).expect_err("a refusal");
        assert_eq!(
            error.to_string(),
            "degrees data=2 cfg=1 pipefusion=1 ring=1 ulysses=2 tensor=1 need 4 ranks, there are 3"
        );
        assert!(ParallelConfig { data: usize::MAX, ..one }.check().is_err());
    }
}
