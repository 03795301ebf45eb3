/* What an attacker brings along where a script is too slow, or too far from the kernel. "arms jail COMMAND..." runs
   something as most containers have it, without namespaces to be had. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { LINKS = 16, MOST_SECONDS = 60, NEW = 0x7e020000 | 0x80, CLONE3 = 435, OPEN_TREE = 428, FSOPEN = 430, GETFD = 438 };

static void ends_by_itself(void) { alarm(MOST_SECONDS); }

static const char *told(long result) { return result < 0 ? strerrorname_np(errno) : "done"; }

static int jail(char **command) {
#define REFUSE(number, error) \
  BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (error))
  struct sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      REFUSE(CLONE3, ENOSYS), REFUSE(SYS_unshare, EPERM), REFUSE(SYS_mount, EPERM), REFUSE(SYS_setns, EPERM),
      REFUSE(OPEN_TREE, EPERM), REFUSE(FSOPEN, EPERM),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args)),
      BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, NEW, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const struct sock_fprog program = {sizeof code / sizeof *code, code};
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program)) return 71;
  execvp(command[0], command);
  return 72;
}

/* Each link leaves the session, forks, and exits. */
static int storm(bool deaf) {
  struct timespec begun, now;
  clock_gettime(CLOCK_MONOTONIC, &begun);
  for (int number = 1; deaf && number < NSIG; number++) signal(number, SIG_IGN);
  for (int link = 0; link < LINKS; link++)
    if (fork() == 0)
      for (;;) {
        setsid();
        pid_t pid = fork();
        if (pid > 0) _exit(0);
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (now.tv_sec - begun.tv_sec > MOST_SECONDS) _exit(0);
      }
  puts("storm");
  fflush(stdout);
  for (;;) pause();
}

static void fork_on_term(int number) {
  (void)number;
  if (fork() == 0) setsid();
}

/* What forks when it is asked to end. */
static int hydra(void) {
  signal(SIGTERM, fork_on_term);
  for (int count = 0; count < 8; count++)
    if (fork() == 0) {
      setsid();
      break;
    }
  for (;;) pause();
  return 0;
}

/* A child that is its parent's sibling: the one who waits for the parent does not know it. */
static int sibling(void) {
  int pid = (int)syscall(SYS_clone, CLONE_PARENT | SIGCHLD, NULL, NULL, NULL, NULL);
  if (pid < 0) return printf("%s\n", strerrorname_np(errno)), 0;
  if (pid == 0) {
    setsid();
    close(0), close(1), close(2), close(3);
    for (;;) pause();
  }
  puts("done");
  return 0;
}

static void stay(void) {
  puts("held");
  fflush(stdout);
  for (;;) pause();
}

static char *filled(void *memory, size_t size) {
  if (memory == MAP_FAILED) exit(3);
  return memset(memory, 1, size);
}

static char *anonymous(size_t size, int how) {
  return filled(mmap(NULL, size, PROT_READ | PROT_WRITE, how | MAP_ANONYMOUS, -1, 0), size);
}

static void write_to(int fd, size_t size) {
  static char block[1 << 20];
  memset(block, 1, sizeof block);
  for (size_t at = 0; at < size; at += sizeof block)
    if (write(fd, block, sizeof block) < 0) {
      printf("%s\n", strerrorname_np(errno));
      exit(3);
    }
}

/* Memory in the ways that are not all counted by who looks at processes. */
static int hog(const char *how, size_t size) {
  if (!strcmp(how, "memfd")) write_to(memfd_create("hidden", 0), size);
  if (!strcmp(how, "mapped")) {
    int fd = memfd_create("hidden", 0);
    if (ftruncate(fd, (off_t)size)) return 3;
    char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    filled(memory, size);
  }
  if (!strcmp(how, "shared"))
    for (int child = 0; child < 12; child++)
      if (fork() == 0) {
        anonymous(size / 12, MAP_SHARED);
        stay();
      }
  if (!strcmp(how, "sysv")) {
    int id = shmget(0xA77AC4, size, 0600 | IPC_CREAT);
    if (id < 0) return printf("%s\n", strerrorname_np(errno)), 3;
    filled(shmat(id, NULL, 0), size);
  }
  if (!strcmp(how, "plain")) anonymous(size, MAP_PRIVATE);
  if (!strcmp(how, "locked")) {
    char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mlock(memory, size)) filled(memory, size);
  }
  if (!strcmp(how, "deep")) { /* the last of a long line of children */
    for (int link = 0; link < 80; link++) {
      pid_t pid = fork();
      if (pid > 0)
        for (;;) pause();
    }
    anonymous(size, MAP_PRIVATE);
  }
  if (!strcmp(how, "many")) /* little by little, in many */
    for (int child = 0; child < 40; child++)
      if (fork() == 0) {
        anonymous(size / 40, MAP_PRIVATE);
        stay();
      }
  stay();
  return 0;
}

static void *sleeper(void *nothing) {
  for (;;) pause();
  return nothing;
}

static int threads(int most) {
  pthread_attr_t small;
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 64 << 10);
  int count = 0;
  for (pthread_t one; count < most && !pthread_create(&one, &small, sleeper, NULL); count++) {
  }
  printf("%d\n", count);
  stay();
  return 0;
}

/* How many processes there may be, this one included. */
static int breed(int most) {
  int count = 1;
  for (pid_t pid; count < most && (pid = fork()) >= 0; count++)
    if (pid == 0)
      for (;;) pause();
  printf("%d\n", count);
  stay();
  return 0;
}

/* A parent that is held by its child's vfork. */
static int held(void) {
  if (vfork() == 0) {
    signal(SIGTERM, SIG_IGN);
    for (;;) pause();
  }
  return 0;
}

static int into(pid_t victim, int fd) {
  char word[16] = "";
  struct iovec here = {word, sizeof word}, there = {(void *)0x400000, sizeof word};
  printf("ptrace %s\n", told(ptrace(PTRACE_SEIZE, victim, 0, 0)));
  printf("read %s\n", told(process_vm_readv(victim, &here, 1, &there, 1, 0)));
  printf("write %s\n", told(process_vm_writev(victim, &here, 1, &there, 1, 0)));
  int one = (int)syscall(SYS_pidfd_open, victim, 0);
  printf("open %s\n", told(one));
  printf("take %s\n", told(one < 0 ? -1 : syscall(GETFD, one, fd, 0)));
  printf("signal %s\n", told(one < 0 ? kill(victim, 0) : syscall(SYS_pidfd_send_signal, one, 0, NULL, 0)));
  return 0;
}

/* Keeps a folder on the move between two places, and a name between a folder and a link. */
static int race(const char *one, const char *other, const char *swapped, const char *link_to) {
  ends_by_itself();
  char spare[512];
  snprintf(spare, sizeof spare, "%s.link", swapped);
  if (symlink(link_to, spare) && errno != EEXIST) return 3;
  for (;;) {
    rename(one, other);
    rename(other, one);
    syscall(SYS_renameat2, AT_FDCWD, swapped, AT_FDCWD, spare, 2 /* exchange */);
  }
}

int main(int argc, char **argv) {
  const char *what = argc > 1 ? argv[1] : "";
  if (!strcmp(what, "jail") && argc > 2) return jail(argv + 2);
  ends_by_itself();
  if (!strcmp(what, "storm")) return storm(argc > 2);
  if (!strcmp(what, "hydra")) return hydra();
  if (!strcmp(what, "sibling")) return sibling();
  if (!strcmp(what, "held")) return held();
  if (!strcmp(what, "hog") && argc > 3) return hog(argv[2], (size_t)atoi(argv[3]) << 20);
  if (!strcmp(what, "threads") && argc > 2) return threads(atoi(argv[2]));
  if (!strcmp(what, "breed") && argc > 2) return breed(atoi(argv[2]));
  if (!strcmp(what, "into") && argc > 3) return into(atoi(argv[2]), atoi(argv[3]));
  if (!strcmp(what, "race") && argc > 5) return race(argv[2], argv[3], argv[4], argv[5]);
  return 2;
}
