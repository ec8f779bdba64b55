//! The guest's processes, by its kernel's list of them.

use std::collections::HashSet;

use memory::Gpa;

use super::address::AddressSpace;
use super::error::{AddressError, KernelError};
use super::types::Types;

/// Processes that are listed: a guest that has more, or whose list never ends, shows the first ones.
const PROCESSES_MAX: usize = 1 << 16;
/// `TASK_COMM_LEN`, with the zero byte.
const NAME_MAX: usize = 16;

/// A process: a group of threads, with the name of the first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its name: at most 15 characters, none of them a control character.
    pub name: String,
    /// Root of its page tables, as CR3 has it; `None` for a thread of the kernel.
    pub page_table: Option<Gpa>,
    /// Address of its `struct task_struct`.
    pub task: u64,
}

/// What the list came to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Processes {
    /// In the order of the list: by their start.
    pub list: Vec<Process>,
    /// Why the list ends early, if it does.
    pub cut: Option<String>,
}

/// Offsets in `struct task_struct`, and of the page tables in its `mm`.
struct TaskLayout {
    tasks: u64,
    pid: u64,
    name: u64,
    mm: u64,
    pgd: u64,
}

impl TaskLayout {
    fn of(types: &Types) -> Option<Self> {
        let offset = |name, path| types.offset(name, path).map(|offset| offset as u64);
        Some(Self {
            tasks: offset("task_struct", "tasks")?,
            pid: offset("task_struct", "tgid")?,
            name: offset("task_struct", "comm")?,
            mm: offset("task_struct", "mm")?,
            pgd: offset("mm_struct", "pgd")?,
        })
    }
}

/// Follows the list of tasks from the one at `first`, which is the idle task and no process.
pub(super) fn read(
    space: &AddressSpace,
    types: &Types,
    first: u64,
) -> Result<Processes, KernelError> {
    let layout = TaskLayout::of(types).ok_or_else(|| KernelError::Unknown {
        what: "processes",
        why: "BTF has no complete task_struct".to_owned(),
    })?;
    let head = first.wrapping_add(layout.tasks);
    let mut processes = Processes::default();
    let mut seen = HashSet::new();
    let mut entry = space.u64(head)?;
    while entry != head {
        if !seen.insert(entry) {
            processes.cut = Some("the list runs in a circle".to_owned());
        } else if processes.list.len() == PROCESSES_MAX {
            processes.cut = Some(format!("more than {PROCESSES_MAX}"));
        } else {
            match step(space, &layout, entry) {
                Ok((process, next)) => {
                    processes.list.push(process);
                    entry = next;
                    continue;
                }
                Err(error) => processes.cut = Some(error.to_string()),
            }
        }
        break;
    }
    Ok(processes)
}

/// The process whose list entry is at `entry`, and the next entry.
fn step(
    space: &AddressSpace,
    layout: &TaskLayout,
    entry: u64,
) -> Result<(Process, u64), AddressError> {
    let task = entry.wrapping_sub(layout.tasks);
    let mut name = [0; NAME_MAX];
    space.read(task.wrapping_add(layout.name), &mut name)?;
    let page_table = match space.u64(task.wrapping_add(layout.mm))? {
        0 => None,
        // It may be gone by now: then nothing is known of it.
        mm => space.u64(mm.wrapping_add(layout.pgd)).and_then(|pgd| space.translate(pgd)).ok(),
    };
    let process = Process {
        pid: space.u32(task.wrapping_add(layout.pid))?,
        name: text(&name),
        page_table,
        task,
    };
    Ok((process, space.u64(entry)?))
}

fn text(name: &[u8]) -> String {
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    let text = String::from_utf8_lossy(&name[..end.min(NAME_MAX - 1)]);
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
