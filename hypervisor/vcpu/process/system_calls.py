"""Linux's system calls on x86-64 (asm/unistd_64.h) that a confined process may use, by what they are for.

What is not here is refused, however harmless: whatever reaches other processes or the machine's state, gives
privileges, or changes what belongs to a file rather than to an open file (chmod, chown, utime, xattrs, truncate
by name), since Landlock does not restrict that.
"""

from __future__ import annotations

from typing import Final

# fmt: off
FILES: Final = {
    "read": 0, "write": 1, "open": 2, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "lseek": 8,
    "pread64": 17, "pwrite64": 18, "readv": 19, "writev": 20, "access": 21, "pipe": 22, "dup": 32,
    "dup2": 33, "sendfile": 40, "flock": 73, "fsync": 74, "fdatasync": 75, "ftruncate": 77,
    "getdents": 78, "getcwd": 79, "chdir": 80, "fchdir": 81, "rename": 82, "mkdir": 83, "rmdir": 84,
    "creat": 85, "link": 86, "unlink": 87, "symlink": 88, "readlink": 89, "umask": 95, "statfs": 137,
    "fstatfs": 138, "readahead": 187, "getxattr": 191, "lgetxattr": 192, "fgetxattr": 193,
    "listxattr": 194, "llistxattr": 195, "flistxattr": 196, "getdents64": 217, "fadvise64": 221,
    "openat": 257, "mkdirat": 258, "newfstatat": 262, "unlinkat": 263, "renameat": 264, "linkat": 265,
    "symlinkat": 266, "readlinkat": 267, "faccessat": 269, "sync_file_range": 277, "fallocate": 285,
    "dup3": 292, "pipe2": 293, "preadv": 295, "pwritev": 296, "renameat2": 316, "copy_file_range": 326,
    "preadv2": 327, "pwritev2": 328, "statx": 332, "close_range": 436, "openat2": 437, "faccessat2": 439,
}
MEMORY: Final = {
    "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "mremap": 25, "msync": 26, "mincore": 27,
    "madvise": 28, "mlock": 149, "munlock": 150, "mlockall": 151, "munlockall": 152, "memfd_create": 319,
    "membarrier": 324, "mlock2": 325, "pkey_mprotect": 329, "pkey_alloc": 330, "pkey_free": 331,
}
WAITING: Final = {
    "poll": 7, "select": 23, "epoll_create": 213, "epoll_wait": 232, "epoll_ctl": 233, "pselect6": 270,
    "ppoll": 271, "epoll_pwait": 281, "signalfd": 282, "timerfd_create": 283, "eventfd": 284,
    "timerfd_settime": 286, "timerfd_gettime": 287, "signalfd4": 289, "eventfd2": 290,
    "epoll_create1": 291, "epoll_pwait2": 441,
}
TIME: Final = {
    "nanosleep": 35, "getitimer": 36, "alarm": 37, "setitimer": 38, "gettimeofday": 96, "times": 100,
    "time": 201, "timer_create": 222, "timer_settime": 223, "timer_gettime": 224, "timer_getoverrun": 225,
    "timer_delete": 226, "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230,
}
THREADS: Final = {
    "sched_yield": 24, "exit": 60, "sched_getparam": 143, "sched_getscheduler": 145,
    "sched_get_priority_max": 146, "sched_get_priority_min": 147, "sched_rr_get_interval": 148,
    "gettid": 186, "futex": 202, "sched_getaffinity": 204, "set_tid_address": 218, "restart_syscall": 219,
    "exit_group": 231, "set_robust_list": 273, "getcpu": 309, "rseq": 334, "futex_waitv": 449,
}
SIGNALS: Final = {
    "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "pause": 34, "rt_sigpending": 127,
    "rt_sigtimedwait": 128, "rt_sigsuspend": 130, "sigaltstack": 131,
}
ITSELF: Final = {
    "getpid": 39, "wait4": 61, "uname": 63, "getrlimit": 97, "getrusage": 98, "sysinfo": 99,
    "getuid": 102, "getgid": 104, "geteuid": 107, "getegid": 108, "getppid": 110, "getpgrp": 111,
    "getgroups": 115, "getresuid": 118, "getresgid": 120, "getpgid": 121, "getsid": 124, "capget": 125,
    "getpriority": 140, "setrlimit": 160, "waitid": 247, "getrandom": 318,
}
OPEN_SOCKETS: Final = {
    "sendto": 44, "recvfrom": 45, "sendmsg": 46, "recvmsg": 47, "shutdown": 48, "getsockname": 51,
    "getpeername": 52, "getsockopt": 55, "recvmmsg": 299, "sendmmsg": 307,
}
NETWORK: Final = {
    "connect": 42, "accept": 43, "bind": 49, "listen": 50, "setsockopt": 54, "accept4": 288,
}
CONDITIONAL: Final = {
    "ioctl": 16, "socket": 41, "socketpair": 53, "setsockopt": 54, "clone": 56, "kill": 62, "fcntl": 72,
    "rt_sigqueueinfo": 129, "setpriority": 141, "prctl": 157, "sched_setaffinity": 203, "tgkill": 234,
    "rt_tgsigqueueinfo": 297, "prlimit64": 302,
}
"""allowed with some arguments only: seccomp.conditions"""
# fmt: on

ALLOWED: Final = FILES | MEMORY | WAITING | TIME | THREADS | SIGNALS | ITSELF | OPEN_SOCKETS

CLONE3: Final = 435
"""its flags are in memory, where a filter cannot look: it does not exist, so that the C library uses clone"""

LAST_KNOWN: Final = 450
"""set_mempolicy_home_node of Linux 5.17. What came later does not exist for a confined process, which makes
libraries fall back to what they did before"""
