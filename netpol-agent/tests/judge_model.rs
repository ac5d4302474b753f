//! The decision procedure as a state machine: random stories of conversations, Services, policies, time and evictions, played
//! on the judge and on a model that knows of no packet.
//!
//! Both must agree on every packet: what the model forbids is dropped (in both directions of a revoked conversation), what it
//! allows passes (also after unrelated changes), and no packet keeps our mark past the hook that has judged it.

#[path = "judge_model/model.rs"]
mod model;
#[path = "judge_model/play.rs"]
mod play;
#[path = "judge_model/story.rs"]
mod story;

use play::World;
use proptest::{prelude::*, test_runner::RngSeed};
use story::{Action, stories};

/// Plays a story; if the judge departs from the model, tells it as far as that.
fn tell(story: &[Action]) -> Result<(), String> {
    let mut world = World::new();
    for (number, action) in story.iter().enumerate() {
        if let Err(difference) = action.play(&mut world) {
            let lines = story[..=number].iter().map(|line| format!("  {line}\n"));
            let lines: String = lines.collect();
            return Err(format!("{difference}. The story:\n{lines}"));
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        // The same stories each time, so that a failure means a change; PROPTEST_CASES asks for more and for others.
        cases: ProptestConfig::default().cases * 16,
        rng_seed: match std::env::var_os("PROPTEST_CASES") {
            Some(_) => ProptestConfig::default().rng_seed,
            None => RngSeed::Fixed(20),
        },
        max_shrink_iters: 100_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_judge_does_what_the_model_says(story in stories()) {
        if let Err(difference) = tell(&story) {
            return Err(TestCaseError::fail(difference));
        }
    }
}
