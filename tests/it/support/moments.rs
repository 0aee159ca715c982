//! How many faults a test makes, and when: FAULTS and FAULTS_SEED.

use std::time::Duration;

use fastrand::Rng;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// How many faults a test makes, by default few.
pub fn faults() -> usize {
    number("FAULTS", 8) as usize
}

/// How many times a test stops a server.
pub fn stops() -> usize {
    (faults() / 10).max(3)
}

/// Whether the slow sizes are wanted.
pub fn long() -> bool {
    faults() >= 100
}

/// The moments of faults. The same seed gives the same moments, not the same encounters.
pub fn seeded() -> Rng {
    let seed = number("FAULTS_SEED", 7);
    println!("FAULTS={} FAULTS_SEED={seed}", faults());
    Rng::with_seed(seed)
}

/// Lets a random time pass, up to `max_ms`.
pub async fn random_moment(rng: &mut Rng, max_ms: u64) {
    tokio::time::sleep(Duration::from_millis(rng.u64(..=max_ms))).await;
}
