#!/bin/bash
# Run in a guest from the disk image: stress-ng, each stressor on every processor for some seconds, with all
# results verified.
#
#     stress.sh SECONDS [STRESSOR...]
#
# Prints `ok NAME`, `skipped NAME` where the machine has no such thing, or `FAILED NAME` with what was said, and
# exits with the number of failures.
seconds=${1:-3}
shift
# By what they lean on: arithmetic; vectors; memory and its order; programs and threads; signals and
# faults; code that is written or jumped through; the rest of the kernel. Not shm: there is no /dev/shm here.
stressors=${*:-cpu matrix matrix-3d sparsematrix fp bsearch hsearch lsearch tsearch skiplist judy list
    qsort heapsort mergesort radixsort shellsort hash crypt randlist rotate tree zlib
    vecmath vecwide vecfp vecshuf memcpy str wcs
    vm vm-rw memthrash memrate stream cache cacheline l1cache prefetch malloc brk mmap mmapaddr mmapfixed mmapfork
    mprotect mremap remap munmap madvise mincore mlock rmap stack stackmmap pkey tlb-shootdown userfaultfd
    atomic dekker peterson lockbus misaligned mcontend membarrier tsc clock vdso
    fork vfork clone exec spawn daemon zombie wait kill session dynlib mutex futex rseq sem sem-sysv pthread
    affinity cyclic resched switch context pipe ring-pipe eventfd epoll sock sockpair poll
    sigsegv sigfpe sigtrap sigabrt signal signest sigfd sigio sigpending sigpipe sigq sigsuspend sigchld sigrt
    bad-altstack longjmp fault
    icache branch funccall funcret far-branch goto nop opcode priv-instr regs rdrand waitcpu x86cpuid
    x86syscall usersyscall
    syscall enosys sysbadaddr getrandom get set kcmp msg personality prctl ptrace rlimit seccomp shm-sysv splice
    timer timerfd hrtimers itimer nanosleep sleep yield schedpolicy}
failures=0
cd /tmp || exit 1
for name in $stressors; do
    more=()
    case $name in
    cpu | matrix | matrix-3d | memcpy | str | wcs | hash | vm) more=("--$name-method" all) ;;
    esac
    case $name in
    vm) more+=(--vm-bytes 16m) ;;
    malloc | mmap) more+=("--$name-bytes" 8m) ;;
    # By default what the host's caches or 256 MiB take, several times: more than the guest has.
    memrate) more+=(--memrate-bytes 16m) ;;
    stream) more+=(--stream-l3-size 1m) ;;
    esac
    said=$(stress-ng --verify --no-rand-seed --oom-avoid --timeout "$seconds" "--$name" 0 "${more[@]}" 2>&1)
    case $? in
    0) echo "ok $name" ;;
    # No resources, not implemented: the machine is too small for it, or has no such thing.
    3 | 4) echo "skipped $name" ;;
    *)
        echo "FAILED $name: $said"
        failures=$((failures + 1))
        ;;
    esac
done
exit $failures
