//! Benchmarks.

mod cases;
pub mod control_plane;
pub mod datapath;
mod flood;
mod frames;
mod load;
pub mod throughput;
mod variants;
mod world;

/// The one in the middle.
fn median(numbers: &mut [f64]) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}
