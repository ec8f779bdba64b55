//! A guest without rules: it must not make the streams grow, nor stop them for others.

use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;

use super::model::{CONNECTIONS, World};
use super::tests::CID;
use super::*;

/// A packet that may be anything, but often is almost right.
fn any_packet() -> impl Strategy<Value = (Header, usize)> {
    let port =
        || prop_oneof![4 => 1..4_u32, 2 => FIRST_HOST_PORT..FIRST_HOST_PORT + 3, 1 => any::<u32>()];
    let cid = |right: u64| prop_oneof![30 => Just(right), 1 => 0..5_u64, 1 => any::<u64>()];
    let op = prop_oneof![20 => 1..8_u16, 1 => any::<u16>()];
    let kind = prop_oneof![30 => Just(1), 1 => any::<u16>()];
    let count = || prop_oneof![4 => Just(0), 4 => 0..200_u32, 1 => any::<u32>()];
    let ends = (cid(CID.into()), cid(2), port(), port());
    (ends, op, kind, 0..4_u32, count(), count(), prop_oneof![2 => Just(0), 1 => 0..100_usize])
        .prop_map(|(ends, op, kind, flags, buf_alloc, fwd_cnt, payload)| {
            let (src_cid, dst_cid, src_port, dst_port) = ends;
            let len = payload as u32;
            let header = Header {
                src_cid,
                dst_cid,
                src_port,
                dst_port,
                len,
                kind,
                op,
                flags,
                buf_alloc,
                fwd_cnt,
            };
            (header, payload)
        })
}

/// What a guest without rules does, and what the host does meanwhile.
#[derive(Clone, Debug)]
enum Hostile {
    Packet(Header, usize),
    Buffer { bytes: u32 },
    HostOpens(u32),
    HostTakes(Index),
    HostGone(Index),
    Tick(u64),
}

fn hostile() -> impl Strategy<Value = Hostile> {
    prop_oneof![
        10 => any_packet().prop_map(|(header, payload)| Hostile::Packet(header, payload)),
        4 => (0..100_u32).prop_map(|bytes| Hostile::Buffer { bytes }),
        1 => (1..4_u32).prop_map(Hostile::HostOpens),
        2 => any::<Index>().prop_map(Hostile::HostTakes),
        1 => any::<Index>().prop_map(Hostile::HostGone),
        1 => (0..5000_u64).prop_map(Hostile::Tick),
    ]
}

fn suffer(world: &mut World, now: &mut Duration, act: Hostile) {
    let streams = &mut world.streams;
    let key_at = |streams: &Streams, which: Index| {
        let mut keys: Vec<Key> = streams.connections.keys().copied().collect();
        keys.sort_unstable();
        (!keys.is_empty()).then(|| keys[which.index(keys.len())])
    };
    match act {
        Hostile::Packet(header, payload) if streams.takes_packets() => {
            streams.receive(&header, &vec![0; payload]);
        }
        Hostile::Packet(..) => {}
        Hostile::Buffer { bytes } => {
            if let Some(Outgoing::Data { key, limit }) = streams.next_packet() {
                match bytes.min(limit) {
                    0 => streams.no_data(key),
                    len => drop(streams.data(key, len)),
                }
            }
        }
        Hostile::HostOpens(port) => drop(streams.open(port)),
        Hostile::HostTakes(which) => {
            if let Some(key) = key_at(streams, which) {
                let len = streams.bytes_for_host(key).len();
                streams.forwarded(key, len);
                streams.readable(key);
            }
        }
        Hostile::HostGone(which) => {
            if let Some(key) = key_at(streams, which) {
                streams.host_gone(key);
            }
        }
        Hostile::Tick(ms) => {
            *now += Duration::from_millis(ms);
            streams.tick(*now);
        }
    }
    while let Some(action) = streams.next_action() {
        if let Action::Connect(key) = action {
            streams.connected(key);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_guest_without_rules_harms_only_itself(acts in proptest::collection::vec(hostile(), 1..200)) {
        let mut world = World::new();
        let mut now = Duration::ZERO;
        for act in acts {
            suffer(&mut world, &mut now, act);
            world.check();
            prop_assert!(world.streams.resets.len() <= RESETS_MAX + CONNECTIONS as usize);
        }
        // Whatever it was: a reset of the device, and all is as new.
        world.streams.clear();
        world.check();
        world.guest_connects(true);
        world.settle();
        prop_assert_eq!(world.streams.connections.len(), 1);
    }
}
