/* Namespaces of a cell's own, made once and used again and again: that is what makes them cheap. Steps are taken in
   order; where one is refused, the cell goes on with what there is, and says so. */
#define _GNU_SOURCE
#include "cell.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* What a fork into new namespaces comes to. The parent only waits, and leaves as its child did. */
static pid_t fork_into(uint64_t flags) {
  struct clone_args arguments = {.flags = flags, .exit_signal = SIGCHLD};
  return (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
}

static _Noreturn void wait_for(pid_t child) {
  int status;
  sigset_t none;
  prctl(PR_SET_DUMPABLE, 0);
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
  while (waitpid(child, &status, 0) < 0)
    if (errno != EINTR) _exit(70);
  _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

static bool write_text(const char *path, const char *text) {
  int file = open(path, O_WRONLY | O_CLOEXEC);
  if (file < 0) return false;
  ssize_t written = write(file, text, strlen(text));
  close(file);
  return written == (ssize_t)strlen(text);
}

/* Be oneself inside of a user namespace too. */
static bool map_user(uid_t user, gid_t group) {
  char users[64], groups[64];
  snprintf(users, sizeof users, "%d %d 1", user, user);
  snprintf(groups, sizeof groups, "%d %d 1", group, group);
  return write_text("/proc/self/setgroups", "deny") && write_text("/proc/self/uid_map", users) &&
         write_text("/proc/self/gid_map", groups);
}

/* Nothing that is mounted here may be seen outside, and /proc is to show what is in here. */
static bool mount_proc(void) {
  if (mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL)) return false;
  return !mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
}

static int enter(uint64_t flags, int got, uid_t user, gid_t group) {
  pid_t pid = fork_into(flags);
  if (pid < 0) return -1;
  if (pid > 0) wait_for(pid);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (flags & CLONE_NEWUSER && !map_user(user, group)) _exit(71);
  return got;
}

/* Whether the kernel would let us, tried in a child that ends at once. */
static bool allowed(uint64_t flags, uid_t user, gid_t group) {
  pid_t pid = fork_into(flags);
  if (pid < 0) return false;
  if (pid == 0) _exit(flags & CLONE_NEWUSER && !map_user(user, group) ? 1 : !mount_proc());
  int status;
  while (waitpid(pid, &status, 0) < 0)
    if (errno != EINTR) return false;
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

int isolate(int wanted) {
  uid_t user = getuid();
  gid_t group = getgid();
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  if (!(wanted & OWN_PROCESSES)) return 0;
  uint64_t flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | (wanted & OWN_NETWORK ? CLONE_NEWNET : 0);
  if (!allowed(flags, user, group)) {
    flags |= CLONE_NEWUSER;
    if (!allowed(flags, user, group)) return 0;
  }
  int got = enter(flags, wanted, user, group);
  if (got < 0) return 0;
  if (!mount_proc()) _exit(72);
  return got;
}
