//! One look at each frame.

use std::collections::BTreeMap;

use memory::{FRAME_SIZE, Frame, FrameState, GuestMemory};

use super::PartFigures;
use super::ages::EpochAges;
use crate::classes::FrameClass;

/// What each part of `memory` is and how long it was not used: parts that are not empty, whose sum is all of it.
///
/// `in_use` answers what a frame is that the guest has used, where the frame table alone does not tell; `ages` is there
/// while epochs are ended. Cost: one pass over the frame table.
pub fn survey(
    memory: &GuestMemory,
    ages: Option<&EpochAges>,
    in_use: impl Fn(Frame) -> FrameClass,
) -> BTreeMap<FrameClass, PartFigures> {
    let places = ages.map(EpochAges::places);
    let mut parts = BTreeMap::<FrameClass, PartFigures>::new();
    for frame in (0..memory.layout().frames()).map(Frame) {
        let Some(facts) = memory.facts(frame) else { continue };
        let part = FrameClass::by_state(&facts).unwrap_or_else(|| in_use(frame));
        let figures = parts.entry(part).or_default();
        figures.bytes += FRAME_SIZE as u64;
        if facts.state != FrameState::Resident {
            continue;
        }
        figures.resident_bytes += FRAME_SIZE as u64;
        let place = places.as_ref().and_then(|places| places.of(facts.accessed));
        let of_age = match place {
            Some(place) => &mut figures.by_idle_age[place],
            None => &mut figures.age_unknown_bytes,
        };
        *of_age += FRAME_SIZE as u64;
    }
    parts
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use memory::{Access, Discard};
    use proptest::prelude::*;

    use super::*;

    const FRAMES: u32 = 256;

    #[test]
    fn frames_are_told_apart_by_state() {
        let memory = GuestMemory::with_bytes(1 << 20).expect("1 MiB");
        for frame in 0..100 {
            memory.resolve(Frame(frame), Access::Write).expect("resident");
        }
        memory.discard((0..10).map(Frame), Discard::Balloon).expect("discard");
        memory.discard((10..30).map(Frame), Discard::Reported).expect("discard");
        let part =
            |frame: Frame| if frame.0 < 50 { FrameClass::FileCache } else { FrameClass::Unknown };
        let parts = survey(&memory, None, part);
        let frames = |part| parts.get(&part).map_or(0, |figures| figures.bytes / 4096);
        assert_eq!((frames(FrameClass::Ballooned), frames(FrameClass::Free)), (10, 20));
        assert_eq!((frames(FrameClass::FileCache), frames(FrameClass::Unknown)), (20, 50));
        assert_eq!(frames(FrameClass::Untouched), 156);
        assert_eq!(parts[&FrameClass::Unknown].age_unknown_bytes, 50 * 4096);
    }

    #[derive(Clone, Debug)]
    enum Act {
        Touch(u32),
        Give(u32, bool),
        Tick,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            (0..FRAMES).prop_map(Act::Touch),
            (0..FRAMES, any::<bool>()).prop_map(|(frame, balloon)| Act::Give(frame, balloon)),
            Just(Act::Tick),
        ]
    }

    proptest! {
        /// Whatever happened, every byte is somewhere, once, and every resident one has an age or none.
        #[test]
        fn parts_sum_to_all(acts in proptest::collection::vec(act(), 0..200)) {
            let memory = GuestMemory::with_bytes(1 << 20).expect("1 MiB");
            let mut ages = EpochAges::new(memory.epoch());
            for act in acts {
                match act {
                    Act::Touch(frame) => {
                        memory.resolve(Frame(frame), Access::Read).expect("resident");
                    }
                    Act::Give(frame, balloon) => {
                        let why = if balloon { Discard::Balloon } else { Discard::Reported };
                        memory.discard([Frame(frame)], why).expect("discard");
                    }
                    Act::Tick => ages.ended(Duration::from_secs(7), memory.advance_epoch()),
                }
            }
            let part = |frame: Frame| FrameClass::ALL[frame.index() % FrameClass::ALL.len()];
            let parts = survey(&memory, Some(&ages), part);
            prop_assert_eq!(parts.values().map(|part| part.bytes).sum::<u64>(), memory.bytes());
            let resident: u64 = parts.values().map(|part| part.resident_bytes).sum();
            prop_assert_eq!(resident, memory.resident_bytes());
            for figures in parts.values() {
                let aged: u64 = figures.by_idle_age.iter().sum();
                prop_assert_eq!(aged + figures.age_unknown_bytes, figures.resident_bytes);
            }
        }
    }
}
