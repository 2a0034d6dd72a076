//! The table behind every world: messages that came, who waits for whom, who left, and the first failure.
//!
//! All that ranks wait for is in that table, behind one lock and one condition variable, and the first failure is recorded
//! there: so whoever waits learns of it at once. Those who wait also watch for signs of life of those whom they wait for,
//! and so need no thread that does. Threads of one process share a table; where each rank is a process it has a table of
//! its own, and a courier between processes brings what concerns the others.

pub mod clock;
pub mod rank;
pub mod shared;
pub mod state;
