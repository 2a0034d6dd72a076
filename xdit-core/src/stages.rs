//! Which blocks a pipeline stage holds, and how the stages work on a picture.

use std::ops::Range;

use crate::mesh::PlanError;

/// PipeFusion's settings (arXiv 2405.14430), of no meaning where there is one stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipeFusion {
    /// Patches that a picture is cut into; as many as there are stages where absent.
    pub n_patches: Option<usize>,
    /// Steps at the beginning in which the stages work one after the other on the whole picture.
    pub warmup_steps: usize,
    /// Blocks of each stage; shared out by their cost where absent.
    pub split: Option<Vec<usize>>,
}

impl Default for PipeFusion {
    fn default() -> Self {
        Self { n_patches: None, warmup_steps: 1, split: None }
    }
}

/// Cuts the blocks into consecutive stages, each of one block at least.
///
/// - `costs`: of each block, in any unit
/// - `split`: the number of blocks of each stage; where absent, so that the costliest stage costs as little as can be
///
/// # Errors
/// More stages than blocks; a split of other stages, or of other blocks, than there are.
pub fn stages(costs: &[f64], n_stages: usize, split: Option<&[usize]>) -> Result<Vec<Range<usize>>, PlanError> {
    let n_blocks = costs.len();
    if n_stages > n_blocks {
        return Err(PlanError::Stages { n_stages, n_blocks });
    }
    let sizes = match split {
        Some(split) => {
            let total = split.iter().fold(0, |sum: usize, n| sum.saturating_add(*n));
            if split.len() != n_stages || total != n_blocks || split.contains(&0) {
                return Err(PlanError::Split { split: split.to_vec(), n_stages, n_blocks });
            }
            split.to_vec()
        }
        None => balanced(costs, n_stages),
    };
    let mut start = 0;
    Ok(sizes
        .into_iter()
        .map(|n| {
            let stage = start..start + n;
            start = stage.end;
            stage
        })
        .collect())
}

/// Sizes of the parts whose costliest is the cheapest that can be; of those the most even ones.
fn balanced(costs: &[f64], n_stages: usize) -> Vec<usize> {
    let cheapest = best(costs, n_stages, f64::INFINITY, f64::max).0;
    // rounding is no reason to leave a cut out
    best(costs, n_stages, cheapest * (1.0 + 1e-9), |stage, rest| stage * stage + rest).1
}

/// The cut of least `total(cost of the first stage, total of the others)`, no stage of which costs more than `most`.
fn best(costs: &[f64], n_stages: usize, most: f64, total: impl Fn(f64, f64) -> f64) -> (f64, Vec<usize>) {
    let n = costs.len();
    // of k stages that hold the blocks from i on: their total, and how many the first of them has
    let mut best = vec![vec![(f64::INFINITY, 0); n + 1]; n_stages + 1];
    best[0][n] = (0.0, 0);
    for k in 1..=n_stages {
        for i in 0..n {
            let mut stage = 0.0;
            for size in 1..=n - i {
                stage += costs[i + size - 1];
                let all = total(stage, best[k - 1][i + size].0);
                if stage <= most && all < best[k][i].0 {
                    best[k][i] = (all, size);
                }
            }
        }
    }
    let mut start = 0;
    let sizes = (0..n_stages).map(|stage| {
        let size = best[n_stages - stage][start].1;
        start += size;
        size
    });
    let sizes = sizes.collect();
    (best[n_stages][0].0, sizes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sizes(costs: &[f64], n: usize) -> Vec<usize> {
        stages(costs, n, None).expect("stages").iter().map(Range::len).collect()
    }

    proptest! {
        #[test]
        fn stages_cover_the_blocks_and_no_cut_is_better(costs in prop::collection::vec(1..9_u8, 1..9), n in 1..5_usize) {
            let costs: Vec<f64> = costs.into_iter().map(f64::from).collect();
            let n = n.min(costs.len());
            let cut = stages(&costs, n, None).expect("stages");
            prop_assert_eq!(cut.len(), n);
            prop_assert!(cut.iter().all(|stage| !stage.is_empty()));
            prop_assert!(cut.windows(2).all(|pair| pair[0].end == pair[1].start));
            prop_assert_eq!((cut[0].start, cut[n - 1].end), (0, costs.len()));
            let worst = |ends: &[usize]| {
                let starts = std::iter::once(0).chain(ends.iter().copied());
                starts.zip(ends.iter().copied()).map(|(a, b)| costs[a..b].iter().sum::<f64>()).fold(0.0, f64::max)
            };
            let got = worst(&cut.iter().map(|stage| stage.end).collect::<Vec<_>>());
            // every other way to cut
            for mask in 0..1_u32 << (costs.len() - 1) {
                if mask.count_ones() as usize == n - 1 {
                    let mut ends: Vec<usize> = (1..costs.len()).filter(|i| mask >> (i - 1) & 1 == 1).collect();
                    ends.push(costs.len());
                    prop_assert!(got <= worst(&ends) + 1e-9);
                }
            }
        }
    }

    #[test]
    fn by_hand_and_by_cost() {
        assert_eq!(sizes(&[1.0; 7], 3), [2, 2, 3]);
        assert_eq!(sizes(&[3.0, 1.0, 1.0, 1.0], 2), [1, 3]);
        assert_eq!(stages(&[1.0; 5], 2, Some(&[4, 1])).expect("stages"), [0..4, 4..5]);
        let says = |result: Result<Vec<Range<usize>>, PlanError>| result.expect_err("a refusal").to_string();
        assert_eq!(says(stages(&[1.0; 3], 4, None)), "pipefusion degree 4 is more than the model's 3 blocks");
        assert_eq!(
            says(stages(&[1.0; 5], 2, Some(&[4, 2]))),
            "attn-layer-num-for-pp [4, 2] must be 2 numbers of at least 1 that add up to the model's 5 blocks"
        );
    }
}
