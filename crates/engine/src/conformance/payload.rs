//! Shorthands that payloads share.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::layout::{USER_STACK, selector};

/// Port whose 32-bit writes are the payload's report.
pub const LOG: u16 = 0xe0;
/// Port whose write ends the payload.
pub const DONE: u16 = 0xe4;
/// Port whose write has the case's closure called with the value, on the vCPU's thread.
pub const ASK: u16 = 0xe8;

/// What a piece of payload assembles to.
pub type Asm = Result<(), IcedError>;

/// x2APIC registers as MSRs (SDM volume 3, table 10-6).
pub mod apic {
    #![allow(missing_docs, reason = "the names are the manual's")]
    pub const ID: u32 = 0x802;
    pub const TPR: u32 = 0x808;
    pub const PPR: u32 = 0x80a;
    pub const EOI: u32 = 0x80b;
    pub const SVR: u32 = 0x80f;
    pub const ISR: u32 = 0x810;
    pub const IRR: u32 = 0x820;
    pub const ICR: u32 = 0x830;
    pub const LVT_TIMER: u32 = 0x832;
    pub const LVT_LINT0: u32 = 0x835;
    pub const INITIAL_COUNT: u32 = 0x838;
    pub const CURRENT_COUNT: u32 = 0x839;
    pub const DIVIDE: u32 = 0x83e;
    pub const SELF_IPI: u32 = 0x83f;
}

/// Shorthands that payloads share. All change EAX, EDX and, where MSRs are involved, ECX.
pub trait Payload {
    /// Logs `eax`.
    fn log_eax(&mut self) -> Asm;
    /// Logs `rax`, low half first. Changes RAX.
    fn log_rax(&mut self) -> Asm;
    /// Logs a constant.
    fn log(&mut self, value: u32) -> Asm;
    /// Has the case's closure called with `value`.
    fn ask(&mut self, value: u32) -> Asm;
    /// Ends the payload.
    fn done(&mut self) -> Asm;
    /// Runs `body` so that a fault in it ends it, and must be at its first instruction (R13, R15).
    fn fault(&mut self, body: impl FnOnce(&mut CodeAssembler) -> Asm) -> Asm;
    /// Points the mark (R13) at the next instruction.
    fn mark(&mut self) -> Asm;
    /// Runs `body` in user mode with `rflags`; a stack and all registers but RSP, R14 and RAX carry over.
    fn user_with(&mut self, rflags: u64, body: impl FnOnce(&mut CodeAssembler) -> Asm) -> Asm;
    /// Runs `body` in user mode.
    fn user(&mut self, body: impl FnOnce(&mut CodeAssembler) -> Asm) -> Asm;
    /// Writes an MSR.
    fn write_msr(&mut self, index: u32, value: u64) -> Asm;
    /// Reads an MSR to EDX:EAX and RAX.
    fn read_msr(&mut self, index: u32) -> Asm;
    /// Enables the local APIC.
    fn enable_apic(&mut self) -> Asm;
    /// Sets bits of CR4, changes RAX.
    fn set_cr4(&mut self, bits: u64) -> Asm;
    /// Clears bits of CR4, changes RAX.
    fn clear_cr4(&mut self, bits: u64) -> Asm;
    /// Sets bits of CR0, changes RAX.
    fn set_cr0(&mut self, bits: u64) -> Asm;
    /// Clears bits of CR0, changes RAX.
    fn clear_cr0(&mut self, bits: u64) -> Asm;
    /// Flushes translations that are not global, changes RAX.
    fn reload_cr3(&mut self) -> Asm;
    /// PUSHFQ, OR `bits`, POPFQ; changes nothing else but the status flags.
    fn set_flags(&mut self, bits: u32) -> Asm;
    /// Meets the other vCPU, which does the same: neither goes on before both are there. R11, 0 at first,
    /// counts the meetings, and the word at `address` those who came. Two that meet often run at the same
    /// time, also on a host that has other things to do.
    fn meet(&mut self, address: u64) -> Asm;
    /// Spins until the 64-bit word at `address` is at least `value`. Changes RAX.
    fn wait_for(&mut self, address: u64, value: i32) -> Asm;
}

impl Payload for CodeAssembler {
    fn log_eax(&mut self) -> Asm {
        self.mov(edx, u32::from(LOG))?;
        self.out(dx, eax)
    }

    fn log_rax(&mut self) -> Asm {
        self.log_eax()?;
        self.shr(rax, 32)?;
        self.out(dx, eax)
    }

    fn log(&mut self, value: u32) -> Asm {
        self.mov(eax, value)?;
        self.log_eax()
    }

    fn ask(&mut self, value: u32) -> Asm {
        self.mov(eax, value)?;
        self.mov(edx, u32::from(ASK))?;
        self.out(dx, eax)
    }

    fn done(&mut self) -> Asm {
        let mut here = self.create_label();
        self.mov(edx, u32::from(DONE))?;
        self.out(dx, eax)?;
        self.set_label(&mut here)?;
        self.jmp(here)
    }

    fn fault(&mut self, body: impl FnOnce(&mut CodeAssembler) -> Asm) -> Asm {
        let mut after = self.create_label();
        self.lea(r15, ptr(after))?;
        self.mark()?;
        body(self)?;
        self.set_label(&mut after)?;
        self.zero_bytes()
    }

    fn mark(&mut self) -> Asm {
        let mut here = self.create_label();
        self.lea(r13, ptr(here))?;
        self.set_label(&mut here)?;
        self.zero_bytes()
    }

    fn user_with(&mut self, rflags: u64, body: impl FnOnce(&mut CodeAssembler) -> Asm) -> Asm {
        let (mut inside, mut after) = (self.create_label(), self.create_label());
        self.lea(r14, ptr(after))?;
        self.lea(rax, ptr(inside))?;
        self.push(i32::from(selector::USER_DATA))?;
        self.push(USER_STACK as i32)?;
        self.push((rflags | x86::rflags::FIXED) as i32)?;
        self.push(i32::from(selector::USER_CODE))?;
        self.push(rax)?;
        self.iretq()?;
        self.set_label(&mut inside)?;
        self.zero_bytes()?;
        body(self)?;
        self.int3()?;
        self.set_label(&mut after)?;
        self.zero_bytes()
    }

    fn user(&mut self, body: impl FnOnce(&mut CodeAssembler) -> Asm) -> Asm {
        self.user_with(0, body)
    }

    fn write_msr(&mut self, index: u32, value: u64) -> Asm {
        self.mov(ecx, index)?;
        self.mov(eax, value as u32)?;
        self.mov(edx, (value >> 32) as u32)?;
        self.wrmsr()
    }

    fn read_msr(&mut self, index: u32) -> Asm {
        self.mov(ecx, index)?;
        self.rdmsr()?;
        self.shl(rdx, 32)?;
        self.or(rax, rdx)?;
        self.shr(rdx, 32)
    }

    fn enable_apic(&mut self) -> Asm {
        self.write_msr(apic::SVR, 0x100 | u64::from(super::stubs::SPURIOUS))
    }

    fn set_cr4(&mut self, bits: u64) -> Asm {
        self.mov(rax, cr4)?;
        self.or(rax, bits as i32)?;
        self.mov(cr4, rax)
    }

    fn clear_cr4(&mut self, bits: u64) -> Asm {
        self.mov(rax, cr4)?;
        self.and(rax, !bits as i32)?;
        self.mov(cr4, rax)
    }

    fn set_cr0(&mut self, bits: u64) -> Asm {
        self.mov(rax, cr0)?;
        self.or(eax, bits as u32)?;
        self.mov(cr0, rax)
    }

    fn clear_cr0(&mut self, bits: u64) -> Asm {
        self.mov(rax, cr0)?;
        self.and(eax, !bits as u32)?;
        self.mov(cr0, rax)
    }

    fn reload_cr3(&mut self) -> Asm {
        self.mov(rax, cr3)?;
        self.mov(cr3, rax)
    }

    fn set_flags(&mut self, bits: u32) -> Asm {
        self.pushfq()?;
        self.or(dword_ptr(rsp), bits)?;
        self.popfq()
    }

    fn meet(&mut self, address: u64) -> Asm {
        let (mut again, mut there) = (self.create_label(), self.create_label());
        self.add(r11, 2)?;
        self.lock().inc(qword_ptr(address))?;
        self.set_label(&mut again)?;
        self.cmp(qword_ptr(address), r11)?;
        self.jge(there)?;
        self.pause()?;
        self.jmp(again)?;
        self.set_label(&mut there)?;
        self.zero_bytes()
    }

    fn wait_for(&mut self, address: u64, value: i32) -> Asm {
        let (mut again, mut there) = (self.create_label(), self.create_label());
        self.set_label(&mut again)?;
        self.cmp(qword_ptr(address), value)?;
        self.jge(there)?;
        self.pause()?;
        self.jmp(again)?;
        self.set_label(&mut there)?;
        self.zero_bytes()
    }
}
