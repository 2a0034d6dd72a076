//! What there is to know of a device beside its tensors: how much memory it has, and why work on it failed.

use burn::tensor::Device;

/// What to try where a device's memory does not suffice.
pub const LESS: &str = "bf16 in place of f32 and a smaller picture take less; PipeFusion shares the weights out among \
                               devices, Ulysses and ring the tokens";

/// A GPU's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// The device, as in `--device`.
    pub device: String,
    /// Bytes that nobody has taken.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
}

/// `None` of a device that does not say.
pub fn memory(device: &Device) -> Option<Memory> {
    #[cfg(feature = "cuda")]
    return crate::cuda::memory(device);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = device;
        None
    }
}

/// What `device` says of work that failed, on one line.
pub fn failure(device: &Device, message: &str) -> String {
    let root = root_cause(message);
    // as CubeCL says it
    let refused = ["out of device memory allocating ", "can't allocate buffer of size: "];
    let asked = refused.iter().find_map(|words| root.strip_prefix(words)?.split(' ').next()?.parse().ok());
    let Some(asked) = asked else { return root };
    match memory(device) {
        Some(memory) => out_of_memory(asked, &memory),
        None => format!("the device is out of memory: {} were asked for; {LESS}", gib(asked)),
    }
}

/// Burn's message tells first of all that waited for the work, and ends with a backtrace.
pub(crate) fn root_cause(message: &str) -> String {
    let root = message.rsplit("Caused by:\n").next().unwrap_or(message);
    let end = ["\nBacktrace", "\nAsked at:", "\nNo backtrace"].iter().filter_map(|mark| root.find(mark)).min();
    root[..end.unwrap_or(root.len())].split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What there is to say of so many bytes that were asked for in vain.
pub(crate) fn out_of_memory(asked: u64, memory: &Memory) -> String {
    let Memory { device, free, total } = memory;
    let [asked, free, total] = [asked, *free, *total].map(gib);
    format!("{device} is out of memory: {asked} were asked for, {free} of {total} are free; {LESS}")
}

fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_its_first_cause_on_one_line() {
        let said = "An error happened during execution\nCaused by:\n  The bytes were never written (failure #3, still \
                    claiming 7 buffer(s))\n  skipped by kernel x\nCaused by:\n  An error happened during execution\n\
                    Caused by:\n  cuda:0 is out of memory: 1.00 GiB were asked for\nBacktrace:\nNo backtrace available\n\
                    Asked at:\nNo backtrace available";
        assert_eq!(root_cause(said), "cuda:0 is out of memory: 1.00 GiB were asked for");
        assert_eq!(root_cause("plain"), "plain");
        let said = "Caused by:\n  An IO error happened\nCaused by:\n  can't allocate buffer of size: 5\nNo backtrace available";
        let short = format!("the device is out of memory: 0.00 GiB were asked for; {LESS}");
        assert_eq!(failure(&Device::flex(), said), short);
    }

    #[test]
    fn memory_that_is_not_there_is_told_with_what_is() {
        let memory = Memory { device: "cuda:2".into(), free: 1 << 29, total: 80 << 30 };
        let said = out_of_memory(3 << 29, &memory);
        let start =
            "cuda:2 is out of memory: 1.50 GiB were asked for, 0.50 GiB of 80.00 GiB are free; bf16 in place of f32";
        assert!(said.starts_with(start), "{said}");
    }
}
