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
# faults; code that is written or jumped through; the rest of the kernel.
stressors=${*:-cpu matrix matrix-3d fp bsearch qsort heapsort radixsort hash crypt rotate tree zlib
    vecmath vecwide vecfp vecshuf memcpy str wcs
    vm vm-rw memthrash malloc mmap mmapfork mprotect mremap munmap madvise stack atomic dekker peterson
    lockbus misaligned mcontend membarrier tsc clock vdso
    fork vfork clone exec dynlib mutex futex sem sem-sysv pthread switch context pipe ring-pipe eventfd sock poll
    sigsegv sigfpe sigtrap sigabrt sigsuspend sigchld sigrt bad-altstack longjmp fault
    icache branch funccall funcret far-branch goto regs x86cpuid x86syscall
    syscall getrandom get set ptrace seccomp timer itimer nanosleep yield schedpolicy}
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
