/* Namespaces of a cell's own, made once and used again and again: that is what makes them cheap. Where one is
   refused, the cell goes on with what there is, and says so. */
#define _GNU_SOURCE
#include "cell.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* What a fork into new namespaces comes to: by the system call, as a fork that shares nothing is. */
static pid_t fork_into(unsigned long flags) {
  return (pid_t)syscall(SYS_clone, flags | SIGCHLD, NULL, NULL, NULL, NULL);
}

/* The parent only waits, and leaves as its child did. */
static _Noreturn void wait_for(pid_t child, const char *path) {
  int status;
  sigset_t none;
  prctl(PR_SET_DUMPABLE, 0);
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
  forget_text();
  while (syscall(SYS_wait4, child, &status, 0, NULL) < 0) /* by the system call: it needs fewer pages */
    if (errno != EINTR) _exit(70);
  /* From within, where it is a mount point, maybe, it cannot be removed. */
  if (path) remove_folders(path, !WIFEXITED(status) || WEXITSTATUS(status) == GATEWAY_GONE);
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
  snprintf(users, sizeof users, "%u %u 1", user, user);
  snprintf(groups, sizeof groups, "%u %u 1", group, group);
  return write_text("/proc/self/setgroups", "deny") && write_text("/proc/self/uid_map", users) &&
         write_text("/proc/self/gid_map", groups);
}

static bool raise_lo(void) {
  struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  bool up = fd >= 0 && !ioctl(fd, SIOCSIFFLAGS, &lo);
  close_fd(&fd);
  return up;
}

/* Nothing that is mounted here may be seen outside, and /proc is to show what is in here. */
static bool arrive(unsigned long flags, uid_t user, gid_t group) {
  if (flags & CLONE_NEWUSER && !map_user(user, group)) return false;
  if (flags & CLONE_NEWNET && !raise_lo()) return false;
  return !mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) &&
         !mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
}

/* Whether the kernel would let us, tried in a child that ends at once: 0 or errno. */
static int refusal(unsigned long flags, uid_t user, gid_t group) {
  pid_t pid = fork_into(flags);
  if (pid < 0) return errno;
  if (pid == 0) _exit(arrive(flags, user, group) ? 0 : errno);
  int status;
  while (waitpid(pid, &status, 0) < 0)
    if (errno != EINTR) return errno;
  return WIFEXITED(status) ? WEXITSTATUS(status) : EINTR;
}

void isolate(struct sandbox *sandbox) {
  static const struct {
    unsigned long flags;
    unsigned got;
  } ways[] = { /* from the best to the least */
      {CLONE_NEWNET, NAMESPACES | NO_NETWORK},
      {CLONE_NEWNET | CLONE_NEWUSER, NAMESPACES | NO_NETWORK | USER_NAMESPACE},
      {0, NAMESPACES},
      {CLONE_NEWUSER, NAMESPACES | USER_NAMESPACE},
  };
  uid_t user = getuid();
  gid_t group = getgid();
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  if (!(sandbox->wanted & NAMESPACES)) return;
  int error = 0;
  for (size_t at = 0; at < sizeof ways / sizeof *ways; at++) {
    if (ways[at].got & NO_NETWORK && !(sandbox->wanted & NO_NETWORK)) continue;
    if (ways[at].got & USER_NAMESPACE && sandbox->wanted & OTHER_USER) continue; /* it has but one user */
    unsigned long flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | ways[at].flags;
    if ((error = refusal(flags, user, group))) continue;
    pid_t pid = fork_into(flags);
    if (pid > 0) wait_for(pid, sandbox->serves ? sandbox->folder_path : NULL);
    if (pid < 0) break;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (!arrive(flags, user, group)) _exit(71);
    sandbox->got |= ways[at].got;
    return;
  }
  errno = error;
  refused(sandbox, NAMESPACES);
}
