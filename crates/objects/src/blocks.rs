//! What came of a store: in blocks, each fetched once for all who want it, and ahead of those who read in order. What somebody
//! waits for is fetched before what nobody waits for yet, and has connections that the other never takes.

use std::collections::{HashMap, VecDeque};
use std::io::ErrorKind;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::sync::watch;

use crate::error::Failure;

/// The least that is asked of a store: a request costs as much as some hundred KiB.
pub(crate) const BLOCK: u64 = 256 << 10;
/// Blocks that one request asks for at most. More at once come by several connections, which is faster.
const RANGE_BLOCKS: u64 = 4;
/// Blocks that are wanted ahead of who reads in order.
const AHEAD: u64 = 16;
/// Requests at a time, and of these, for what nobody waits for.
const REQUESTS: usize = 12;
const REQUESTS_AHEAD: usize = 4;
/// Blocks that are kept: 64 MiB.
const KEPT: usize = 256;

/// Which object, of those that are served.
pub(crate) type ObjectId = u32;

/// An object that is read.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) id: ObjectId,
    pub(crate) path: Path,
    pub(crate) bytes: u64,
}

type Key = (ObjectId, u64);
type Come = Result<Bytes, Failure>;

/// Who waits for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Urgency {
    /// Somebody does.
    Demand,
    /// Nobody yet.
    Ahead,
}

/// Blocks of objects of one store.
pub(crate) struct Blocks {
    store: Arc<dyn ObjectStore>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    cells: HashMap<Key, Cell>,
    /// Not yet asked for.
    demand: VecDeque<Fetch>,
    ahead: VecDeque<Fetch>,
    /// Requests under way, and of these, those for what nobody waited for when they began.
    requests: usize,
    requests_ahead: usize,
    /// Counts uses.
    clock: u64,
}

struct Cell {
    /// `None` while it is on its way.
    come: watch::Receiver<Option<Come>>,
    used: u64,
}

/// Blocks that one request asks for.
struct Fetch {
    object: Object,
    first: u64,
    /// One for each.
    senders: Vec<watch::Sender<Option<Come>>>,
}

impl Blocks {
    pub(crate) fn new(store: Arc<dyn ObjectStore>) -> Arc<Self> {
        Arc::new(Self { store, state: Mutex::default() })
    }

    /// Bytes of an object. What follows them is fetched, too, where what is before them was.
    ///
    /// # Errors
    /// What the store says. Nothing is remembered of it: the next one asks again.
    pub(crate) async fn read(
        self: &Arc<Self>,
        object: &Object,
        range: Range<u64>,
        urgency: Urgency,
    ) -> Come {
        let (first, end) = (range.start / BLOCK, range.end.div_ceil(BLOCK));
        let mut read = Vec::with_capacity((range.end - range.start) as usize);
        self.want(object, first..end, urgency);
        for number in first..end {
            let block = self.block(object, number, urgency).await?;
            let start = number * BLOCK;
            let from = range.start.saturating_sub(start) as usize;
            let to = (range.end - start).min(BLOCK) as usize;
            let wanted = block.get(from..to).ok_or_else(|| {
                let what = format!("object {} ends before byte {}", object.path, range.end);
                Failure::new(ErrorKind::UnexpectedEof, what)
            })?;
            read.extend_from_slice(wanted);
        }
        Ok(read.into())
    }

    /// Has blocks fetched that somebody will read.
    pub(crate) fn want_first(self: &Arc<Self>, object: &Object) {
        self.want(object, 0..1, Urgency::Demand);
    }

    async fn block(self: &Arc<Self>, object: &Object, number: u64, urgency: Urgency) -> Come {
        let mut come = {
            // Two lookups at most: one that failed in between is gone.
            let known = self.known((object.id, number));
            match known {
                Some(come) => come,
                None => {
                    self.claim(object, number..number + 1, urgency);
                    let gone = || Failure::new(ErrorKind::Other, "fetched and lost: try again");
                    self.known((object.id, number)).ok_or_else(gone)?
                }
            }
        };
        let come = come.wait_for(Option::is_some).await;
        let lost = || Failure::new(ErrorKind::Other, "the fetch was given up");
        come.map_or_else(|_| Err(lost()), |come| come.clone().unwrap_or_else(|| Err(lost())))
    }

    fn known(&self, key: Key) -> Option<watch::Receiver<Option<Come>>> {
        let mut state = self.state();
        state.clock += 1;
        let clock = state.clock;
        let cell = state.cells.get_mut(&key)?;
        cell.used = clock;
        Some(cell.come.clone())
    }

    /// What is read now, and what will be if it goes on like that.
    fn want(self: &Arc<Self>, object: &Object, blocks: Range<u64>, urgency: Urgency) {
        let (in_order, half_there) = {
            let state = self.state();
            let has = |number| state.cells.contains_key(&(object.id, number));
            let before = blocks.start.checked_sub(1);
            (before.is_none_or(has), has(blocks.end + AHEAD / 2))
        };
        self.claim(object, blocks.clone(), urgency);
        if in_order && !half_there {
            self.claim(object, blocks.end..blocks.end + AHEAD, Urgency::Ahead);
        }
    }

    /// Has those fetched that are not here and not on their way.
    fn claim(self: &Arc<Self>, object: &Object, blocks: Range<u64>, urgency: Urgency) {
        let end = blocks.end.min(object.bytes.div_ceil(BLOCK));
        let mut absent: Vec<(u64, watch::Sender<Option<Come>>)> = Vec::new();
        {
            let mut state = self.state();
            for number in blocks.start..end {
                let key = (object.id, number);
                if state.cells.contains_key(&key) {
                    if urgency == Urgency::Demand {
                        state.hurry(key);
                    }
                    continue;
                }
                let (sender, come) = watch::channel(None);
                state.clock += 1;
                let used = state.clock;
                state.cells.insert(key, Cell { come, used });
                absent.push((number, sender));
            }
            state.forget();
            let mut rest = absent.into_iter().peekable();
            while let Some((first, sender)) = rest.next() {
                let mut senders = vec![sender];
                while senders.len() < RANGE_BLOCKS as usize
                    && let Some((_, sender)) =
                        rest.next_if(|(number, _)| *number == first + senders.len() as u64)
                {
                    senders.push(sender);
                }
                let fetch = Fetch { object: object.clone(), first, senders };
                match urgency {
                    Urgency::Demand => state.demand.push_back(fetch),
                    Urgency::Ahead => state.ahead.push_back(fetch),
                }
            }
        }
        self.begin();
    }

    /// Begins as many requests as may be.
    fn begin(self: &Arc<Self>) {
        while let Some((fetch, urgency)) = {
            let mut state = self.state();
            state.next()
        } {
            tokio::spawn(Arc::clone(self).fetch(fetch, urgency));
        }
    }

    async fn fetch(self: Arc<Self>, fetch: Fetch, urgency: Urgency) {
        let Fetch { object, first, senders } = fetch;
        let end = ((first + senders.len() as u64) * BLOCK).min(object.bytes);
        let come = self.store.get_range(&object.path, first * BLOCK..end).await;
        let come = come.map_err(Failure::from);
        {
            let mut state = self.state();
            state.requests -= 1;
            state.requests_ahead -= usize::from(urgency == Urgency::Ahead);
            if come.is_err() {
                // First forgotten, then told: who asks after that asks the store.
                for number in first..first + senders.len() as u64 {
                    state.cells.remove(&(object.id, number));
                }
            }
        }
        self.begin();
        for (place, sender) in senders.into_iter().enumerate() {
            let block = come.as_ref().map_err(Failure::clone).map(|bytes| {
                let from = (place * BLOCK as usize).min(bytes.len());
                let to = (from + BLOCK as usize).min(bytes.len());
                // Each by itself, so that one that is kept does not keep the others.
                Bytes::copy_from_slice(&bytes[from..to])
            });
            // Nobody may want it any more.
            let _ = sender.send(Some(block));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What is to be asked for now.
    fn next(&mut self) -> Option<(Fetch, Urgency)> {
        let (fetch, urgency) = if self.requests >= REQUESTS {
            return None;
        } else if let Some(fetch) = self.demand.pop_front() {
            (fetch, Urgency::Demand)
        } else if self.requests_ahead < REQUESTS_AHEAD {
            (self.ahead.pop_front()?, Urgency::Ahead)
        } else {
            return None;
        };
        self.requests += 1;
        self.requests_ahead += usize::from(urgency == Urgency::Ahead);
        Some((fetch, urgency))
    }

    /// Somebody waits for it now.
    fn hurry(&mut self, (object, number): Key) {
        let has = |fetch: &Fetch| {
            let blocks = fetch.first..fetch.first + fetch.senders.len() as u64;
            fetch.object.id == object && blocks.contains(&number)
        };
        let fetch = self.ahead.iter().position(has).and_then(|place| self.ahead.remove(place));
        self.demand.extend(fetch);
    }

    /// Those that were used longest ago.
    fn forget(&mut self) {
        while self.cells.len() > KEPT {
            let here = self.cells.iter().filter(|(_, cell)| cell.come.borrow().is_some());
            let Some((&oldest, _)) = here.min_by_key(|(_, cell)| cell.used) else { return };
            self.cells.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime")
    }

    #[test]
    fn any_range_is_as_it_was_put() {
        runtime().block_on(async {
            let store = Arc::new(InMemory::new());
            let bytes: Vec<u8> = (0..3_000_001u32).map(|n| (n * 7 / 3) as u8).collect();
            let path = Path::from("a/memory");
            store.put(&path, bytes.clone().into()).await.expect("put");
            let blocks = Blocks::new(store);
            let object = Object { id: 4, path, bytes: bytes.len() as u64 };
            for (from, len) in [(0, 1), (5, 300_000), (262_143, 2), (2_999_999, 2), (700_000, 0)] {
                let read =
                    blocks.read(&object, from..from + len, Urgency::Demand).await.expect("read");
                assert_eq!(read, bytes[from as usize..(from + len) as usize]);
            }
            // One that the manifest says is longer than it is.
            let longer = Object { id: 5, bytes: object.bytes + 10, ..object };
            let error = blocks.read(&longer, longer.bytes - 5..longer.bytes, Urgency::Demand).await;
            assert_eq!(error.expect_err("too short").kind, ErrorKind::UnexpectedEof);
        });
    }

    #[test]
    fn what_failed_is_asked_for_again_and_what_is_old_is_forgotten() {
        runtime().block_on(async {
            let store = Arc::new(InMemory::new());
            let path = Path::from("memory");
            let blocks = Blocks::new(Arc::clone(&store) as Arc<dyn ObjectStore>);
            let object = Object { id: 0, path: path.clone(), bytes: 100 << 20 };
            let error = blocks.read(&object, 0..10, Urgency::Demand).await.expect_err("not there");
            assert_eq!(error.kind, ErrorKind::NotFound);
            store.put(&path, vec![5; 100 << 20].into()).await.expect("put");
            for number in 0..400 {
                let range = number * BLOCK..(number + 1) * BLOCK;
                let read = blocks.read(&object, range, Urgency::Demand).await;
                assert_eq!(read.expect("there").len() as u64, BLOCK);
            }
            let kept = blocks.state().cells.len();
            assert!((KEPT - 32..=KEPT + AHEAD as usize).contains(&kept), "{kept}");
        });
    }

    /// What nobody waits for takes its connections and no more; what somebody waits for comes next, also where it was
    /// wanted ahead before.
    #[test]
    fn what_somebody_waits_for_comes_first() {
        let object = Object { id: 1, path: Path::from("memory"), bytes: 100 << 20 };
        let other = Object { id: 2, ..object.clone() };
        let mut state = State::default();
        let fetch = |object: &Object, first| {
            let senders = (0..2).map(|_| watch::channel(None).0).collect();
            Fetch { object: object.clone(), first, senders }
        };
        for first in (0..20).step_by(2) {
            state.ahead.push_back(fetch(&object, first));
            state.ahead.push_back(fetch(&other, first));
        }
        let mut begun = || {
            let (fetch, urgency) = state.next()?;
            Some((fetch.object.id, fetch.first, urgency))
        };
        let ahead: Vec<_> = std::iter::from_fn(&mut begun).collect();
        let expected = [(1, 0), (2, 0), (1, 2), (2, 2)].map(|(id, at)| (id, at, Urgency::Ahead));
        assert_eq!(ahead, expected);
        state.hurry((1, 13));
        // On its way already, and not there.
        state.hurry((1, 1));
        state.hurry((3, 13));
        state.demand.push_back(fetch(&other, 50));
        let mut begun = || {
            let (fetch, urgency) = state.next()?;
            Some((fetch.object.id, fetch.first, urgency))
        };
        let demand: Vec<_> = std::iter::from_fn(&mut begun).collect();
        assert_eq!(demand, [(1, 12), (2, 50)].map(|(id, at)| (id, at, Urgency::Demand)));
        for number in 0..20 {
            state.demand.push_back(fetch(&object, 100 + number));
        }
        let more = std::iter::from_fn(|| state.next()).count();
        assert_eq!((more, state.requests), (REQUESTS - 6, REQUESTS));
        // One of them ends: the next is one that somebody waits for, too.
        state.requests -= 1;
        state.requests_ahead -= 1;
        assert!(matches!(state.next(), Some((_, Urgency::Demand))));
    }
}
