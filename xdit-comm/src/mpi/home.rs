//! Whether a process of this host is still there: the system knows long before silence tells.

use std::fs;
use std::process;

use super::message::Home;

/// This process's.
pub fn home() -> Home {
    Home { place: place(), pid: process::id() }
}

/// Two processes with the same place see each other's numbers.
fn place() -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let numbers = fs::read_link("/proc/self/ns/pid").ok()?;
    Some(format!("{} {}", boot.trim(), numbers.display()))
}

/// Whether a process is gone for sure, seen from `here`.
pub fn is_gone(there: &Home, here: &Home) -> bool {
    here.place.is_some() && here.place == there.place && !runs(there.pid)
}

fn runs(pid: u32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        // the state follows the name, which may hold anything
        Ok(stat) => !matches!(stat.rsplit_once(") ").map(|(_, rest)| rest.as_bytes()[0]), Some(b'Z' | b'X')),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_ended_is_gone_and_one_elsewhere_may_not_be() {
        let here = home();
        assert!(here.place.is_some() && !is_gone(&home(), &here));
        let mut child = process::Command::new("true").spawn().expect("a process");
        let mut there = Home { pid: child.id(), ..home() };
        // also one that nobody has asked how it ended
        while !is_gone(&there, &here) {
            std::thread::yield_now();
        }
        child.wait().expect("its end");
        assert!(is_gone(&there, &here));
        there.place = Some("elsewhere".into());
        assert!(!is_gone(&there, &here));
    }
}
