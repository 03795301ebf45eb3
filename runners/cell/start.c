/* From the fork to the exec. The child borrows our memory until it has exec'ed, so it allocates nothing and says what
   went wrong in ours. */
#define _GNU_SOURCE
#include "cell.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

static char stack[64 << 10] __attribute__((aligned(16)));

struct birth {
  const struct launch *launch;
  volatile enum step step;
  volatile int error;
};

static int refuse(struct birth *birth, enum step step) {
  birth->step = step;
  birth->error = errno;
  _exit(127);
}

/* By the system call: the C library keeps two signals to itself, and what it starts by posix_spawn ignores them. */
static void forget_signals(void) {
  static const unsigned long untouched[8]; /* no less than a kernel's struct sigaction */
  static const sigset_t none;
  for (int number = 1; number < NSIG; number++) syscall(SYS_rt_sigaction, number, untouched, NULL, (NSIG - 1) / 8);
  sigprocmask(SIG_SETMASK, &none, NULL);
}

static int child(void *argument) {
  struct birth *birth = argument;
  const struct launch *launch = birth->launch;
  setsid();
  forget_signals();
  const struct sched_param none = {0};
  sched_setscheduler(0, SCHED_OTHER, &none); /* we are a batch process, which is inherited */
  if (fchdir(launch->folder)) return refuse(birth, FOLDER);
  /* Those that are to go are above where they go to, so none is overwritten before it is used. */
  for (int at = 0; at < launch->nfds; at++)
    if (dup2(launch->fds[at], at) < 0) return refuse(birth, DESCRIPTORS);
  struct rlimit no_core = {0, 0};
  setrlimit(RLIMIT_CORE, &no_core);
  if ((errno = sandbox_confine(launch->sandbox))) return refuse(birth, SANDBOX);
  execve(launch->argv[0], launch->argv, launch->envp);
  return refuse(birth, EXEC);
}

pid_t start(const struct launch *launch, enum step *step, int *error) {
  struct birth birth = {.launch = launch, .step = NO_STEP};
  sigset_t all, before;
  sigfillset(&all);
  sigprocmask(SIG_SETMASK, &all, &before); /* a handler of ours must not run on the child's stack */
  pid_t pid = clone(child, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, &birth);
  int problem = errno;
  sigprocmask(SIG_SETMASK, &before, NULL);
  *step = pid < 0 ? FORK : birth.step;
  *error = pid < 0 ? problem : birth.error;
  return *step == NO_STEP ? pid : -1;
}
