//! Branches: to a place in the page, into another page, and through a register or memory.

use iced_x86::{Instruction, OpKind};

use super::asm::{Address, Asm, Condition, Label};
use super::fields::{SP, T0, T1, field};
use super::flags::{ALL, Flags};
use super::select::Kind;
use super::stub::{Stub, Work};
use super::translate::{BRANCH, Step, Translator};

const RCX: u8 = 1;

impl Translator<'_> {
    /// Whether the path goes on behind it, as with the others.
    pub(super) fn jump(&mut self, step: &Step) -> bool {
        let target = target_of(&step.instr);
        self.go_on(step, target)
    }

    /// Pushes the return address.
    pub(super) fn call(&mut self, step: &Step) -> bool {
        let back = self.push_return_address(step);
        if step.goes_on.is_some() {
            if self.is_paired(step) {
                self.pair_on_path(step);
            }
            // Executed outside, it has gone where the path goes on.
            self.asm.bind(back);
            return self.go_on(step, target_of(&step.instr));
        }
        let paired = self.is_paired(step);
        if paired {
            self.push_pair();
        }
        self.forget_flags(step.after);
        let needed = paired.then(|| self.needed_behind(step));
        self.branch_by(target_of(&step.instr), needed);
        if let Some(needed) = needed {
            self.land(step, needed);
        }
        self.asm.bind(back);
        self.go_by_rip(step);
        false
    }

    /// To `target`, which may be on the path.
    fn go_on(&mut self, step: &Step, target: i64) -> bool {
        if step.goes_on.is_none() {
            self.forget_flags(step.after);
            self.branch(target);
            return false;
        }
        true
    }

    /// Flags that were put aside need not come back: only `needed` are.
    pub(super) fn forget_flags(&mut self, needed: Flags) {
        self.aside &= needed != 0;
    }

    /// Destroys T0 and T1. Returns where it goes on if the call was executed outside.
    pub(super) fn push_return_address(&mut self, step: &Step) -> Label {
        self.asm.lea(T0, Address::at(SP, -8));
        let back = self.check_stack(step, 8, true);
        self.address_in_page(T1, step.next.into());
        self.asm.store(Address::at(T0, 0), T1);
        self.asm.lea(SP, Address::at(SP, -8));
        back
    }

    /// `to` = the linear address `offset` bytes from the start of the page. Touches no flag.
    pub(super) fn address_in_page(&mut self, to: u8, offset: i64) {
        self.asm.load_field(to, field!(page));
        self.asm.lea(to, Address::at(to, offset as i32));
    }

    pub(super) fn indirect(&mut self, step: &Step) {
        let instr = &step.instr;
        let mut moved = 0;
        match step.kind {
            Kind::Return => {
                moved = 8 + if instr.op_count() == 1 { instr.immediate16() } else { 0 };
                let back = self.pop_target(step);
                self.asm.lea(SP, Address::at(SP, i32::from(moved)));
                if self.pairs {
                    self.go_back(step, moved);
                } else {
                    self.go_to_t0(step.offset, moved);
                }
                let Some(back) = back else {
                    self.aside = false;
                    return;
                };
                self.asm.bind(back);
            }
            Kind::JumpTo | Kind::CallTo => {
                let back = self.load_target(step);
                if step.kind == Kind::CallTo {
                    moved = 0u16.wrapping_sub(8);
                    let pushed = self.push_return(step);
                    self.call_t0(step, moved);
                    self.asm.bind(pushed);
                } else {
                    self.go_to_t0(step.offset, moved);
                }
                if let Some(back) = back {
                    self.asm.bind(back);
                }
            }
            _ => unreachable!("not an indirect branch"),
        }
        self.go_by_rip(step);
    }

    /// T0 is what is on top of the guest's stack, and the flags are aside if somebody may look at them.
    fn pop_target(&mut self, step: &Step) -> Option<Label> {
        let (top, back) = self.on_stack(step, 0);
        self.put_flags_aside(step.before);
        self.asm.load(T0, top);
        back
    }

    /// T0 is the target of a jump or call through a register or memory.
    pub(super) fn load_target(&mut self, step: &Step) -> Option<Label> {
        if step.instr.op0_kind() == OpKind::Register {
            let value = self.value_of(step.instr.op0_register().number() as u8, T0);
            if value != T0 {
                self.asm.mov(T0, value);
            }
            return None;
        }
        if self.address(step).is_none() {
            // A displacement out of reach: the handler does it.
            self.take_flags_back();
            let back = self.asm.label();
            self.call_out(step.len, step.offset);
            self.asm.jump(back);
            return Some(back);
        }
        let back = self.check_any(step, 8, false);
        self.asm.load(T0, Address::at(T0, 0));
        Some(back)
    }

    /// Pushes the return address and keeps the target in T0, which must be an address before anything is
    /// written.
    pub(super) fn push_return(&mut self, step: &Step) -> Label {
        self.put_flags_aside(step.before);
        let no_address = self.asm.label();
        self.asm.mov(T1, T0);
        self.asm.shift_right_signed(T1, 47);
        self.asm.lea(T1, Address::at(T1, 1));
        self.asm.compare(T1, 1);
        self.asm.jump_if(Condition::A, no_address);
        self.asm.store_field(field!(target), T0);
        let back = self.push_return_address(step);
        self.asm.load_field(T0, field!(target));
        self.stubs.push(Stub { label: no_address, work: self.work_outside(step, back) });
        back
    }

    /// As [`Self::go_to_t0`], with the return address in T1, which was pushed.
    fn call_t0(&mut self, step: &Step, moved: u16) {
        if !self.is_paired(step) {
            return self.go_to_t0(step.offset, moved);
        }
        self.push_pair();
        self.put_flags_aside(ALL);
        self.aside = false;
        self.note_branch(step.offset, moved);
        let entry = self.asm.table_entry();
        let needed = self.needed_behind(step);
        self.prepare_landing(4, needed);
        self.asm.call_memory(entry);
        self.land(step, needed);
    }

    /// Goes to address T0. `moved`: by how much the branch has moved RSP.
    pub(super) fn go_to_t0(&mut self, offset: u32, moved: u16) {
        self.put_flags_aside(ALL);
        self.aside = false;
        self.note_branch(offset, moved);
        self.asm.jump_by_table();
    }

    /// The branch at `step` was executed outside: it goes on by RIP, with the flags in RFLAGS.
    pub(super) fn go_by_rip(&mut self, step: &Step) {
        self.aside = false;
        self.note_branch(step.offset, 0);
        self.asm.jump_to(self.thunks.by_rip);
    }

    /// An indirect branch is on its way.
    pub(super) fn note_branch(&mut self, offset: u32, moved: u16) {
        let from = offset | BRANCH | u32::from(moved) << 16;
        self.asm.store_field_constant(field!(from), from as i32);
    }

    /// Goes to `target`, relative to the page.
    pub(super) fn branch(&mut self, target: i64) {
        self.branch_by(target, None);
    }

    /// `call`: by the host's CALL, behind which these flags are needed.
    fn branch_by(&mut self, target: i64, call: Option<Flags>) {
        if !(0..4096).contains(&target) {
            return self.branch_far(target, call);
        }
        self.take_flags_back();
        let (round, needs) = self.round;
        let live = self.vectors & needs == needs;
        if let Some(strip) = self.strip.filter(|_| self.is_loop(target) && call.is_none() && live) {
            return self.asm.jump(strip);
        }
        if self.is_way_back(target) {
            self.poll(target);
        }
        match (self.is_loop(target), call) {
            (true, None) => return self.asm.jump_to(if live { round } else { self.inner }),
            (true, Some(needed)) => {
                self.prepare_landing(5, needed);
                return self.asm.call_to(self.inner);
            }
            (false, _) => {}
        }
        let site = self.link(call, |site| Work::Near { site, target });
        self.exits.push((site, target as u16));
    }

    fn branch_far(&mut self, target: i64, call: Option<Flags>) {
        self.put_flags_aside(ALL);
        self.aside = false;
        self.address_in_page(T0, target);
        let _ = self.link(call, |site| Work::Far { site });
    }

    /// A jump to `work`, which is told where it stands, until it is linked.
    pub(super) fn jump_to_link(&mut self, work: impl FnOnce(u32) -> Work) -> u32 {
        self.link(None, work)
    }

    fn link(&mut self, call: Option<Flags>, work: impl FnOnce(u32) -> Work) -> u32 {
        let label = self.asm.label();
        // The displacement is replaced while others run.
        if let Some(needed) = call {
            self.prepare_landing(5, needed);
        }
        self.asm.keep_together(5, 64);
        match call {
            Some(_) => self.asm.call(label),
            None => self.asm.jump(label),
        }
        let site = self.asm.here() - 4;
        self.stubs.push(Stub { label, work: work(site) });
        site
    }

    /// Whether the path goes on behind it, in one of the two directions.
    pub(super) fn branch_if(&mut self, step: &Step) -> bool {
        self.take_flags_back();
        let target = target_of(&step.instr);
        let condition = condition_bits(step.instr.condition_code() as u8);
        let through = i64::from(step.next);
        let Some(next) = step.goes_on.map(i64::from) else {
            if self.is_loop(target) {
                // The way round is the one that runs in line.
                self.leave_if(condition ^ 1, through);
                self.branch(target);
            } else {
                self.leave_if(condition, target);
                self.branch(through);
            }
            return false;
        };
        if next == through {
            self.leave_if(condition, target);
            return true;
        }
        self.leave_if(condition ^ 1, through);
        true
    }

    /// Leaves the path for `target` if the condition holds.
    pub(super) fn leave_if(&mut self, condition: u8, target: i64) {
        let label = self.asm.label();
        if let Some(borrowed) = self.in_strip.clone().filter(|borrowed| !borrowed.is_empty()) {
            self.asm.jump_if(condition, label);
            let work = Box::new(Work::Branch { target });
            return self.stubs.push(Stub { label, work: Work::GiveBack { borrowed, work } });
        }
        let forward = !self.is_way_back(target) && target < 4096;
        if forward {
            self.asm.keep_together(6, 64);
        }
        self.asm.jump_if(condition, label);
        let work = if forward {
            let site = self.asm.here() - 4;
            self.exits.push((site, target as u16));
            Work::Near { site, target }
        } else {
            Work::Branch { target }
        };
        self.stubs.push(Stub { label, work });
    }

    /// Whether somebody who is wanted must be let out on the way to `target`: whoever runs for ever in a page comes to
    /// a path's head from one further behind, again and again.
    fn is_way_back(&self, target: i64) -> bool {
        target <= self.head.into()
    }

    /// Whether a branch to `target` stays inside.
    fn is_loop(&self, target: i64) -> bool {
        self.close_loops && target == i64::from(self.head)
    }

    /// Leaves where the core is wanted.
    pub(super) fn poll(&mut self, target: i64) {
        let wanted = self.asm.label();
        if self.live.iter().any(|&(offset, live)| i64::from(offset) == target && live == 0) {
            // The flags are overwritten there.
            self.asm.load_field(T0, field!(pending));
            self.asm.compare_byte_with_0(Address::at(T0, 0));
            self.asm.jump_if(Condition::NE, wanted);
            self.stubs.push(Stub { label: wanted, work: Work::Wanted { target, aside: false } });
            return;
        }
        self.asm.store_field(field!(rcx), RCX);
        self.asm.load_field(RCX, field!(pending));
        self.asm.load_byte(RCX, Address::at(RCX, 0));
        self.asm.skip_if_rcx_is_0(5);
        self.asm.jump(wanted);
        self.asm.load_field(RCX, field!(rcx));
        self.stubs.push(Stub { label: wanted, work: Work::Wanted { target, aside: true } });
    }
}

/// Target of a direct branch, relative to the page.
pub(super) fn target_of(instr: &Instruction) -> i64 {
    instr.near_branch_target() as i64
}

impl Asm {
    /// By the table for indirect branches, to T0. Flags are aside.
    pub(super) fn jump_by_table(&mut self) {
        let entry = self.table_entry();
        self.jump_memory(entry);
    }

    /// Where the table says how to reach T0. Destroys T1.
    fn table_entry(&mut self) -> Address {
        self.low_16(T1, T0);
        self.shift_left_32(T1, 3);
        self.add_field(T1, field!(jumps));
        Address::at(T1, 0)
    }
}

/// The bits of Jcc for iced's [`iced_x86::ConditionCode`], which starts with none.
pub(super) fn condition_bits(code: u8) -> u8 {
    code - 1
}
