/* Asks the kernel for what a cell is to refuse: "attack" tells what came of each call, "attack NAME" does one
   thing. It asks only under a filter, and so that nothing comes of it where there is a hole in that. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/msg.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

static char space[4096] __attribute__((aligned(64)));
#define HERE ((long)space)
#define PATH ((long)"/")
#define NOWHERE ((long)"/nowhere/at/all")

static const struct {
  const char *name;
  long number, arguments[6];
} calls[] = {
    {"ptrace", SYS_ptrace, {PTRACE_TRACEME}},
    {"process_vm_readv", SYS_process_vm_readv, {1}},
    {"process_vm_writev", SYS_process_vm_writev, {1}},
    {"pidfd_getfd", 438, {0}},
    {"kcmp", SYS_kcmp, {1, 1}},
    {"bpf", SYS_bpf, {0, HERE, 64}},
    {"perf_event_open", SYS_perf_event_open, {HERE, 0, -1, -1}},
    {"userfaultfd", SYS_userfaultfd, {1}},
    {"io_uring_setup", 425, {8, HERE}},
    {"add_key", SYS_add_key, {0}},
    {"keyctl", SYS_keyctl, {-1}},
    {"request_key", SYS_request_key, {0}},
    {"mount", SYS_mount, {(long)"tmpfs", NOWHERE, (long)"tmpfs"}},
    {"bind", SYS_mount, {PATH, NOWHERE, 0, 4096}},
    {"umount2", SYS_umount2, {NOWHERE, 2}},
    {"pivot_root", SYS_pivot_root, {NOWHERE, NOWHERE}},
    {"open_tree", 428, {-100, PATH, 1}},
    {"move_mount", 429, {-100, NOWHERE, -100, NOWHERE}},
    {"fsopen", 430, {(long)"tmpfs"}},
    {"fsconfig", 431, {-1}},
    {"fsmount", 432, {-1}},
    {"fspick", 433, {-100, PATH}},
    {"mount_setattr", 442, {-100, NOWHERE, 0, HERE, 32}},
    {"unshare user", SYS_unshare, {CLONE_NEWUSER}},
    {"unshare mounts", SYS_unshare, {CLONE_NEWNS}},
    {"unshare time", SYS_unshare, {0x80}},
    {"clone user", SYS_clone, {CLONE_NEWUSER | SIGCHLD}},
    {"clone network", SYS_clone, {CLONE_NEWNET | SIGCHLD}},
    {"clone3", 435, {HERE, 64}},
    {"setns", SYS_setns, {0}},
    {"kexec_load", SYS_kexec_load, {0}},
    {"init_module", SYS_init_module, {HERE, 64, HERE}},
    {"finit_module", SYS_finit_module, {0, HERE}},
    {"delete_module", SYS_delete_module, {HERE}},
    {"swapon", SYS_swapon, {HERE}},
    {"swapoff", SYS_swapoff, {HERE}},
    {"reboot", SYS_reboot, {0}},
    {"acct", SYS_acct, {NOWHERE}},
    {"quotactl", SYS_quotactl, {0}},
    {"syslog", SYS_syslog, {99}},
    {"name_to_handle_at", SYS_name_to_handle_at, {-100, PATH, HERE, HERE + 512}},
    {"open_by_handle_at", SYS_open_by_handle_at, {-100, HERE}},
    {"settimeofday", SYS_settimeofday, {1}},
    {"clock_settime", SYS_clock_settime, {-1, 1}},
    {"sethostname", SYS_sethostname, {HERE, -1}},
    {"fanotify_init", SYS_fanotify_init, {-1}},
    {"personality", SYS_personality, {0x0400000}},
    {"bound the cell", SYS_prlimit64, {1, RLIMIT_NOFILE, 0}},
    {"steal input", SYS_ioctl, {0, TIOCSTI, HERE}},
    {"not invented yet", 1023, {0}},
#ifdef __x86_64__
    {"iopl", SYS_iopl, {3}},
    {"ioperm", SYS_ioperm, {0, 1, 1}},
    {"getpid of x32", 0x40000000 + SYS_getpid, {0}},
#endif
    {"mknod", SYS_mknodat, {-100, (long)"node", S_IFBLK | 0600, 0x700}},
    {"chroot", SYS_chroot, {NOWHERE}},
};

static int tell_calls(void) {
  if (prctl(PR_GET_SECCOMP) != 2) return 99;
  for (size_t at = 0; at < sizeof calls / sizeof *calls; at++) {
    const long *a = calls[at].arguments;
    pid_t pid = fork(); /* some would change the caller */
    if (pid == 0) {
      long result = syscall(calls[at].number, a[0], a[1], a[2], a[3], a[4], a[5]);
      printf("%s: %s\n", calls[at].name, result < 0 ? strerrorname_np(errno) : "done");
      fflush(stdout);
      _exit(0);
    }
    waitpid(pid, NULL, 0);
  }
#ifdef __x86_64__
  long result; /* the same number is another call there */
  __asm__ volatile("int $0x80" : "=a"(result) : "a"(20L), "b"(0L) : "memory", "r8", "r9", "r10", "r11");
  printf("getpid of i386: %s\n", (int)result < 0 ? strerrorname_np(-(int)result) : "done");
#endif
  return 0;
}

static char *filled(char *memory, size_t size) {
  if (memory == MAP_FAILED) exit(3);
  memset(memory, 1, size);
  return memory;
}

/* Pages of a memfd that nobody has mapped. */
static void memfd(size_t size) {
  static char block[1 << 20];
  int fd = memfd_create("hidden", 0);
  memset(block, 1, sizeof block);
  for (size_t at = 0; at < size; at += sizeof block)
    if (write(fd, block, sizeof block) < 0) exit(3);
}

static char *shared(size_t size) {
  return filled(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), size);
}

static int hog(const char *how, size_t size) {
  if (!strcmp(how, "memfd")) memfd(size);
  if (!strcmp(how, "each"))
    for (int child = 0; child < 12; child++)
      if (fork() == 0) {
        shared(size);
        pause();
      }
  if (!strcmp(how, "together")) {
    char *memory = shared(size);
    for (int child = 0; child < 12; child++)
      if (fork() == 0) {
        filled(memory, size);
        pause();
      }
  }
  if (!strcmp(how, "sysv")) {
    int id = shmget(IPC_PRIVATE, size, 0600);
    char *memory = shmat(id, NULL, 0);
    shmctl(id, IPC_RMID, NULL); /* it goes with the last that has it, also where no namespace takes it away */
    filled(memory, size);
  }
  puts("held");
  fflush(stdout);
  sleep(2);
  return 0;
}

static int leave(void) {
  struct mq_attr attributes = {.mq_maxmsg = 1, .mq_msgsize = 8};
  return shmget(77, 1 << 20, IPC_CREAT | 0) < 0 || semget(77, 3, IPC_CREAT | 0600) < 0 ||
         msgget(77, IPC_CREAT | 0600) < 0 || mq_open("/left", O_CREAT | O_RDWR, 0600, &attributes) < 0;
}

static int find(void) {
  return shmget(77, 0, 0) >= 0 || semget(77, 0, 0) >= 0 || msgget(77, 0) >= 0 || mq_open("/left", O_RDONLY) >= 0;
}

/* How many processes there may be, this one included. */
static int breed(void) {
  int count = 1;
  for (pid_t pid; (pid = fork()) >= 0; count++) {
    if (pid == 0) pause();
    if (count == 2000) break;
  }
  printf("%d\n", count);
  return 0;
}

int main(int argc, char **argv) {
  if (argc == 1) return tell_calls();
  if (argc == 3) return hog(argv[1], (size_t)atoi(argv[2]) << 20);
  if (!strcmp(argv[1], "leave")) return leave();
  if (!strcmp(argv[1], "find")) return find();
  if (!strcmp(argv[1], "breed")) return breed();
  return 2;
}
