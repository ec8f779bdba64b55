//! Memory frozen under a guest that goes on to write: what is taken and what is kept is the memory of that moment.
//!
//! The payload writes by every way that a processor has, each to a page of its own, in rounds. Between two of them the
//! case scribbles over those pages, so that a write that goes unnoticed shows, and freezes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use memory::{
    DeviceView, FRAME_SIZE, Frame, FreezeError, Frozen, Gpa, GuestMemory, Keep, ReadView, Taken,
};

use super::prelude::*;

cases!("freeze": afterwards, meanwhile, anonymous, anonymous_meanwhile, again, given_up);

/// Rounds before the freeze, so that what is cached and translated is, and after it: an odd number, for what a second
/// round undoes.
const WARM: i32 = 150;
const ROUNDS: i32 = 61;

/// Pages of the window that are written to, each in its own way; from the first on without a gap.
const FIRST: u64 = 16;
const LAST: u64 = 66;
/// One with code that is called and then changed.
const CODE_PAGE: u64 = 67;
/// One that the payload only reads, one that it writes: their entries lose the accessed and the dirty bit before the
/// freeze, and get them by a walk.
const READ_PAGE: u64 = 80;
const WRITTEN_PAGE: u64 = 81;
/// One with the guest's clock.
const CLOCK_PAGE: u64 = 82;
/// Where the descriptor is whose accessed bit is set by loading it.
const DESCRIPTOR: u64 = GDT + selector::UNUSED_DATA as u64 + 5;

type Contents = [u8; FRAME_SIZE];

/// `rounds` rounds of writes. RBX changes from one to the next, R12 counts.
fn rounds(a: &mut CodeAssembler, rounds: i32) -> Asm {
    let mut again = a.create_label();
    a.mov(r12d, rounds)?;
    a.set_label(&mut again)?;
    walks(a)?;
    a.imul_3(rbx, rbx, 0x0101_6b25)?;
    a.add(rbx, 0x1357_9bdf)?;
    stores(a)?;
    changes(a)?;
    locked(a)?;
    vectors(a)?;
    strings(a)?;
    stacks(a)?;
    code(a)?;
    a.dec(r12d)?;
    a.jnz(again)
}

/// Sets accessed and dirty bits, and that of a segment.
fn walks(a: &mut CodeAssembler) -> Asm {
    for page in [READ_PAGE, WRITTEN_PAGE] {
        a.invlpg(byte_ptr(window(page)))?;
    }
    a.mov(al, byte_ptr(window(READ_PAGE)))?;
    a.mov(byte_ptr(window(WRITTEN_PAGE)), bl)?;
    a.mov(eax, i32::from(selector::UNUSED_DATA))?;
    a.mov(fs, eax)?;
    // The host or the engine writes the record of the clock.
    a.write_msr(x86::msr::KVM_SYSTEM_TIME_NEW, window(CLOCK_PAGE) | 1)
}

fn stores(a: &mut CodeAssembler) -> Asm {
    a.mov(byte_ptr(window(16) + 1), bl)?;
    a.mov(word_ptr(window(17) + 2), bx)?;
    a.mov(dword_ptr(window(18)), ebx)?;
    a.mov(qword_ptr(window(19) + 8), rbx)?;
    a.mov(qword_ptr(window(21) - 3), rbx)?;
    a.mov(word_ptr(window(23) - 1), bx)?;
    a.movnti(qword_ptr(window(24)), rbx)?;
    a.mov(dword_ptr(window(25) + 0xffc), 0x1234_5678)
}

fn changes(a: &mut CodeAssembler) -> Asm {
    a.add(qword_ptr(window(26)), rbx)?;
    a.inc(byte_ptr(window(27)))?;
    a.not(qword_ptr(window(28)))?;
    a.rol(dword_ptr(window(29)), 3)?;
    a.shld(qword_ptr(window(30)), rbx, 5)?;
    a.movzx(eax, bx)?;
    a.and(eax, 0x3fff)?;
    a.btc(qword_ptr(window(31)), rax)?;
    a.xadd(qword_ptr(window(32)), rax)?;
    a.sub(dword_ptr(window(34) - 2), ebx)
}

fn locked(a: &mut CodeAssembler) -> Asm {
    a.mov(rax, rbx)?;
    a.lock().xadd(qword_ptr(window(35)), rax)?;
    a.lock().inc(word_ptr(window(36)))?;
    a.mov(rax, rbx)?;
    a.xchg(qword_ptr(window(37)), rax)?;
    a.mov(rax, qword_ptr(window(38)))?;
    a.lock().cmpxchg(qword_ptr(window(38)), rbx)?;
    a.lock().btc(dword_ptr(window(39)), 7)?;
    a.push(rbx)?;
    a.mov(rax, qword_ptr(window(40)))?;
    a.mov(rdx, qword_ptr(window(40) + 8))?;
    a.mov(rcx, rax)?;
    a.lock().cmpxchg16b(xmmword_ptr(window(40)))?;
    a.pop(rbx)?;
    a.lock().add(qword_ptr(window(42) - 4), rbx)
}

fn vectors(a: &mut CodeAssembler) -> Asm {
    a.movq(xmm0, rbx)?;
    a.punpcklqdq(xmm0, xmm0)?;
    a.movdqu(xmmword_ptr(window(43)), xmm0)?;
    a.movdqu(xmmword_ptr(window(45) - 5), xmm0)?;
    a.movq(qword_ptr(window(46)), xmm0)?;
    a.movntdq(xmmword_ptr(window(47)), xmm0)?;
    a.fild(dword_ptr(window(18)))?;
    a.fst(qword_ptr(window(48)))?;
    a.fistp(qword_ptr(window(49)))?;
    a.fxsave(byte_ptr(window(50)))
}

fn strings(a: &mut CodeAssembler) -> Asm {
    let start = |a: &mut CodeAssembler, from: u64, to: u64, count: u32| {
        a.mov(esi, from as u32)?;
        a.mov(edi, to as u32)?;
        a.mov(ecx, count)
    };
    a.mov(rax, rbx)?;
    start(a, 0, window(51) + 0xf00, 100)?;
    a.rep().stosq()?;
    start(a, window(43), window(54) - 100, 200)?;
    a.rep().movsb()?;
    start(a, window(43) + 600, window(56) + 100, 150)?;
    a.std()?;
    a.rep().movsw()?;
    a.cld()?;
    start(a, window(19), window(57), 512)?;
    a.rep().movsq()?;
    start(a, window(19), window(58) + 3, 1)?;
    a.movsd()?;
    start(a, 0, window(59), 1)?;
    a.stosb()
}

/// Pushes, calls, and what the processor pushes by itself: on the same privilege, and from user mode.
fn stacks(a: &mut CodeAssembler) -> Asm {
    let (mut there, mut back) = (a.create_label(), a.create_label());
    a.mov(r9, rsp)?;
    a.mov(esp, window(61) as i32)?;
    a.push(rbx)?;
    a.mov(esp, window(62) as i32)?;
    a.call(there)?;
    a.jmp(back)?;
    a.set_label(&mut there)?;
    a.ret()?;
    a.set_label(&mut back)?;
    a.mov(esp, window(63) as i32)?;
    a.pushfq()?;
    a.mov(esp, window(64) as i32)?;
    a.push(bx)?;
    a.mov(esp, window(64) as i32 + 0x800)?;
    a.fault(|a| a.ud2())?;
    a.mov(rsp, r9)?;
    a.user(|a| {
        a.mov(qword_ptr(window(65)), rbx)?;
        a.lock().add(dword_ptr(window(66)), ebx)?;
        a.push(rbx)
    })
}

fn code(a: &mut CodeAssembler) -> Asm {
    a.mov(eax, window(CODE_PAGE) as u32)?;
    a.call(rax)?;
    a.mov(byte_ptr(window(CODE_PAGE) + 1), bl)
}

/// Frames that a round writes to.
fn written() -> BTreeSet<u32> {
    let kernel = [WINDOW_TABLE, DIRECTORY, DESCRIPTOR, STACK - 1, KERNEL_STACK - 1, USER_STACK - 1];
    let pages = (FIRST..=CODE_PAGE).chain([WRITTEN_PAGE, CLOCK_PAGE]).map(window);
    pages.chain(kernel).map(|gpa| (gpa >> 12) as u32).collect()
}

/// Gives each page that will be written contents that no write leaves as they are.
fn scribble(view: &DeviceView) {
    let mut noise = 0x2545_f491_4f6c_dd1du64;
    let mut page = || {
        let mut next = || {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            noise.to_le_bytes()
        };
        (0..FRAME_SIZE / 8).flat_map(|_| next()).collect::<Vec<u8>>()
    };
    let write = |gpa: u64, bytes: &[u8]| view.write(Gpa(gpa), bytes).expect("inside RAM");
    for number in (FIRST..=LAST).chain([WRITTEN_PAGE, CLOCK_PAGE]) {
        write(window(number), &page());
    }
    for top in [STACK, KERNEL_STACK, USER_STACK] {
        write(top - FRAME_SIZE as u64, &page());
    }
    // MOV AL, n; RET
    write(window(CODE_PAGE), &[0xb0, 0x77, 0xc3]);
    let clear = |gpa: u64, bits: u8| {
        let mut byte = [0];
        view.read(Gpa(gpa), &mut byte).expect("inside RAM");
        write(gpa, &[byte[0] & !bits]);
    };
    let marks = (paging::ACCESSED | paging::DIRTY) as u8;
    for entry in [window_entry(READ_PAGE), window_entry(WRITTEN_PAGE), DIRECTORY + 8] {
        clear(entry, marks);
    }
    clear(DESCRIPTOR, 1);
}

/// Everything that is in memory, by frame.
fn all(memory: &Arc<GuestMemory>) -> Vec<Contents> {
    let view = ReadView::new(Arc::clone(memory));
    let read = |frame: u32| {
        let mut contents = [0; FRAME_SIZE];
        view.read(Gpa(u64::from(frame) << 12), &mut contents).expect("inside RAM");
        contents
    };
    (0..memory.layout().frames()).map(read).collect()
}

#[derive(Clone, Default)]
struct Shelf(Arc<Mutex<BTreeMap<u32, Contents>>>);

impl Keep for Shelf {
    fn keep(&self, frame: Frame, contents: &Contents) {
        let mut frames = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(frames.insert(frame.0, *contents).is_none(), "{frame} is kept twice");
    }
}

fn freeze(memory: &Arc<GuestMemory>, shelf: &Shelf) -> Frozen {
    match memory.freeze(Box::new(shelf.clone())) {
        Ok(frozen) => frozen,
        Err(FreezeError::Protect(why)) => skip(&why),
        Err(error) => panic!("{error}"),
    }
}

/// Takes all frames; what each had at the moment of the freeze, and which of them were kept.
fn take(frozen: &Frozen) -> Vec<Option<Contents>> {
    let frames = frozen.memory().layout().frames();
    let mut found = Vec::new();
    for frame in 0..frames {
        let mut contents = [0; FRAME_SIZE];
        found.push(match frozen.take(Frame(frame), &mut contents).expect("once") {
            Taken::Contents => Some(contents),
            Taken::Zero => Some([0; FRAME_SIZE]),
            Taken::Kept => None,
            Taken::Absent(_) => panic!("nothing is absent"),
        });
    }
    found
}

/// What a case sees between ASKs.
#[derive(Default)]
struct Moment {
    expected: Vec<Contents>,
    shelf: Shelf,
    frozen: Option<Arc<Frozen>>,
    taking: Option<JoinHandle<Vec<Option<Contents>>>>,
}

impl Moment {
    fn begin(memory: &Arc<GuestMemory>, view: &DeviceView, meanwhile: bool) -> Self {
        scribble(view);
        memory.catch_up();
        let expected = all(memory);
        let shelf = Shelf::default();
        let frozen = Arc::new(freeze(memory, &shelf));
        let taking = meanwhile.then(|| {
            let frozen = Arc::clone(&frozen);
            thread::spawn(move || take(&frozen))
        });
        Self { expected, shelf, frozen: Some(frozen), taking }
    }

    /// Compares. Which frames were kept.
    fn end(&mut self) -> BTreeSet<u32> {
        let frozen = self.frozen.take().expect("begun");
        let found = match self.taking.take() {
            Some(taking) => taking.join().expect("no panic"),
            None => take(&frozen),
        };
        let shelf = self.shelf.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_right = |frame: u32| {
            let found = found[frame as usize].as_ref().or_else(|| shelf.get(&frame));
            found == Some(&self.expected[frame as usize])
        };
        let wrong: Vec<u32> = (0..found.len() as u32).filter(|&frame| !is_right(frame)).collect();
        assert!(wrong.is_empty(), "frames {wrong:x?} are not as they were");
        assert_eq!(frozen.kept() as usize, shelf.len());
        shelf.keys().copied().collect()
    }
}

/// Freezes after ASK 1 and compares after ASK 2, as often as the payload asks.
fn run(rig: &mut Rig, meanwhile: bool) -> Vec<BTreeSet<u32>> {
    let (memory, view) = (Arc::clone(&rig.memory), rig.view.clone());
    rig.write(window(CODE_PAGE), &[0xb0, 0x77, 0xc3]);
    let moment = Mutex::new(Moment::default());
    let kept = Mutex::new(Vec::new());
    rig.run_asking(&|value| {
        let mut moment = moment.lock().unwrap_or_else(PoisonError::into_inner);
        if value == 1 {
            *moment = Moment::begin(&memory, &view, meanwhile);
        } else {
            kept.lock().expect("no panic").push(moment.end());
            let changed = all(&memory);
            let mut same = written();
            same.retain(|&frame| changed[frame as usize] == moment.expected[frame as usize]);
            assert!(same.is_empty(), "the payload does not write {same:x?}");
        }
    });
    kept.into_inner().expect("no panic")
}

fn payload(a: &mut CodeAssembler) -> Asm {
    rounds(a, WARM)?;
    a.ask(1)?;
    rounds(a, ROUNDS)?;
    a.ask(2)
}

/// Nothing is taken before all is overwritten: so all of that is kept.
fn afterwards(engine: &dyn Engine) {
    let kept = run(&mut Rig::with(engine, payload), false);
    assert!(kept[0].is_superset(&written()), "{:x?} of {:x?}", kept[0], written());
}

/// As the guest writes, somebody takes.
fn meanwhile(engine: &dyn Engine) {
    run(&mut Rig::with(engine, payload), true);
}

fn anonymous(engine: &dyn Engine) {
    let mut rig = Rig::anonymous(engine, payload);
    let kept = run(&mut rig, false);
    assert!(kept[0].is_superset(&written()), "{:x?} of {:x?}", kept[0], written());
    assert!(rig.memory.is_anonymous());
}

fn anonymous_meanwhile(engine: &dyn Engine) {
    run(&mut Rig::anonymous(engine, payload), true);
}

/// One freeze after the other, of the same guest.
fn again(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        let mut again = a.create_label();
        a.mov(r8d, 3)?;
        a.set_label(&mut again)?;
        payload(a)?;
        a.dec(r8d)?;
        a.jnz(again)
    });
    let kept = run(&mut rig, false);
    assert_eq!(kept.len(), 3);
    assert!(kept.iter().all(|kept| kept.is_superset(&written())));
}

/// A freeze that ends while the guest writes holds nobody up, and nothing that it writes is lost.
fn given_up(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        rounds(a, WARM)?;
        a.ask(1)?;
        rounds(a, ROUNDS * 4)?;
        a.ask(2)?;
        rounds(a, 2)
    });
    rig.write(window(CODE_PAGE), &[0xb0, 0x77, 0xc3]);
    let (memory, view) = (Arc::clone(&rig.memory), rig.view.clone());
    let shelf = Shelf::default();
    let over = Arc::new(AtomicBool::new(false));
    let ending = Mutex::new(None);
    rig.run_asking(&|value| {
        let mut ending = ending.lock().unwrap_or_else(PoisonError::into_inner);
        if value == 1 {
            scribble(&view);
            let (frozen, over) = (freeze(&memory, &shelf), Arc::clone(&over));
            *ending = Some(thread::spawn(move || {
                while frozen.kept() < 5 {
                    thread::yield_now();
                }
                drop(frozen);
                over.store(true, Ordering::SeqCst);
            }));
        } else {
            ending.take().expect("begun").join().expect("no panic");
        }
    });
    assert!(over.load(Ordering::SeqCst) && !memory.is_frozen());
}
