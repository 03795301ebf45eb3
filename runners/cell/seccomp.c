/* The system calls that no connector needs, refused by a seccomp filter. It is a table, sorted and searched by
   halves: what is allowed costs seven comparisons when the filter is made known to the kernel, and nothing in the
   calls themselves. */
#define _GNU_SOURCE
#include "cell.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#else
#error "no table of system calls for this machine"
#endif

/* Those that headers of older kernels do not have: from 424 on all machines number alike. */
enum {
  NR_IO_URING_SETUP = 425, NR_IO_URING_ENTER, NR_IO_URING_REGISTER, NR_OPEN_TREE, NR_MOVE_MOUNT, NR_FSOPEN, NR_FSCONFIG,
  NR_FSMOUNT, NR_FSPICK, NR_CLONE3 = 435, NR_PIDFD_GETFD = 438, NR_MOUNT_SETATTR = 442, NR_QUOTACTL_FD = 443,
  NR_MEMFD_SECRET = 447, NR_OPEN_TREE_ATTR = 467,
  NEWEST = 469, /* what comes after it is not known to be harmless, and libraries live without it; x32 is there too */
};

enum {
  NEW_NAMESPACES = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID |
                   CLONE_NEWNET,
  NEW_TIME = 0x80,
  TIOCLINUX_ = 0x541C,
};

enum when { ALWAYS, ANY_BIT, ONE_OF, NONE_OF };
enum set { ANYWHERE, BESIDE, SOCKETS_HOST, SOCKETS_INSIDE, SOCKETS_UNIX };

/* A call, the errno that it gets, and when: by one of its arguments. */
static struct refusal {
  long number;
  enum set set;
  int error;
  enum when when;
  int argument, count;
  uint32_t values[8];
} refusals[] = {
#define NO(name) {.number = SYS_##name, .error = EPERM}
#define NO_NR(name) {.number = NR_##name, .error = EPERM}
    /* into other processes */
    NO(ptrace), NO(process_vm_readv), NO(process_vm_writev), NO_NR(PIDFD_GETFD), NO(kcmp),
    /* into the kernel */
    NO(bpf), NO(perf_event_open), NO(kexec_load), NO(kexec_file_load), NO(init_module), NO(finit_module),
    NO(delete_module), NO(userfaultfd), NO(acct), NO(reboot), NO(swapon), NO(swapoff), NO(quotactl),
    NO_NR(QUOTACTL_FD), NO(syslog),
    NO(settimeofday), NO(clock_settime), NO(adjtimex), NO(clock_adjtime), NO(sethostname), NO(setdomainname),
    NO(vhangup), NO(lookup_dcookie), NO(nfsservctl),
#ifdef __x86_64__
    NO(iopl), NO(ioperm), NO(uselib),
#endif
    /* by way of rings, which no filter sees: a library then does without */
    {.number = NR_IO_URING_SETUP, .error = ENOSYS}, NO_NR(IO_URING_ENTER), NO_NR(IO_URING_REGISTER),
    /* memory that nobody can count */
    {.number = NR_MEMFD_SECRET, .error = ENOSYS},
    /* keys outlive processes, and are the user's */
    NO(add_key), NO(request_key), NO(keyctl),
    /* mounts, and files by number */
    NO(mount), NO(umount2), NO(pivot_root), NO_NR(OPEN_TREE), NO_NR(OPEN_TREE_ATTR), NO_NR(MOVE_MOUNT), NO_NR(FSOPEN),
    NO_NR(FSCONFIG), NO_NR(FSMOUNT), NO_NR(FSPICK), NO_NR(MOUNT_SETATTR), NO(name_to_handle_at), NO(open_by_handle_at),
    NO(fanotify_init),
    /* namespaces: a user namespace would give privileges back. The flags of clone3 are out of sight, and libraries
       use clone where there is none. */
    NO(setns), {.number = NR_CLONE3, .error = ENOSYS},
    {SYS_clone, ANYWHERE, EPERM, ANY_BIT, 0, 1, {NEW_NAMESPACES | CLONE_PARENT /* a sibling would be of nobody's run */}},
    {SYS_unshare, ANYWHERE, EPERM, ANY_BIT, 0, 1, {NEW_NAMESPACES | NEW_TIME}},
    /* typing into the terminal of somebody */
    {SYS_ioctl, ANYWHERE, EPERM, ONE_OF, 1, 2, {TIOCSTI, TIOCLINUX_}},
    /* Linux as it is, with or without random addresses (debuggers), 32 bits by name; or just asking */
    {SYS_personality, ANYWHERE, EPERM, NONE_OF, 0, 5, {0, 0x8, 0x40000, 0x20000, 0xffffffff}},
    /* the limits of the cell; of oneself they are set by the number 0 */
    {SYS_prlimit64, ANYWHERE, EPERM, NONE_OF, 0, 1, {0}},
    /* the share of the gateway; that of a cell in namespaces, which has capabilities, is safe */
    {SYS_setpriority, BESIDE, EPERM, ONE_OF, 0, 1, {PRIO_USER}},
    {SYS_setpriority, BESIDE, EPERM, NONE_OF, 1, 1, {0}},
    {SYS_sched_setaffinity, BESIDE, EPERM, NONE_OF, 0, 1, {0}},
    {SYS_sched_setscheduler, BESIDE, EPERM, NONE_OF, 0, 1, {0}},
    {SYS_sched_setparam, BESIDE, EPERM, NONE_OF, 0, 1, {0}},
    {SYS_sched_setattr, BESIDE, EPERM, NONE_OF, 0, 1, {0}},
    {SYS_ioprio_set, BESIDE, EPERM, NONE_OF, 1, 1, {0}},
    /* a port that somebody of this user listens on, as several workers do: some of their callers would come here.
       Next to it: sockets of kinds that no connector needs, each with much of a kernel behind it; those that know no network
       namespace, where there is to be no network; and without such a namespace all that are not of this machine
       alone */
    {SYS_setsockopt, SOCKETS_HOST, ENOPROTOOPT, ONE_OF, 2, 1, {SO_REUSEPORT}},
    {SYS_socket, SOCKETS_HOST, EAFNOSUPPORT, NONE_OF, 0, 8,
     {AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, AF_CAN, AF_BLUETOOTH, AF_VSOCK}},
    {SYS_socket, SOCKETS_INSIDE, EAFNOSUPPORT, NONE_OF, 0, 5, {AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET}},
    {SYS_socket, SOCKETS_UNIX, EPERM, NONE_OF, 0, 2, {AF_UNIX, AF_NETLINK}},
};

enum { COUNT = sizeof refusals / sizeof *refusals };

static struct sock_filter code[COUNT * 12];
static unsigned short length;

static void put(unsigned what, unsigned value, unsigned yes, unsigned no) {
  code[length++] = (struct sock_filter)BPF_JUMP((unsigned short)what, value, (unsigned char)yes, (unsigned char)no);
}

static void answer(int error) {
  put(BPF_RET | BPF_K, error ? SECCOMP_RET_ERRNO | (unsigned)error : SECCOMP_RET_ALLOW, 0, 0);
}

/* Refuse or go on, by the low half of an argument: nothing here uses more, and the kernel looks at no more of it. */
static void put_test(const struct refusal *one) {
  const unsigned test = one->when == ANY_BIT ? BPF_JSET : BPF_JEQ;
  if (one->when == ALWAYS) return answer(one->error);
  put(BPF_LD | BPF_W | BPF_ABS, (unsigned)offsetof(struct seccomp_data, args) + 8 * (unsigned)one->argument, 0, 0);
  for (int at = 0; at < one->count; at++)
    put(BPF_JMP | test | BPF_K, one->values[at], (unsigned)(one->count - at), 0);
  if (one->when != NONE_OF) put(BPF_JMP | BPF_JA, 1, 0, 0); /* else those that match have jumped over the answer */
  answer(one->error);
}

static void put_range(const struct refusal *from, size_t count) {
  unsigned short jump = length;
  size_t middle = count / 2; /* between two calls */
  while (middle < count && from[middle].number == from[0].number) middle++;
  while (middle < count && from[middle].number == from[middle - 1].number) middle--;
  if (middle == count) {
    put(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)from->number, 0, 0);
    for (size_t at = 0; at < count; at++) put_test(from + at);
    code[jump].jf = (unsigned char)(length - jump - 1);
    answer(0);
    return;
  }
  put(BPF_JMP | BPF_JGE | BPF_K, (unsigned)from[middle].number, 0, 1);
  put(BPF_JMP | BPF_JA, 0, 0, 0); /* further than a condition can jump */
  put_range(from, middle);
  code[jump + 1].k = (unsigned)(length - jump - 2);
  put_range(from + middle, count - middle);
}

static int by_number(const void *one, const void *other) {
  long difference = ((const struct refusal *)one)->number - ((const struct refusal *)other)->number;
  return (difference > 0) - (difference < 0);
}

static bool applies(enum set set, const struct sandbox *sandbox) {
  bool filtered = sandbox->wanted & FILTERED, no_network = sandbox->wanted & NO_NETWORK;
  switch (set) {
    case ANYWHERE: return filtered;
    case BESIDE: return filtered && !(sandbox->got & NAMESPACES);
    case SOCKETS_HOST: return filtered && !no_network;
    case SOCKETS_INSIDE: return filtered && sandbox->got & NO_NETWORK;
    default: return no_network && !(sandbox->got & NO_NETWORK);
  }
}

bool filter_enter(const struct sandbox *sandbox) {
  size_t count = 0;
  for (size_t at = 0; at < COUNT; at++)
    if (applies(refusals[at].set, sandbox)) refusals[count++] = refusals[at];
  qsort(refusals, count, sizeof *refusals, by_number);
  length = 0;
  put(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch), 0, 0);
  put(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0);
  answer(ENOSYS);
  put(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr), 0, 0);
  put(BPF_JMP | BPF_JGT | BPF_K, NEWEST, 0, 1);
  answer(ENOSYS);
  put_range(refusals, count);
  const struct sock_fprog program = {length, code};
  /* It is not there against what a processor guesses: without the flag older kernels slow all of it down. */
  return !syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &program);
}
