//! What a picture takes, roughly and without running anything: arithmetic of a step, memory of activations.

use std::time::Duration;

use xdit_core::dit::DitSpec;

/// Tensors of the size of all tokens that a block has in memory at once: two streams, queries, keys and values with their
/// copies by head, the attention's output, and the feed-forward's wide layer, which counts for four.
const LIVE_TENSORS: u64 = 12;
/// f32 operations a second that a core is taken to do, for want of a measurement. Today's cores do two to five times
/// as many in these kernels.
const FLOPS_OF_A_CORE: f64 = 20e9;

/// Operations of one pass through all blocks: the dense layers' `24 d^2` and attention's `4 d` for each other token, of
/// each token.
pub fn flops_of_a_pass(spec: &DitSpec, n_tokens: usize) -> f64 {
    let (n, d) = (n_tokens as f64, spec.d_model() as f64);
    spec.n_blocks as f64 * n * d * (24.0 * d + 4.0 * n)
}

/// Bytes of activations that a pass has in memory at once.
///
/// - `size`: bytes of a number
pub fn activation_bytes(spec: &DitSpec, n_tokens: usize, size: usize) -> u64 {
    [n_tokens, spec.d_model(), size].iter().fold(LIVE_TENSORS, |bytes, n| bytes.saturating_mul(*n as u64))
}

/// The time of so many operations on the CPU, at a rate that is assumed.
pub fn time_on_cpu(flops: f64, n_cores: usize) -> Duration {
    let seconds = flops / (FLOPS_OF_A_CORE * n_cores.max(1) as f64);
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

/// Memory of this machine, or of its container, that is free; `None` where the system does not say.
pub fn free_memory() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let number = |path: &str| read(path)?.trim().parse::<u64>().ok();
    let machine = read("/proc/meminfo").and_then(|text| available(&text));
    let limit = number("/sys/fs/cgroup/memory.max");
    let container = limit.zip(number("/sys/fs/cgroup/memory.current")).map(|(max, used)| max.saturating_sub(used));
    machine.into_iter().chain(container).min()
}

/// The most memory that this process has had so far, where the system tells it.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    kib(&status, "VmHWM:")
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    kib(meminfo, "MemAvailable:")
}

/// The bytes of a line of `/proc`.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A duration as people say it.
pub fn said(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} seconds"),
        seconds @ 120..7200 => format!("{} minutes", seconds / 60),
        seconds @ 7200..172_800 => format!("{} hours", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLUX: DitSpec =
        DitSpec { n_blocks: 57, n_heads: 24, head_dim: 128, channels: 64, joint: true, txt_each_step: false };

    #[test]
    fn a_flux_step_at_1024_is_about_what_is_published() {
        // 4096 image tokens and 512 of text: about 60 TFLOP
        let flops = flops_of_a_pass(&FLUX, 4096 + 512);
        assert!((5e13..9e13).contains(&flops), "{flops}");
        let bytes = activation_bytes(&FLUX, 4096 + 512, 4);
        assert!((300 << 20..2 << 30).contains(&bytes), "{bytes}");
        // at 16384 pixels tokens of 16 are 256 times as many
        assert!(activation_bytes(&FLUX, 1 << 20, 4) > 100 << 30);
        assert_eq!(activation_bytes(&FLUX, usize::MAX, 4), u64::MAX);
    }

    #[test]
    fn memory_and_time_are_read_and_said() {
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:    1024 kB\n"), Some(1 << 20));
        assert_eq!(available("MemAvailable: x kB"), None);
        assert_eq!(time_on_cpu(f64::INFINITY, 1), Duration::MAX);
        assert_eq!(said(time_on_cpu(20e9 * 60.0 * 300.0, 2)), "2 hours");
        assert_eq!(said(Duration::from_secs(119)), "119 seconds");
    }
}
