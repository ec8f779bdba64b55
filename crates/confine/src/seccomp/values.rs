//! Values of arguments by their names in the kernel's headers.

mod kvm;

/// Pairs of name and value.
macro_rules! table {
    ($($name:ident)*) => { &[$((stringify!($name), libc::$name as u64)),*] };
}

/// The value of a name, of several joined by `|`, or of a decimal number.
pub(super) fn value(text: &str) -> Option<u64> {
    if text.contains('|') {
        return text.split('|').map(value).try_fold(0, |all, one| Some(all | one?));
    }
    let named = |(name, value): &(&str, u64)| (*name == text).then_some(*value);
    LIBC.iter()
        .chain(LINUX)
        .find_map(named)
        .or_else(|| (text == "SIGRTMIN").then(|| libc::SIGRTMIN() as u64))
        .or_else(|| kvm::request(text))
        .or_else(|| text.parse().ok())
}

const LIBC: &[(&str, u64)] = table! {
    AF_UNIX
    CLOCK_MONOTONIC
    CLONE_FILES CLONE_FS CLONE_IO CLONE_NEWCGROUP CLONE_NEWIPC CLONE_NEWNET CLONE_NEWNS CLONE_NEWPID
    CLONE_NEWUSER CLONE_NEWUTS CLONE_PARENT CLONE_PTRACE CLONE_SIGHAND CLONE_THREAD CLONE_UNTRACED
    CLONE_VFORK CLONE_VM
    EACCES ENOSYS
    FALLOC_FL_KEEP_SIZE FALLOC_FL_PUNCH_HOLE
    FIONBIO
    F_ADD_SEALS F_DUPFD_CLOEXEC F_GETFD F_GET_SEALS
    MADV_COLLAPSE MADV_DONTDUMP MADV_DONTFORK MADV_DONTNEED MADV_FREE MADV_HUGEPAGE
    MADV_MERGEABLE MADV_UNMERGEABLE
    PRIO_PROCESS
    PROT_EXEC
    PR_SET_NAME PR_SET_NO_NEW_PRIVS
    SECCOMP_SET_MODE_FILTER
    SIGABRT
    SOL_SOCKET SO_RCVTIMEO SO_SNDTIMEO
    STDIN_FILENO
    TCGETS TCGETS2 TCSETS TCSETS2 TIOCGWINSZ
};

/// What libc does not name: include/uapi/linux/{prctl,if_tun,sockios,userfaultfd}.h.
const LINUX: &[(&str, u64)] = &[
    ("PR_GET_AUXV", 0x4155_5856),
    ("SIOCGIFINDEX", 0x8933),
    ("SIOCGIFMTU", 0x8921),
    ("TUNSETIFF", 0x4004_54ca),
    ("TUNSETOFFLOAD", 0x4004_54d0),
    ("TUNSETVNETHDRSZ", 0x4004_54d8),
    ("UFFDIO_API", 0xc018_aa3f),
    ("UFFDIO_COPY", 0xc028_aa03),
    ("UFFDIO_REGISTER", 0xc020_aa00),
    ("UFFDIO_UNREGISTER", 0x8010_aa01),
    ("UFFDIO_WAKE", 0x8010_aa02),
    ("UFFDIO_WRITEPROTECT", 0xc018_aa06),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_numbers_and_sums_have_values() {
        assert_eq!(value("PROT_EXEC"), Some(4));
        assert_eq!(value("17"), Some(17));
        assert_eq!(value("FALLOC_FL_PUNCH_HOLE|FALLOC_FL_KEEP_SIZE"), Some(3));
        assert_eq!(value("FALLOC_FL_PUNCH_HOLE|FALLOC_FL_KEEP"), None);
        assert_eq!(value(""), None);
    }
}
