//! The TLB against a list of everything that was inserted and that no flush had to drop: whatever the TLB
//! answers must be in the list.

use proptest::prelude::*;
use translator::native::tables::second_index;

use super::tests::{guarded, second};
use super::*;

const FRAMES: u32 = 3;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    Data { host: usize, write: bool },
    Fetch { gpa: u64 },
    Guard { frame: u32 },
}

impl What {
    fn is_like(self, other: Self) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }
}

/// Something that was inserted.
#[derive(Clone, Copy, Debug)]
struct Known {
    what: What,
    page: u64,
    user: bool,
    asid: u64,
    leaf: Leaf,
}

impl Known {
    /// Whether both are answers to the same question.
    fn replaces(&self, other: &Self) -> bool {
        let space = !self.user || self.asid == other.asid;
        self.what.is_like(other.what) && (self.page, self.user) == (other.page, other.user) && space
    }

    fn maps(&self, va: u64) -> bool {
        let shift = 12 + 9 * self.leaf.level;
        self.page >> shift == va >> shift
    }
}

#[derive(Clone, Debug)]
enum Step {
    Data(u64, bool, usize, bool, Leaf),
    Fetch(u64, bool, u64, Leaf),
    Admit(u64, u32),
    SetUser(bool),
    SetAsid(u64),
    Flush,
    FlushAsid(u64),
    FlushPage(u64),
    ForgetData(u64),
    DropWrites(usize),
    DropAllWrites,
    ForgetWatched(usize, bool),
    Return(u64, bool),
}

/// Few pages, some of which share places in one table and not in the other, and large pages.
fn page() -> impl Strategy<Value = u64> {
    let within = prop_oneof![0..3u64, 254..258u64, 510..514u64, 1023..1026u64, Just(8192)];
    let region = prop_oneof![Just(0), Just(1 << 30), Just(0xffff_ffff_c000_0000u64)];
    (region, within).prop_map(|(region, within)| region + (within << 12))
}

fn leaf() -> impl Strategy<Value = Leaf> {
    let level = prop_oneof![6 => Just(0), 1 => Just(1), 1 => Just(2)];
    (level, any::<bool>()).prop_map(|(level, global)| Leaf { level, global })
}

fn step() -> impl Strategy<Value = Step> {
    let host = || (1..6usize).prop_map(|page| page << 12);
    let asid = || 0..11u64;
    prop_oneof![
        20 => (page(), any::<bool>(), host(), any::<bool>(), leaf())
            .prop_map(|(va, user, host, write, leaf)| Step::Data(va, user, host, write, leaf)),
        20 => (page(), any::<bool>(), 1..6u64, leaf())
            .prop_map(|(va, user, gpa, leaf)| Step::Fetch(va, user, gpa << 12, leaf)),
        30 => (page(), 0..FRAMES).prop_map(|(va, frame)| Step::Admit(va, frame)),
        10 => any::<bool>().prop_map(Step::SetUser),
        10 => asid().prop_map(Step::SetAsid),
        1 => Just(Step::Flush),
        4 => asid().prop_map(Step::FlushAsid),
        4 => (page(), 0..4096u64).prop_map(|(va, offset)| Step::FlushPage(va + offset)),
        2 => page().prop_map(Step::ForgetData),
        2 => host().prop_map(Step::DropWrites),
        2 => Just(Step::DropAllWrites),
        4 => (host(), any::<bool>()).prop_map(|(host, user)| Step::ForgetWatched(host, user)),
        20 => (page(), any::<bool>()).prop_map(|(va, write)| Step::Return(va, write)),
    ]
}

struct Model {
    tlb: Tlb,
    user: bool,
    asid: u64,
    known: Vec<Known>,
}

impl Model {
    fn take(&mut self, step: &Step) {
        match *step {
            Step::Data(va, user, host, write, leaf) => {
                self.tlb.insert(va, host, user, write, leaf);
                self.learn(What::Data { host, write }, va, user, leaf);
            }
            Step::Fetch(va, user, gpa, leaf) => {
                self.tlb.insert_fetch(va, gpa, user, leaf);
                self.learn(What::Fetch { gpa }, va, user, leaf);
            }
            Step::Admit(va, frame) => self.admit(va, frame),
            Step::SetUser(user) => {
                self.tlb.set_user(user);
                self.user = user;
            }
            Step::SetAsid(asid) => {
                self.tlb.set_asid(asid);
                self.asid = asid;
            }
            Step::Flush => {
                self.tlb.flush();
                self.known.clear();
            }
            Step::FlushAsid(asid) => {
                self.tlb.flush_asid(asid);
                self.known.retain(|known| known.asid != asid || known.leaf.global);
            }
            Step::FlushPage(va) => {
                self.tlb.flush_page(va);
                self.known.retain(|known| !known.maps(va));
            }
            Step::ForgetData(va) => {
                self.tlb.forget_data(va);
                let doomed = |what| matches!(what, What::Data { .. });
                self.known.retain(|known| known.page != va || !doomed(known.what));
            }
            Step::Return(va, write) => put_back(&self.tlb, va, write),
            Step::ForgetWatched(page, users) => {
                self.tlb.forget_watched(|host, user| host == page && (!user || users));
                self.known.retain_mut(|known| {
                    let What::Data { host, write } = &mut known.what else { return true };
                    *write &= *host != page;
                    *host != page || !(known.user && users)
                });
            }
            Step::DropAllWrites => {
                self.tlb.drop_all_writes();
                for known in &mut self.known {
                    if let What::Data { write, .. } = &mut known.what {
                        *write = false;
                    }
                }
            }
            Step::DropWrites(page) => {
                self.tlb.drop_writes(page);
                for known in &mut self.known {
                    if let What::Data { host, write } = &mut known.what {
                        *write &= *host != page;
                    }
                }
            }
        }
    }

    /// A guard is dropped by what drops the fetch that it was admitted for.
    fn admit(&mut self, va: u64, frame: u32) {
        self.tlb.admit(va, frame);
        let Some(gpa) = self.tlb.fetch(va) else { return };
        let what = What::Fetch { gpa };
        let fetch =
            *self.answers(va, self.user, self.asid).find(|known| known.what == what).unwrap();
        let guard = Known { what: What::Guard { frame }, ..fetch };
        self.known.retain(|known| !guard.replaces(known));
        self.known.push(guard);
    }

    fn learn(&mut self, what: What, page: u64, user: bool, leaf: Leaf) {
        let new = Known { what, page, user, asid: self.asid, leaf };
        self.known.retain(|known| !new.replaces(known));
        self.known.push(new);
    }

    /// What may be answered for `va`.
    fn answers(&self, va: u64, user: bool, asid: u64) -> impl Iterator<Item = &Known> {
        self.known.iter().filter(move |known| {
            let space = known.asid == asid || known.leaf.global;
            known.page == va & !0xfff && known.user == user && space
        })
    }

    fn check(&self, va: u64) {
        let (user, tlb) = (self.user, &self.tlb);
        let hosts = [tlb.read(va, 1), tlb.cached(va, 1, user, false), second(tlb, va, false)];
        let cached = [false, true].map(|user| (user, tlb.cached(va, 1, user, true)));
        let writes = [tlb.write(va, 1), second(tlb, va, true)].map(|host| (user, true, host));
        for (user, write, host) in writes
            .into_iter()
            .chain(hosts.map(|host| (user, false, host)))
            .chain(cached.map(|(user, host)| (user, true, host)))
        {
            let Some(at) = host else { continue };
            let fits =
                |what| matches!(what, What::Data { host, write: w } if host == at && (w || !write));
            assert!(self.may(va, user, fits), "data at {va:#x} (user: {user}, write: {write})");
        }
        if let Some(at) = tlb.fetch(va) {
            assert!(self.may(va, user, |what| what == What::Fetch { gpa: at }), "fetch {va:#x}");
        }
        for frame in (0..FRAMES).filter(|&frame| guarded(tlb, va, frame)) {
            let fits = |what| what == What::Guard { frame };
            assert!(self.may(va, user, fits), "guard at {va:#x} for {frame}");
        }
    }

    fn may(&self, va: u64, user: bool, fits: impl Fn(What) -> bool) -> bool {
        self.answers(va, user, self.asid).any(|known| fits(known.what))
    }
}

/// Puts what the second table has back into the first, as generated code does.
fn put_back(tlb: &Tlb, va: u64, write: bool) {
    if second(tlb, va, write).is_some() {
        // SAFETY: as in `second`; nobody has a reference to the entry now.
        unsafe {
            let entry = *tlb.second_table().add(second_index(va));
            tlb.data_table().cast_mut().add(data_index(va)).write(entry);
        }
    }
}

proptest! {
    #[test]
    fn it_never_knows_what_was_flushed(
        steps in prop::collection::vec(step(), 1..300),
        pages in prop::collection::vec(page(), 40),
    ) {
        let mut model = Model { tlb: Tlb::new(), user: false, asid: 0, known: Vec::new() };
        for step in &steps {
            model.take(step);
            pages.iter().for_each(|&va| model.check(va));
        }
    }
}
